"""`builtin:intents` and `builtin:sums`: sentences of a small grammar, for tests and first tries.

Made up by rule, so a figure on them says nothing about a method.
"""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from fedtune.randomness import generator

INTENTS, SUMS = "builtin:intents", "builtin:sums"
AUTHORS = ("ann", "bo", "cem", "dia", "eli", "fay", "gus", "hana", "ivo", "june")
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
)  # fmt: skip
TOPICS = {
    "balance": ("money", "balance", "account", "much"),
    "card": ("card", "lost", "stolen", "new"),
    "travel": ("train", "ticket", "city", "trip"),
    "weather": ("rain", "sun", "wind", "today"),
    "music": ("song", "play", "loud", "band"),
    "food": ("bread", "soup", "order", "table"),
}
FRAMES = (
    "please tell me about the {0} and the {1}",
    "i want a {0} with my {1}",
    "is there {0} or {1} here",
    "{0} {1} now",
    "my friend asked for the {0} but not the {1} so what can we do",
)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]")
SIZES = {"train": 2000, "test": 400}
REPEATED = 0.2


def vocabulary() -> list[str]:
    """Every word that the built-in text has, special tokens first."""
    frames = " ".join(FRAMES).replace("{0}", "").replace("{1}", "").split()
    words = {*frames, *(w for topic in TOPICS.values() for w in topic), *NUMBERS, *AUTHORS}
    return [*SPECIAL, *sorted(words | {"add", "and", "the", "sum", "is", "take", "from", "leaves"})]


def intents() -> DatasetDict:
    """Short requests of six kinds: columns text, label, author; an author has favourite kinds."""
    return DatasetDict({name: _intents(name, size) for name, size in SIZES.items()})


def _intents(split: str, size: int) -> Dataset:
    draw = generator("intents", split)
    names = list(TOPICS)
    rows: dict[str, list[str]] = {"text": [], "label": [], "author": []}
    for _ in range(size):
        author = int(draw.integers(len(AUTHORS)))
        favourite = (author + int(draw.integers(2))) % len(names)
        label = favourite if draw.random() < 0.5 else int(draw.integers(len(names)))
        first, second = draw.choice(TOPICS[names[label]], 2, replace=False)
        if draw.random() < REPEATED:
            second = draw.choice(TOPICS[names[int(draw.integers(len(names)))]])
        rows["text"].append(FRAMES[int(draw.integers(len(FRAMES)))].format(first, second))
        rows["label"].append(names[label])
        rows["author"].append(AUTHORS[author])
    return Dataset.from_dict(rows)


def sums() -> DatasetDict:
    """Additions in words: columns instruction, response, text (both), author."""
    return DatasetDict({name: _sums(name, size) for name, size in SIZES.items()})


def _sums(split: str, size: int) -> Dataset:
    draw = generator("sums", split)
    rows: dict[str, list[str]] = {"instruction": [], "response": [], "text": [], "author": []}
    for _ in range(size):
        a, b, author = (int(draw.integers(n)) for n in (10, 10, len(AUTHORS)))
        asked, told = f"add {NUMBERS[a]} and {NUMBERS[b]}", f"the sum is {NUMBERS[a + b]}"
        rows["instruction"].append(asked)
        rows["response"].append(told)
        rows["text"].append(f"{asked} {told}")
        rows["author"].append(AUTHORS[author])
    return Dataset.from_dict(rows)
