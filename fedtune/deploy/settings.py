"""A client's own settings: its data, its device, and what it lets a server ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.scenario.loading import read_toml, validate_as
from fedtune.scenario.section import Section

Count = Annotated[int, Field(ge=1)]


class DataSettings(Section):
    """The examples of this client: a file of its own, or a part of the scenario's data."""

    file: str | None = Field(
        None, description="csv, tsv, json, jsonl, parquet, txt, or a data set saved by datasets"
    )
    dealt: bool = Field(
        False, description="for trials: the part that the scenario deals to this client of its data"
    )
    image: str | None = Field(None, description="column of the images, if not the scenario's name")
    text: str | None = Field(None, description="column of the text")
    text_pair: str | None = Field(None, description="column of the second text of a pair")
    label: str | None = Field(None, description="column of the labels")
    instruction: str | None = Field(None, description="column of the prompts")
    response: str | None = Field(None, description="column of the responses")
    labels: list[str] | None = Field(
        None, description="names of the classes; a scenario with others is refused"
    )

    @model_validator(mode="after")
    def _check(self) -> DataSettings:
        if (self.file is None) != self.dealt:
            raise ValueError("give data.file, or data.dealt = true for trials; one of the two")
        return self


class AcceptsSettings(Section):
    """What a server may ask of this client; more is refused, and nothing is trained."""

    base: str | None = Field(
        None, description="digest of the base model (`fedtune deploy digest BASE`); None: any"
    )
    adapters: list[str] | None = Field(None, description="adapter kinds; None: all")
    steps: Count = Field(
        10_000, description="batches in a round: optimiser steps times batches accumulated for each"
    )
    rank: Count = Field(1024, description="of the adapter, in any layer")
    message_bytes: Count = Field(1 << 30, description="largest message from a server")


class PrivacySettings(Section):
    """The privacy that this client insists on; a scenario that gives less is refused."""

    mechanism: Literal["none", "example"] = Field(
        "none", description="example: trains with example-level differential privacy only"
    )
    epsilon: Annotated[float, Field(gt=0)] | None = Field(
        None, description="spent on this data in all, over all runs of all servers"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        1e-5, description="that epsilon is meant at; a scenario may ask for a smaller one"
    )
    public_counts: bool = Field(
        False, description="whether a scenario may have it tell how many examples it has"
    )

    @model_validator(mode="after")
    def _check(self) -> PrivacySettings:
        if (self.mechanism == "example") != (self.epsilon is not None):
            raise ValueError("privacy.mechanism = 'example' and privacy.epsilon go together")
        return self


class ClientSettings(Section):
    """All of it, as the file of `fedtune deploy trainer FILE` holds it."""

    client: Annotated[int, Field(ge=0)] = Field(description="id in the federation")
    socket: str = Field("trainer.sock", description="where the ClientApp finds the trainer")
    store: str = Field("store", description="folder of what the client keeps")
    ledger: str | None = Field(
        None,
        description="file of what was spent on its data; one for all trainers of the same data, "
        "whatever their servers; by default in the store",
    )
    base: str | None = Field(
        None, description="the client's own copy of the base; None: where the scenario says"
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Count | Literal["auto"] = "auto"
    idle: Annotated[float, Field(gt=0)] = Field(
        600.0, description="seconds without a message until model and accelerator are freed"
    )
    data: DataSettings
    accepts: AcceptsSettings = AcceptsSettings()
    privacy: PrivacySettings = PrivacySettings()

    def placed(self, folder: Path) -> ClientSettings:
        """The same with paths that are relative to a folder made absolute."""
        found = self.model_copy(deep=True)
        own = ((found, "socket"), (found, "store"), (found, "ledger"), (found.data, "file"))
        for holder, name in own:
            value = getattr(holder, name)
            if value is not None:
                setattr(holder, name, str(folder / Path(value).expanduser()))
        if found.base is not None and (folder / Path(found.base).expanduser()).is_dir():
            found.base = str(folder / Path(found.base).expanduser())
        return found


def load_settings(path: Path) -> ClientSettings:
    """The settings of a file; paths in it are relative to its folder.

    Raises:
        ScenarioError: naming the key, what was given and what is allowed.
    """
    found = validate_as(ClientSettings, read_toml(path, "client settings"))
    return found.placed(path.resolve().parent)
