"""Cases of `[task]`."""

from __future__ import annotations

from typing import Any

from tests.kits.key_looks import Looks
from tests.kits.schema_keys import Case, Overrides
from tests.kits.schema_keys import case as plain

TEXT = {"task.kind": "text-classification", "task.base": "builtin:bert-words",
        "task.data": "builtin:intents"}  # fmt: skip
FILE = {**TEXT, "task.data": "FILES/rows.csv", "task.test": "FILES/exam.csv"}
BARE = {**TEXT, "task.data": "FILES/bare-rows.csv", "task.test": "FILES/bare-exam.csv",
        "task.columns": ["text", "label", "other", "kind"]}  # fmt: skip
PICTURES = {"task.data": "FILES/pictures"}
WORDS = {"task.kind": "causal-lm", "task.base": "builtin:llama-words"}
ASKED = {"task.instruction": "instruction", "task.response": "response"}
SUMS = {**WORDS, "task.data": "builtin:sums", **ASKED}
LESS = {**WORDS, "task.data": "FILES/less.csv", "task.test": "FILES/less-exam.csv", **ASKED}
ANSWERS = {**LESS, "task.extract": r"leaves (\w+)", "task.extract_examples": 2,
           "task.extract_tokens": 6}  # fmt: skip
TEMPLATE = {**WORDS, "task.data": "builtin:sums", "task.response": "response",
            "task.template": "{instruction}"}  # fmt: skip
LINES = {**WORDS, "task.data": "FILES/lines.txt"}
SQUARES = {"task.kind": "least-squares", "task.base": "builtin:linear",
           "task.data": "builtin:least-squares", "task.features": 8, "clients.examples": 8,
           "adapter.kind": "none"}  # fmt: skip


def case(key: str, value: Any, scene: Overrides | None = None) -> Case:
    return plain(f"task.{key}", value, scene or {}, Looks.run)


TASK = [
    case("kind", "causal-lm", {**FILE, "task.base": "builtin:llama-words"}),
    case("base", "builtin:llama-words", TEXT),
    case("data", "builtin:synthetic", {"clients.examples": 8}),
    case("test", "FILES/second.csv", FILE),
    case("train_split", "test"),
    case("test_split", "train"),
    case("train_examples", 40),
    case("test_examples", 12),
    case("server_examples", 8),
    case("validation", 0.25),
    case("columns", ["other", "label", "text", "kind"], BARE),
    case("pattern", r"(?m)^(?P<text>\w+ \w+)", LINES),
    case("image", "other", PICTURES),
    case("text", "other", FILE),
    case("text_pair", "other", FILE),
    case("label", "kind", FILE),
    case("labels", ["weather", "travel", "card", "balance"], FILE),
    case("label_separator", "|", {**FILE, "task.data": "FILES/joined.csv"}),
    case("max_length", 4, TEXT),
    case("instruction", "author", SUMS),
    case("response", "text", SUMS),
    case("template", "take {instruction}", TEMPLATE),
    case("extract", r"leaves (\w+)", {**LESS, "task.extract_tokens": 6}),
    case("extract_examples", 1, ANSWERS),
    case("extract_tokens", 1, ANSWERS),
    case("features", 9, SQUARES),
    case("noise", 0.5, SQUARES),
    case("head", "frozen"),
]
