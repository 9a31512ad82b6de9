"""`[attack]` and `[faults]`: malicious clients, unreliable clients and links."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.scenario.section import OpenSection, Probability, Section


class AttackSection(OpenSection):
    """Malicious clients; the other keys are the parameters of the attack."""

    kind: Literal[
        "none", "label-flip", "cat-map", "backdoor", "sign-flip", "gaussian", "uniform", "ipm",
        "alie", "min-max", "min-sum", "mimic", "scaling", "non-finite", "adaptive",
        "reverse-ranks", "vem",
    ] = "none"  # fmt: skip
    fraction: Probability = Field(
        0.2, description="share of all clients that is malicious, drawn once a seed"
    )
    knowledge: Literal["all", "own"] = Field(
        "all", description="all: of every honest update of the round; own: of its own clients only"
    )


class FaultsSection(Section):
    """What goes wrong with clients and links, drawn from (seed, round, client)."""

    on_error: Literal["raise", "skip"] = Field(
        "raise", description="whether a client that raises ends the run, or is counted"
    )
    dropout: Probability = Field(0.0, description="chance that a reply never arrives")
    trace: str | None = Field(
        None, description="a csv with columns round and client: replies that never arrive"
    )
    late: Probability = Field(0.0, description="chance that it arrives a round later")
    duplicate: Probability = Field(0.0, description="chance that it arrives twice")
    corrupt: Probability = Field(
        0.0, description="chance of a flipped bit or a cut, found by its checksum"
    )
    deadline: Annotated[float, Field(gt=0)] | None = Field(
        None, description="slower replies are lost; 1 is the median client's time"
    )
    spread: Annotated[float, Field(ge=0)] = Field(
        0.5, description="of clients' times: standard deviation of their logarithm"
    )
    noise_down: Annotated[float, Field(ge=0)] = Field(
        0.0, description="standard deviation of noise on what clients receive"
    )
    noise_up: Annotated[float, Field(ge=0)] = Field(
        0.0, description="standard deviation of noise on what they send"
    )
    snr_down: float | None = Field(None, description="signal-to-noise ratio in dB instead")
    snr_up: float | None = Field(None, description="signal-to-noise ratio in dB instead")

    @model_validator(mode="after")
    def _check(self) -> FaultsSection:
        for way in ("down", "up"):
            noise, ratio = getattr(self, f"noise_{way}"), getattr(self, f"snr_{way}")
            if noise and ratio is not None:
                raise ValueError(f"give noise_{way} or snr_{way}, not both")
        return self

    @property
    def any(self) -> bool:
        """Whether anything goes wrong on the way."""
        return self != FaultsSection(on_error=self.on_error, spread=self.spread)
