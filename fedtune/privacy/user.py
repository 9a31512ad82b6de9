"""User-level DP at a trusted server: clipped updates, a fixed denominator, noise once.

DP-FedAvg (McMahan et al., ICLR 2018): with clients drawn at a known rate, each update is scaled to
norm C at most, all count alike, and their sum over the *expected* number of clients gets noise of
standard deviation z·C over that number. C may follow a quantile of the norms (Andrew et al.,
NeurIPS 2021).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedtune.privacy.example import clip_factors
from fedtune.privacy.streams import Streams, normal
from fedtune.scenario.privacy import AdaptiveClip

COUNT_SHARE = 20.0


class UserMechanism:
    """Turns the updates of a round into one update that hides who sent any of them.

    Args:
        clip: C of the first round.
        multiplier: z that the accountant is told.
        expected: q·N, clients of a round on average; what sums are divided by.
        streams: where the noise comes from.
        adaptive: how C follows the updates' norms, if it does; part of z is then for the noise on
            how many were not clipped.

    Raises:
        ValueError: if z leaves nothing for the updates.
    """

    def __init__(
        self,
        clip: float,
        multiplier: float,
        expected: float,
        streams: Streams,
        adaptive: AdaptiveClip | None = None,
    ) -> None:
        self.clip, self.multiplier, self.expected = clip, multiplier, expected
        self.streams, self.adaptive = streams, adaptive
        self.count_noise = 0.0
        if adaptive is not None and multiplier > 0.0:
            given = adaptive.count_noise
            self.count_noise = expected / COUNT_SHARE if given == "auto" else float(given)
        self.update_multiplier = split_multiplier(multiplier, self.count_noise)

    def __call__(self, updates: Tensor, server_round: int) -> Tensor:
        """The round's update, (d,).

        Args:
            updates: (n, d), as they came; n may be 0, and there is noise all the same.
        """
        norms = torch.linalg.vector_norm(updates, dim=1)
        total = clip_factors(norms, self.clip) @ updates
        stream = self.streams.stream("user", server_round)
        if self.update_multiplier > 0.0:
            noise = normal(stream, total.numel(), total)
            total = total + noise.mul_(self.update_multiplier * self.clip)
        if self.adaptive is not None:
            self._follow(norms, float(stream.standard_normal()))
        return total / self.expected

    def _follow(self, norms: Tensor, drawn: float) -> None:
        """C ← C·exp(-η(b̃ - γ)), b̃ the noisy share of updates that were not clipped."""
        assert self.adaptive is not None
        halves = float((norms <= self.clip).double().sum()) - len(norms) / 2.0
        share = 0.5 + (halves + self.count_noise * drawn) / self.expected
        self.clip *= math.exp(-self.adaptive.rate * (share - self.adaptive.quantile))

    def state_dict(self) -> dict[str, Tensor]:
        """C."""
        return {"clip": torch.tensor(self.clip, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take it back."""
        self.clip = float(state["clip"])


def split_multiplier(multiplier: float, count_noise: float) -> float:
    """z of the updates such that they and the count of unclipped ones cost z together.

    The count is taken of ±1/2, so that noise σ_b on it is a multiplier of 2·σ_b:
    z_Δ = (z⁻² - (2·σ_b)⁻²)^(-1/2).

    Raises:
        ValueError: if the count alone costs as much.
    """
    if count_noise == 0.0 or multiplier == 0.0:
        return multiplier
    rest = multiplier**-2 - (2.0 * count_noise) ** -2
    if rest <= 0.0:
        raise ValueError(
            f"noise {count_noise:g} on the count of clipped updates is too little for a noise "
            f"multiplier of {multiplier:.3g}; it has to be more than {multiplier / 2:.3g}"
        )
    return float(rest**-0.5)
