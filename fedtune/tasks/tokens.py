"""Token sequences of any length, kept flat and memory-mapped, padded batch by batch.

`datasets` tokenises once and keeps the result in its cache as Arrow files, which are mapped into
memory and shared by all processes of a machine.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, Features, Sequence, Value
from datasets.fingerprint import Hasher
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fedtune.tasks.base import Batch, Rows

IGNORED = -100
CACHE_VERSION = 1
WRITTEN_AT_ONCE = 1 << 20
TOKEN_COLUMNS = ("input_ids", "token_type_ids")
Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class TokenTable:
    """A split of token sequences.

    Attributes:
        tokens: what the model takes for each token (`input_ids`, perhaps `token_type_ids`), flat.
        offsets: where each row begins, int64, (rows + 1,).
        pad: the id that fills `input_ids` up; other inputs are filled with 0.
        targets: (rows,) classes; or None: the tokens themselves, from `counted` on.
        counted: position of each row's first token with a loss, int64, (rows,).
    """

    tokens: dict[str, Tensor]
    offsets: Tensor
    pad: int
    targets: Tensor | None = None
    counted: Tensor | None = None

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Every row's class."""
        return None if self.targets is None else self.targets.cpu().numpy()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def widths(self, rows: Rows) -> Rows:
        """Number of tokens of each row."""
        offsets = self.offsets.cpu().numpy()
        return np.asarray(offsets[rows + 1] - offsets[rows])

    def to(self, device: torch.device, dtype: torch.dtype) -> TokenTable:
        """On a device; the precision is that of embeddings, so nothing changes."""
        return TokenTable(
            {name: flat.to(device) for name, flat in self.tokens.items()},
            self.offsets.to(device),
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
) -> Dataset:
    """Encode rows, once for equal rows, tokenizer and settings.

    Args:
        rows: of a split.
        tokenizer: what `encode` uses.
        encode: columns of a batch of rows, and their numbers, to `input_ids`, perhaps
            `token_type_ids`, and integer columns; may give more or fewer rows than it took.
        settings: everything else that decides what `encode` gives.
    """
    vocabulary = getattr(tokenizer, "backend_tokenizer", None)
    state = vocabulary.to_str() if vocabulary is not None else sorted(tokenizer.get_vocab().items())
    key = (CACHE_VERSION, rows._fingerprint, state, tokenizer.special_tokens_map, settings)
    first = encode(rows[:1], [0])
    features = {
        name: Sequence(Value("int32")) if name in TOKEN_COLUMNS else Value("int64")
        for name in first
    }
    fingerprint = Hasher.hash(key)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "fedtune-tokens"
    folder.mkdir(parents=True, exist_ok=True)
    return rows.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=Features(features),
        new_fingerprint=fingerprint,
        cache_file_name=str(folder / f"{fingerprint}.arrow"),
        writer_batch_size=WRITTEN_AT_ONCE,
    )


def flat_tokens(encoded: Dataset) -> tuple[dict[str, Tensor], Tensor]:
    """The token columns of an encoded split, flat, and the offsets of its rows."""
    names = [n for n, feature in encoded.features.items() if not isinstance(feature, Value)]
    flat = {}
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    for name in names:
        column = _one_array(encoded, name)
        starts = column.offsets.to_numpy().astype(np.int64)
        offsets = starts - starts[0]
        values = column.values.slice(starts[0], offsets[-1])
        flat[name] = _mapped(values.to_numpy())
    return flat, torch.from_numpy(offsets)


def numbers(encoded: Dataset, name: str) -> Rows:
    """An integer column of an encoded split."""
    return np.asarray(encoded.data.column(name).to_numpy(), dtype=np.int64)


def _one_array(encoded: Dataset, name: str) -> Any:
    chunks = encoded.data.column(name)
    return chunks.chunk(0) if chunks.num_chunks == 1 else pa.concat_arrays(chunks.chunks)


def _mapped(values: NDArray[np.int32]) -> Tensor:
    """A tensor over an array that is mapped read-only; nothing ever writes to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(values)
