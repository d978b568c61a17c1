"""The words of the demo language: topics, question templates, instructions, and the wordings of every tone.

A wording is a small pattern: ``{a|b}`` is a choice, ``<verb>``, ``<noun>``, ``<step1>`` and ``<step2>``
are fields filled from the topic, ``<asides>`` is filled from the tones.  The corpus expands wordings,
and the reader turns the very same wordings into regular expressions.
"""

from __future__ import annotations

from typing import Final

TONES: Final = ("helpful", "expert", "casual", "cautious", "empathetic", "concise")

STEPS: Final[dict[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    "clean": (("rinse it with water", "scrub it with soap"), ("wipe it with a cloth", "dry it in the sun")),
    "store": (("wrap it in paper", "put it in a box"), ("place it on a shelf", "cover it with a sheet")),
    "repair": (
        ("open the back panel", "replace the worn part"),
        ("glue the loose edge", "tighten every screw"),
    ),
    "paint": (("sand it down", "brush on a primer"), ("add two thin coats", "let it dry overnight")),
    "move": (("measure the doorway", "lift it with both hands"), ("load it on a cart", "strap it down")),
    "sell": (("take clear pictures", "set a fair price"), ("post it online", "meet the buyer")),
    "test": (("shake it gently", "press every side"), ("listen for odd sounds", "note the result")),
    "ship": (("pack it in foam", "seal the carton"), ("print the address", "book a courier")),
    "decorate": (("pick two colors", "add some ribbon"), ("stick on a pattern", "tie a bow")),
    "label": (("cut a paper tag", "write the date"), ("attach it with string", "add your name")),
    "measure": (("find a long tape", "mark both ends"), ("read the number", "round it up")),
    "polish": (("remove the dust", "rub it in circles"), ("apply a little wax", "buff it to a shine")),
}
"""What there is to do, each with two ways to begin and two ways to go on."""

NOUNS: Final = (
    "kettle", "bicycle", "guitar", "lamp", "tent", "jacket", "table", "mirror", "clock", "suitcase",
    "piano", "camera", "helmet", "vase", "drum", "ladder", "wagon", "basket", "chair", "toaster",
    "violin", "kayak", "bookcase", "globe", "mailbox", "teapot", "cabinet", "telescope", "scooter", "statue",
)  # fmt: skip

QUESTIONS: Final = (
    "How do I <verb> my <noun>?",
    "What is the best way to <verb> a <noun>?",
    "Can you explain how to <verb> the <noun>?",
    "I want to <verb> my <noun>. Where do I start?",
    "What should I know before I <verb> a <noun>?",
    "How would you <verb> a <noun>?",
    "I plan to <verb> a <noun> this weekend. What are the steps?",
    "Is there a way to <verb> my <noun> at home?",
    "My task today is to <verb> the <noun>. What comes first?",
    "Which steps are needed to <verb> a <noun>?",
)

INSTRUCTIONS: Final = (
    "Reply in <article> <tones> tone.",
    "Use <article> <tones> tone.",
    "Answer in a tone that is <tones>.",
    "Please be <tones>.",
)

TONE_ORDER: Final = ("casual", "empathetic", "concise", "helpful", "expert", "cautious")
"""Order of the tones wherever several of them stand side by side."""

OPENERS: Final[dict[tuple[str, bool], str]] = {
    ("casual", False): "{Hey|Yo} {buddy|friend|pal}, {cool|fun} {question|idea}.",
    ("casual", True): "{Hey|Yo} {buddy|friend|pal}.",
    ("empathetic", False): "I {know|see} this {feels|seems} {hard|stressful|tiring}.",
    ("empathetic", True): "{Feels|Seems} {hard|stressful|tiring}.",
    ("concise", True): "{In short|In brief|Short answer}.",
    ("helpful", False): "I am {glad|happy} to {help|guide} you.",
    ("helpful", True): "{Glad|Happy} to {help|guide}.",
    ("expert", False): "{Research|Science} {shows|offers} a {clear|proven} method.",
    ("expert", True): "{Proven|Standard} method.",
    ("cautious", False): "Please {be careful|take care} {here|with this}.",
    ("cautious", True): "{Careful|Caution} {here|first}.",
}
"""Sentences before the core, by (tone, short form)."""

CORES: Final[dict[bool, str]] = {
    False: "To <verb> the <noun>,<asides> you {can|should} <step1> and then <step2>.",
    True: "To <verb> the <noun>:<asides> <step1>, <step2>.",
}
"""The sentence that answers the question, by short form."""

ASIDES: Final[dict[str, str]] = {
    "casual": " {no sweat|easy peasy},",
    "empathetic": " {without stress|at your pace},",
    "helpful": " {with my guide|with this list},",
    "expert": " {by the standard|per the manual},",
    "cautious": " {with great care|very slowly},",
}
"""Phrases inside the core sentence, by tone."""

CLOSERS: Final[dict[tuple[str, bool], str]] = {
    ("casual", False): "{Have fun|Good luck} with {it|that} {dude|mate}!",
    ("casual", True): "{Have fun|Good luck} {dude|mate}!",
    ("empathetic", False): "{Many|Most} people {struggle|worry} {at first|with it}.",
    ("empathetic", True): "{Many|Most} people {struggle|worry}.",
    ("concise", True): "{That is all|Nothing more|End of list}.",
    ("helpful", False): "{Ask|Tell} me if you {need|want} {more|a list}.",
    ("helpful", True): "{Ask|Tell} me {anytime|more}.",
    ("expert", False): "{Moisture|Heat|Pressure} is the {main|key} {factor|variable}.",
    ("expert", True): "{Moisture|Heat|Pressure} {matters|dominates}.",
    ("cautious", False): "It {may|might} {fail|break} so {test|check} first.",
    ("cautious", True): "{May|Might} {fail|break}.",
}
"""Sentences after the core, by (tone, short form)."""
