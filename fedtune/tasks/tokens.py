"""Token sequences of any length, kept flat and memory-mapped, padded batch by batch.

Text is encoded once; the tokens lie as NumPy files in the cache of `datasets`, named by rows,
tokenizer and settings, and are mapped into memory by every process of a machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Sequence, Value
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedtune.console import counting
from fedtune.tasks.base import Batch, Rows
from fedtune.tasks.cache import Arrays, identity, made_once, mapped
from fedtune.tasks.stamps import stamps

IGNORED = -100
CACHE_VERSION = 3
TOKEN_COLUMNS = ("input_ids", "token_type_ids")
OFFSETS = "offsets"
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class TokenTable:
    """A split of token sequences.

    Attributes:
        tokens: what the model takes for each token (`input_ids`, perhaps `token_type_ids`), flat.
        offsets: where each row begins, int64, (rows + 1,).
        lengths: number of tokens of each row, on the CPU, (rows,).
        pad: the id that fills `input_ids` up; other inputs are filled with 0.
        targets: (rows,) classes; or None: the tokens themselves, from `counted` on.
        counted: position of each row's first token with a loss, int64, (rows,).
    """

    tokens: dict[str, Tensor]
    offsets: Tensor
    lengths: Rows
    pad: int
    targets: Tensor | None = None
    counted: Tensor | None = None

    @classmethod
    def of(
        cls, encoded: Arrays, pad: Any, targets: str | None = None, counted: str | None = None
    ) -> TokenTable:
        """The table of an encoded split; `targets` and `counted` name its integer columns."""
        return cls(
            {name: mapped(encoded[name]) for name in TOKEN_COLUMNS if name in encoded},
            mapped(encoded[OFFSETS]),
            np.diff(encoded[OFFSETS]),
            int(pad),
            None if targets is None else mapped(encoded[targets]),
            None if counted is None else mapped(encoded[counted]),
        )

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Every row's class."""
        return None if self.targets is None else self.targets.cpu().numpy()

    def __len__(self) -> int:
        return len(self.lengths)

    def widths(self, rows: Rows) -> Rows:
        """Number of tokens of each row."""
        return np.asarray(self.lengths[rows])

    def to(self, device: torch.device, dtype: torch.dtype) -> TokenTable:
        """On a device; the precision is that of embeddings, so nothing changes."""
        return TokenTable(
            {name: flat.to(device) for name, flat in self.tokens.items()},
            self.offsets.to(device),
            self.lengths,
            self.pad,
            None if self.targets is None else self.targets.to(device),
            None if self.counted is None else self.counted.to(device),
        )

    def gather(self, rows: Tensor) -> Batch:
        """The rows padded on the right to their longest, with their attention mask."""
        starts = self.offsets.index_select(0, rows)
        lengths = self.offsets.index_select(0, rows + 1) - starts
        position = torch.arange(int(lengths.max()), device=rows.device)
        mask = position < lengths[:, None]
        place = (starts[:, None] + position).clamp_max(len(self.tokens["input_ids"]) - 1)
        inputs = {
            name: torch.where(mask, flat[place].long(), self.pad if name == "input_ids" else 0)
            for name, flat in self.tokens.items()
        }
        inputs["attention_mask"] = mask.long()
        if self.targets is not None:
            return Batch(inputs, self.targets.index_select(0, rows))
        assert self.counted is not None
        loss = mask & (position >= self.counted.index_select(0, rows)[:, None])
        return Batch(inputs, torch.where(loss, inputs["input_ids"], IGNORED))


def tokenise(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    encode: Callable[[Columns, list[int]], Columns],
    settings: tuple[Any, ...],
) -> Arrays:
    """Encode rows, once for equal rows, tokenizer and settings.

    Args:
        rows: of a split.
        tokenizer: what `encode` uses.
        encode: columns of a batch of rows, and their numbers, to `input_ids`, perhaps
            `token_type_ids`, and integer columns; may give more or fewer rows than it took.
        settings: everything else that decides what `encode` gives.

    Returns:
        The columns as arrays mapped from disk: those of tokens flat, with `offsets` of their rows.
    """
    key = (CACHE_VERSION, identity(rows), tokenizer_state(tokenizer), settings)
    return made_once("tokens", key, lambda made, beside: _encode(made, beside, rows, encode))


def tokenizer_state(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """Everything about a tokenizer that decides its tokens, for a hash."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    files = [Path(tokenizer.name_or_path, name) for name in tokenizer.vocab_files_names.values()]
    given = {
        key: repr(value)
        for key, value in tokenizer.init_kwargs.items()
        if "path" not in key and "file" not in key
    }
    return (
        type(tokenizer).__name__,
        _rules(inner.to_str()) if inner is not None else sorted(tokenizer.get_vocab().items()),
        stamps(files) if inner is None else [],
        tokenizer.special_tokens_map,
        tokenizer.truncation_side,
        sorted(given.items()),
    )


def _rules(text: str) -> str:
    """A fast tokenizer's JSON without what its last call left in it."""
    rules = json.loads(text)
    return json.dumps({k: v for k, v in rules.items() if k not in ("truncation", "padding")})


def _encode(
    made: Path, beside: Path, rows: Dataset, encode: Callable[[Columns, list[int]], Columns]
) -> None:
    kinds = {
        name: Sequence(Value("int32")) if name in TOKEN_COLUMNS else Value("int64")
        for name in encode(rows[:1], [0])
    }
    with counting("rows to tokens", len(rows)) as done:

        def counted(columns: Columns, numbers: list[int]) -> Columns:
            made = encode(columns, numbers)
            done(len(numbers))
            return made

        encoded = rows.map(
            counted,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=Features(kinds),
            cache_file_name=str(beside / "encoded.arrow"),
            new_fingerprint=beside.name,  # else of `counted`, which holds a bar
        )
    for name in kinds:
        column = encoded.data.column(name)
        if name not in TOKEN_COLUMNS:
            np.save(made / f"{name}.npy", column.to_numpy().astype(np.int64))
            continue
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
        offsets = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)
        np.save(made / f"{OFFSETS}.npy", offsets)
        _write_flat(made / f"{name}.npy", column.chunks, int(offsets[-1]))


def _write_flat(path: Path, chunks: list[Any], total: int) -> None:
    if not total:
        np.save(path, np.zeros(0, dtype=np.int32))
        return
    flat = np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=(total,))
    start = 0
    for chunk in chunks:
        values = chunk.flatten().to_numpy()
        flat[start : start + len(values)] = values
        start += len(values)
    flat.flush()
