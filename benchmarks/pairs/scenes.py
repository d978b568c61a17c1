"""Prompt pairs for GPT-2, or another base model: six scenes that decide which thing is named next.

A prompt is one sentence per scene, or as many that evoke none, and the beginning of a sentence that names
a thing: `Snowflakes drifted past the frozen lamps. The first thing that Anna noticed was the` -> ` snow`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.pairs.environment import Environment, Example, Pair, target_sets

__all__ = ["CONTEXTS", "NEUTRAL", "SCENES", "TEMPLATES", "WORDS", "scenes_environment"]

CONTEXTS: dict[str, tuple[str, ...]] = {
    "winter": (
        "Snowflakes drifted past the frozen lamps.",
        "The lake had been solid ice since December.",
        "Their breath turned to fog in the freezing air.",
        "A blizzard had closed the mountain road.",
        "Icicles hung from every roof in the village.",
        "It was the coldest January anyone could remember.",
        "The children pulled their sleds up the white hill.",
        "Frost covered the windows and the pipes had frozen.",
        "Everyone wore thick scarves and woollen gloves.",
        "The plough had pushed the snow into high banks.",
    ),
    "sea": (
        "The sailors could taste salt on the wind.",
        "Gulls circled above the harbour and the fishing boats.",
        "The captain steered the ship towards the coast.",
        "The tide was coming in over the sand.",
        "Waves broke against the side of the ferry.",
        "They had been sailing across the ocean for a week.",
        "Divers searched the reef for the sunken vessel.",
        "The lighthouse blinked over the dark water.",
        "Nets full of herring lay drying on the pier.",
        "From the cliff they watched the surf roll in.",
    ),
    "music": (
        "The orchestra was tuning its instruments.",
        "The crowd cheered when the guitarist stepped forward.",
        "She had practised the sonata for months.",
        "The choir began to sing the second verse.",
        "The drummer counted in and the concert started.",
        "He hummed the melody while he wrote the lyrics.",
        "The jazz club was full and the trumpet was loud.",
        "The opera singer bowed to the audience.",
        "The radio played their favourite album.",
        "Her fingers danced over the keys of the grand piano.",
    ),
    "kitchen": (
        "The chef chopped onions and stirred the sauce.",
        "The smell of fresh bread filled the bakery.",
        "She whisked the eggs and melted the butter.",
        "The waiter carried plates of pasta to the tables.",
        "Garlic was frying in a hot pan.",
        "Grandmother rolled out the dough for the pie.",
        "The restaurant was famous for its roast beef.",
        "He sprinkled cheese over the soup and tasted it.",
        "The oven was hot and dinner was almost ready.",
        "They had bought spices and vegetables at the market.",
    ),
    "war": (
        "The soldiers crouched in the muddy trench.",
        "Artillery shells had destroyed the village.",
        "The general ordered the troops to advance.",
        "Helicopters fired rockets at the enemy lines.",
        "The regiment had lost half its men in the battle.",
        "Air raid sirens howled and bombs fell on the city.",
        "The sniper reloaded his rifle behind the wall.",
        "Tanks rolled across the border before dawn.",
        "The army had surrounded the rebels.",
        "Wounded men were carried away from the front.",
    ),
    "garden": (
        "The roses were in full bloom behind the cottage.",
        "She knelt down to plant the tulip bulbs.",
        "Bees hummed among the lavender.",
        "He raked the leaves and watered the lawn.",
        "The apple trees were heavy with blossom.",
        "Butterflies fluttered above the daisies.",
        "The gardener trimmed the hedge along the path.",
        "Seedlings were sprouting in the greenhouse.",
        "Ivy climbed the fence beside the vegetable beds.",
        "The scent of jasmine drifted over the grass.",
    ),
}

NEUTRAL: tuple[str, ...] = (
    "It was an ordinary Tuesday afternoon.",
    "Nothing special had happened that day.",
    "They had been there for about an hour.",
    "Nobody was in a hurry that day.",
    "It was much the same as the week before.",
    "There was not a great deal to do.",
    "They had agreed to meet at three.",
    "Somebody had left the door open.",
    "It was getting late by then.",
    "The others had not arrived yet.",
)

WORDS: dict[str, tuple[str, ...]] = {
    "winter": ("snow", "ice", "cold", "frost", "snowman", "sled", "blizzard", "icicles"),
    "sea": ("ocean", "sea", "water", "waves", "ship", "boat", "beach", "shore"),
    "music": ("music", "song", "piano", "guitar", "band", "singer", "stage", "drums"),
    "kitchen": ("food", "bread", "soup", "meat", "cheese", "cake", "chef", "stove"),
    "war": ("soldiers", "enemy", "gun", "army", "tank", "bomb", "troops", "battle"),
    "garden": ("flowers", "roses", "grass", "trees", "garden", "leaves", "bees", "plants"),
}

SCENES = tuple(CONTEXTS)

TEMPLATES: tuple[str, ...] = (
    "When {name} looked up, what caught everyone's attention was the",
    "The first thing that {name} noticed was the",
    "All that {name} could think about was the",
    "Years later, {name} would still remember the",
    "Then {name} pointed at the",
    "Without a word, {name} walked towards the",
    "In the photograph, {name} was standing next to the",
    "What {name} liked most of all was the",
    "Nobody but {name} seemed to care about the",
    "Suddenly {name} heard somebody mention the",
    "For a long time {name} stared at the",
    "In the end, {name} told us about the",
)

NAMES: tuple[str, ...] = ("Anna", "David", "Maria", "Peter", "Sarah", "James", "Laura", "Michael")

SHARES = {"selection": (0, 6), "calibration": (6, 8), "test": (8, 10)}
"""part -> contexts and neutral sentences; examples have those of `selection`."""

TEMPLATE_SHARES = {"selection": (0, 6), "calibration": (6, 9), "test": (9, 12)}


def _pair(scenes: Sequence[str], part: str, start: str, rng: random.Random) -> Pair:
    low, high = SHARES[part]
    first, last = TEMPLATE_SHARES[part]
    order = rng.sample(scenes, len(scenes))
    contexts = [rng.choice(CONTEXTS[scene][low:high]) for scene in order]
    neutral = rng.sample(NEUTRAL[low:high], min(len(scenes), high - low))
    template = rng.choice(TEMPLATES[first:last])
    end = template.format(name=rng.choice(NAMES))
    texts = (start + " ".join([*sentences, end]) for sentences in (neutral, contexts))
    return Pair(tuple(scenes), *texts, WORDS, place=template)


def _examples(count: int, start: str, rng: random.Random) -> list[Example]:
    """Pairs with one or two scenes, equally often, each with one of its words."""
    found = []
    for _ in range(count):
        chosen = rng.sample(SCENES, rng.choice((1, 2)))
        pair = _pair([s for s in SCENES if s in chosen], "selection", start, rng)
        found.append(Example(pair, f" {rng.choice(sorted(pair.target_words()))}."))
    return found


def scenes_environment(
    model: str,
    *,
    layer: int,
    start: str = "",
    examples: int = 600,
    per_set: int = 4,
    tests: int = 8,
    sizes: Sequence[int] = (1, 2),
    seed: int = 0,
) -> Environment:
    """layer: the block to steer. start: what every text begins with, such as GPT-2's `<|endoftext|>`. The
    rest as in `tones_environment`; sizes of at most 2, else ValueError."""
    if max(sizes) > 2:
        raise ValueError(f"sizes: {max(sizes)}; calibration and test have two neutral sentences each")
    rng = random.Random(seed)

    def pairs(part: str, wanted: Sequence[int], count: int) -> list[Pair]:
        sets = [chosen for size in wanted for chosen in target_sets(SCENES, size)]
        return [_pair(scenes, part, start, rng) for scenes in sets for _ in range(count)]

    return Environment(
        name="scenes",
        model=model,
        behaviours=SCENES,
        layer=layer,
        examples=_examples(examples, start, rng),
        pairs={
            "selection": pairs("selection", (1,), 12),
            "calibration": pairs("calibration", sizes, per_set),
            "test": pairs("test", sizes, tests),
        },
        engine_options={
            "dtype": "float32",
            "max_model_len": 128,
            "gpu_memory_utilization": 0.3,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": 4096,
            "use_tqdm_on_load": False,
        },
        fit_options={
            "mlp": {"noise": 1.0},
            "loreft": {"steps": 24},
            "lorest": {"steps": 24, "hard_steps": 12},
        },
    )
