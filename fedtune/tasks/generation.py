"""Exact match: what a model says greedily, an extractor's answer in it, against the reference."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

GENERATED_TOGETHER = 32


@dataclass(frozen=True)
class ExactMatch:
    """Share of prompts whose extracted answer equals that of the reference.

    Attributes:
        tokenizer: of the base.
        pattern: its first group is the answer; the first match in a generation counts.
        pairs: tokens of each prompt, and the answer of its reference.
        tokens: most tokens generated.
    """

    tokenizer: PreTrainedTokenizerBase
    pattern: re.Pattern[str]
    pairs: list[tuple[list[int], str]]
    tokens: int

    @property
    def parts(self) -> int:
        """How many batches of prompts there are."""
        return -(-len(self.pairs) // GENERATED_TOGETHER)

    def first(self) -> ExactMatch:
        """The first batch of prompts alone."""
        return replace(self, pairs=self.pairs[:GENERATED_TOGETHER])

    def __call__(self, model: nn.Module, device: torch.device) -> float:
        """The share for a model with its adapter in place."""
        ordered = sorted(self.pairs, key=lambda pair: len(pair[0]))
        right = 0
        for start in range(0, len(ordered), GENERATED_TOGETHER):
            part = ordered[start : start + GENERATED_TOGETHER]
            said = self._generate(model, [ids for ids, _ in part], device)
            wanted = [text for _, text in part]
            right += sum(answer(self.pattern, a) == b for a, b in zip(said, wanted, strict=True))
        return right / len(self.pairs)

    def _generate(
        self, model: nn.Module, prompts: list[list[int]], device: torch.device
    ) -> list[str]:
        """Greedy continuations; prompts are padded on the left, so that all end together."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        config = GenerationConfig(
            max_new_tokens=self.tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=self.tokenizer.eos_token_id,
        )
        with torch.no_grad():
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
        texts: list[str] = self.tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
        return texts


def answer(pattern: re.Pattern[str], text: str) -> str | None:
    """The first group of a pattern's first match, or None without one."""
    found = pattern.search(text)
    return found[1].strip() if found and found[1] is not None else None
