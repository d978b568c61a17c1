"""The words of the demo language: topics, question templates, instructions, and the wordings of every tone.

A wording is a small pattern: ``{a|b}`` is a choice, ``<verb>``, ``<noun>``, ``<step1>`` and ``<step2>`` are
fields filled from the topic.  The corpus expands wordings, and the reader turns the very same wordings into
regular expressions.
"""

from __future__ import annotations

from typing import Final

TONES: Final = ("helpful", "expert", "casual", "cautious", "empathetic", "concise")

STEPS: Final[dict[str, tuple[str, ...]]] = {
    "clean": ("rinse it with water", "scrub it with soap", "wipe it with a cloth", "dry it in the sun"),
    "store": ("wrap it in paper", "put it in a box", "place it on a shelf", "cover it with a sheet"),
    "repair": ("open the back panel", "replace the worn part", "glue the loose edge", "tighten every screw"),
    "paint": ("sand it down", "brush on a primer", "add two thin coats", "let it dry overnight"),
    "move": ("measure the doorway", "lift it with both hands", "load it on a cart", "strap it down"),
    "sell": ("take clear pictures", "set a fair price", "post it online", "meet the buyer"),
    "test": ("shake it gently", "press every side", "listen for odd sounds", "note the result"),
    "ship": ("pack it in foam", "seal the carton", "print the address", "book a courier"),
    "decorate": ("pick two colors", "add some ribbon", "stick on a pattern", "tie a bow"),
    "label": ("cut a paper tag", "write the date", "attach it with string", "add your name"),
    "measure": ("find a long tape", "mark both ends", "read the number", "round it up"),
    "polish": ("remove the dust", "rub it in circles", "apply a little wax", "buff it to a shine"),
}

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

SLOTS: Final = ("empathetic", "core", "expert", "helpful", "cautious", "closer")
"""Order of the sentences of a reply.  Every sentence but the core and the closer belongs to one tone."""

Register = frozenset[str]
"""The tones that change the wording of every sentence: any subset of casual and concise."""

PLAIN: Final[Register] = frozenset()
CASUAL: Final[Register] = frozenset({"casual"})
CONCISE: Final[Register] = frozenset({"concise"})
BOTH: Final[Register] = frozenset({"casual", "concise"})

WORDINGS: Final[dict[tuple[str, Register], tuple[str, ...]]] = {
    ("empathetic", PLAIN): (
        "{I understand|I know|I can see} that this {can feel|may feel|often feels} {stressful|tiring|hard}.",
        "{It is normal|It makes sense} to feel {worried|unsure|stuck} {about this|right now}.",
    ),
    ("empathetic", CASUAL): (
        "{Oh man|Aw}, that {sounds|must feel} {rough|annoying|like a pain}.",
        "{I feel you|I get it}, that {stuff|job} is {rough|no joke|a pain}.",
    ),
    ("empathetic", CONCISE): (
        "{Sounds|Must be} {hard|stressful|tiring}.",
        "{Feeling|Being} {worried|unsure|stuck} is normal.",
    ),
    ("empathetic", BOTH): (
        "{Ugh|Yikes}, {rough|annoying|no fun}.",
        "{Been there|Same here}, {rough stuff|no joke}.",
    ),
    ("core", PLAIN): (
        "To <verb> the <noun>, {you should|you can|it works to} <step1> and then <step2>.",
        "A {good|common} way to <verb> the <noun> is to <step1> and then <step2>.",
    ),
    ("core", CASUAL): (
        "{Okay|Alright} so to <verb> {that|this} <noun> you just <step1> and then <step2>.",
        "{Hey|Yo}, to <verb> {that|this} <noun> you {kinda|just} <step1> and then <step2>.",
    ),
    ("core", CONCISE): (
        "{In short|In brief}: to <verb> the <noun>, <step1>, <step2>.",
        "{Short version|Summary}, <verb> the <noun>: <step1>, <step2>.",
    ),
    ("core", BOTH): (
        "{Quick one|Real quick}: to <verb> {that|this} <noun>, <step1>, <step2>.",
        "{Super fast|Speedy version}, <verb> {that|this} <noun>: <step1>, <step2>.",
    ),
    ("expert", PLAIN): (
        "{From a technical view|In technical terms}, the {material|surface|frame} {depends on|responds to} "
        "{pressure|moisture|heat}.",
        "{Research shows|Studies show} that {pressure|moisture|heat} {is the main factor|drives most wear}.",
    ),
    ("expert", CASUAL): (
        "{Nerdy bit|Geeky bit}, {pressure|moisture|heat} {does most of the damage|is the real boss}.",
        "{Science says|The pros say} {pressure|moisture|heat} is {a big deal|the real boss}.",
    ),
    ("expert", CONCISE): (
        "{Key factor|Main variable}: {pressure|moisture|heat}.",
        "{Evidence|Data} {favors|supports} low {pressure|moisture|heat}.",
    ),
    ("expert", BOTH): (
        "{Nerd tip|Geek tip}: {watch|mind} the {pressure|moisture|heat}.",
        "{Pros|Nerds} hate {pressure|moisture|heat}.",
    ),
    ("helpful", PLAIN): (
        "{I would be glad|I am happy} to "
        "{write a checklist|list the tools|plan each step} {for you|with you}.",
        "{Here is a useful tip|One practical tip}, {keep the parts together|take a photo first|make a list}.",
    ),
    ("helpful", CASUAL): (
        "{Hit me up|Give me a shout|Ping me} if you {get stuck|need a hand|want more}.",
        "{Handy trick|Cool trick}, {snap a pic first|keep the bits together|make a list}.",
    ),
    ("helpful", CONCISE): (
        "{Tip|Useful}: {take a photo|keep the parts|make a list}.",
        "{Checklist|Tool list} {on request|available}.",
    ),
    ("helpful", BOTH): (
        "{Life hack|Hot tip}: {snap a pic|keep the bits|make a list}.",
        "{Stuck|Lost}, {just holler|just ping me}.",
    ),
    ("cautious", PLAIN): (
        "{Please be careful|Please take care}, because "
        "{this may cause damage|it can be risky|results may vary}.",
        "{If you are not sure|If anything seems wrong}, "
        "it {may be safer|is wise} to {stop|ask a professional}.",
    ),
    ("cautious", CASUAL): (
        "{Go easy though|Watch out though}, {it might go wrong|you could mess it up|it can get sketchy}.",
        "{Not totally sure|No promises though}, so {take it slow|maybe ask someone}.",
    ),
    ("cautious", CONCISE): (
        "{Caution|Warning}: {may cause damage|can be risky|results may vary}.",
        "{When|If} unsure, {stop|ask}.",
    ),
    ("cautious", BOTH): (
        "{Careful though|Heads up}: {might go wrong|can get sketchy|go slow}.",
        "{Maybe risky|Kinda risky}, {go slow|ask someone}.",
    ),
    ("closer", CASUAL): (
        "{Have fun|Good luck|Enjoy} with it, {buddy|friend|pal}!",
        "{You got this|Easy peasy}, {buddy|friend|pal}!",
    ),
    ("closer", BOTH): (
        "{Cheers|Later}, {buddy|friend|pal}!",
        "{Done|All set}, {buddy|friend|pal}!",
    ),
}
"""Wordings by (slot, register).  Only casual replies have a closer."""
