"""`[task]`: what is learned, from which model and data."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.errors import quoted
from fedtune.scenario.section import Section

LINEAR, SQUARES = "builtin:linear", "builtin:least-squares"
CONV = "builtin:conv"
CLIENTS = "clients"


class TaskSection(Section):
    """What is learned, from which model and data."""

    kind: Literal["image-classification", "text-classification", "causal-lm", "least-squares"] = (
        "image-classification"
    )
    base: str = Field("builtin:vit-letters", description="builtin:, a local folder or a hub name")
    data: str = Field(
        "builtin:digits",
        description="builtin:, a file (csv, tsv, json, jsonl, parquet, txt), a folder of train and "
        "test files or one saved by datasets, or a hub name; clients: each brings its own, in a "
        "deployment",
    )
    test: str | None = Field(
        None,
        description="file of the test split, where data is a file; where data is the clients', a "
        "file that the server evaluates on: without it, it needs no weights of the base",
    )
    subset: str | None = Field(None, description="configuration of a hub data set")
    train_split: str = Field("train", description="split that clients hold")
    test_split: str = Field("test", description="split of the central evaluation")
    train_examples: Annotated[int, Field(ge=2)] | None = Field(
        None, description="take that many training rows, drawn once and always the same"
    )
    test_examples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="take that many test rows, drawn once and always the same"
    )
    server_examples: Annotated[int, Field(ge=0)] = Field(
        0, description="training rows that the server holds instead of clients, for rule fltrust"
    )
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] | None = Field(
        None,
        description="each client holds out that share of its training rows, and these are "
        "evaluated instead of the test rows; for choosing settings",
    )
    columns: list[str] | None = Field(None, description="names, for csv and tsv without a header")
    pattern: str | None = Field(
        None,
        description="regular expression: each match in a txt file is a row, of its named groups",
    )
    image: str = Field("image", description="column of the images")
    text: str = Field("text", description="column of the text")
    text_pair: str | None = Field(None, description="column of the second text of a pair")
    label: str = Field("label", description="column of the labels")
    labels: Annotated[list[str], Field(min_length=2)] | None = Field(
        None,
        description="names of the classes in their order, but for a base whose own head is for "
        "them and orders them; by default those in the data",
    )
    label_separator: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="rows whose label holds this have several; they are left out"
    )
    max_length: Annotated[int, Field(ge=2)] | None = Field(
        None, description="most tokens of an example; by default 128, or what the base takes"
    )
    instruction: str | None = Field(None, description="column of the prompts (causal-lm)")
    response: str | None = Field(
        None, description="column of the responses; the loss is on these only (causal-lm)"
    )
    template: str | None = Field(
        None, description='the prompt, e.g. "Question: {question}\nAnswer:" (causal-lm)'
    )
    extract: str | None = Field(
        None,
        description="regular expression whose first group is the answer in a response; adds "
        "exact_match of greedy generations to the evaluation (causal-lm)",
    )
    extract_examples: Annotated[int, Field(ge=1)] = Field(
        100, description="test rows that are generated for exact_match"
    )
    extract_tokens: Annotated[int, Field(ge=1)] = Field(
        64, description="most tokens generated for exact_match"
    )
    features: Annotated[int, Field(ge=1)] = Field(128, description="unknowns of least-squares")
    noise: Annotated[float, Field(ge=0.0)] = Field(
        0.1, description="standard deviation in the observations of least-squares"
    )
    head: Literal["shared", "frozen", "local"] = Field(
        "shared",
        description="shared: trained and averaged; frozen: the same random one for all; "
        "local: kept by each client and evaluated on its own held-out part",
    )

    @model_validator(mode="after")
    def _check(self) -> TaskSection:
        if self.data == CLIENTS:
            self._check_without_data()
        self._check_of_kind()
        if self.kind == "least-squares":
            for key, allowed in (("base", LINEAR), ("data", SQUARES), ("head", "shared")):
                if getattr(self, key) != allowed:
                    raise ValueError(f"task.{key}: least-squares allows {allowed!r} only")
            if self.validation is not None:
                raise ValueError("task.validation: least-squares is evaluated on its solution only")
        if self.kind != "causal-lm":
            for key in ("instruction", "response", "template", "extract"):
                if getattr(self, key) is not None:
                    raise ValueError(f"task.{key} is for kind 'causal-lm', not '{self.kind}'")
            return self
        if self.head != "shared":
            raise ValueError("task.head: causal-lm has no task head of its own; leave it out")
        if self.instruction and self.template:
            raise ValueError("give task.instruction or task.template, not both")
        prompt = self.instruction or self.template
        if bool(prompt) != bool(self.response):
            missing = "task.response" if prompt else "task.instruction (or task.template)"
            raise ValueError(f"instruction and response go together; {missing} is missing")
        if self.extract and not self.response:
            raise ValueError("task.extract needs task.instruction and task.response")
        return self

    def _check_of_kind(self) -> None:
        """What is of no use to this kind of task, or to data that come with the package."""
        for key in ("text_pair", "label_separator"):
            if getattr(self, key) is not None and self.kind != "text-classification":
                raise ValueError(f"task.{key} is for kind 'text-classification', not '{self.kind}'")
        if self.labels is not None:
            self._check_labels(self.labels)
        if self.max_length is not None and self.kind not in ("text-classification", "causal-lm"):
            raise ValueError(f"task.max_length: {self.kind} has no tokens")
        for key in ("test", "subset"):
            if getattr(self, key) is not None and self.data.startswith("builtin:"):
                raise ValueError(f"task.{key}: {self.data} has a test split and no subsets")

    def _check_labels(self, labels: list[str]) -> None:
        if not self.kind.endswith("-classification"):
            raise ValueError(f"task.labels: {self.kind} has no classes")
        if "" in map(str.strip, labels):
            raise ValueError("task.labels: holds an empty name; every class has one")
        if twice := [name for name, count in Counter(labels).items() if count > 1]:
            raise ValueError(f"task.labels: holds {quoted(twice[0])} twice; name every class once")

    def _check_without_data(self) -> None:
        """What must be said where the server has no training data."""
        if self.kind.endswith("classification") and self.labels is None:
            raise ValueError("data = 'clients' needs task.labels, the names of the classes")
        for key in ("validation", "train_examples", "subset"):
            if getattr(self, key) is not None:
                raise ValueError(f"task.{key} is of the server's own data; data is 'clients'")
        if self.server_examples:
            raise ValueError("task.server_examples: the server has no data; data is 'clients'")
