"""The scenario: everything that decides a run's result, one section a model.

Every key has a default except `task.kind`'s companions that only the user can know; unknown keys
and wrong types are refused. `Scenario.model_json_schema()` is what `fedtune schema` prints.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedtune.scenario.adapter import AdapterSection
from fedtune.scenario.clients import ClientsSection
from fedtune.scenario.compare import CompareSection
from fedtune.scenario.deploy import DeploySection
from fedtune.scenario.local import EarlyStopping, LocalSection
from fedtune.scenario.names import RULES_GROUP, Named
from fedtune.scenario.privacy import PrivacySection
from fedtune.scenario.section import OpenSection, Section, incompatible
from fedtune.scenario.task import CONV, TaskSection
from fedtune.scenario.trouble import AttackSection, FaultsSection

RULE = Named(
    RULES_GROUP,
    (
        "auto", "mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median",
        "bulyan", "meamed", "phocas", "centered-clipping", "mda", "dnc", "fltrust", "flag",
        "normalized-mean", "vote",
    ),
)  # fmt: skip
RuleName = Annotated[str, RULE]


ServerOptimizerName = Literal["none", "momentum", "adam", "yogi", "adagrad"]
PreName = Literal["nnm", "bucketing", "clip", "arc"]


class RuleSection(OpenSection):
    """An aggregation rule with parameters of its own."""

    name: RuleName


class PreSection(OpenSection):
    """A pre-aggregator with parameters of its own."""

    name: PreName


class ServerOptimizerSection(OpenSection):
    """A server optimiser with parameters of its own."""

    name: ServerOptimizerName


class StrategySection(OpenSection):
    """The server's method; the other keys are the parameters of the strategy's class."""

    name: str = "fedavg"
    rule: RuleName | RuleSection = Field(
        "auto", description='how updates become one: a name, or { name = "krum", f = 2 }'
    )
    pre: list[PreName | PreSection] = Field(
        [], description="what is done to updates before the rule, in this order"
    )
    server_optimizer: ServerOptimizerName | ServerOptimizerSection = Field(
        "none", description="what the server makes of the aggregated update"
    )
    f: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="malicious clients of a round that rule and pre are prepared for; auto: "
        "attack.fraction of a round's clients, also where there is no attack",
    )


class EngineSection(Section):
    """How the work is done; of a result it decides rounding only."""

    kind: Literal["cohort", "sequential", "flower"] = Field(
        "cohort",
        description="cohort: many clients in one pass; sequential: one after another; flower: "
        "Flower's Simulation Runtime, a process for each of `workers`",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    cohort_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="the most clients trained together; never more than fit"
    )
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        "auto",
        description="CPU threads of torch; auto: as many as a step of this job gains by, of those "
        "that are free at the start",
    )
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None = Field(
        None,
        description="Ray processes that share the cohorts; auto: one a GPU, or one for so many "
        "cores as `threads` says (4); by default none. Of `flower`: by default one a core",
    )
    ray_address: str | None = Field(
        None, description="of a Ray cluster that is up, for `workers`; by default this machine"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in the backward pass: less memory, slower"
    )
    compile: bool = Field(
        False, description="torch.compile the model: half a minute at first; on a CPU hardly faster"
    )
    deterministic: bool = Field(False, description="bit-for-bit results on CUDA, slower")


class RunSection(Section):
    """Length, seed and bookkeeping."""

    rounds: Annotated[int, Field(ge=1)] = 20
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    eval_every: Annotated[int, Field(ge=1)] = 1
    checkpoint_every: Annotated[int, Field(ge=1)] = 1
    trackers: list[Literal["mlflow", "wandb"]] = Field(
        [], description="where the run is logged besides TensorBoard"
    )
    early_stopping: EarlyStopping | None = Field(
        None, description="end the run on the evaluation loss; a look is an evaluation"
    )


class Scenario(Section):
    """One run of one method, in full."""

    task: TaskSection = TaskSection()
    clients: ClientsSection = ClientsSection()
    adapter: AdapterSection = AdapterSection()
    local: LocalSection = LocalSection()
    strategy: StrategySection = StrategySection()
    privacy: PrivacySection = PrivacySection()
    attack: AttackSection = AttackSection()
    faults: FaultsSection = FaultsSection()
    engine: EngineSection = EngineSection()
    deploy: DeploySection = DeploySection()
    run: RunSection = RunSection()
    compare: CompareSection | None = Field(
        None, description="what `fedtune compare` varies; a run takes no notice of it"
    )

    @model_validator(mode="after")
    def _check(self) -> Scenario:
        value = self.clients.participation.value
        if isinstance(value, list) and len(value) != self.clients.count:
            raise incompatible(
                f"clients.participation.value: has {len(value)} probabilities for "
                f"clients.count = {self.clients.count}"
            )
        for key in ("gradient_checkpointing", "compile"):
            if getattr(self.engine, key) and self.privacy.mechanism == "example":
                raise incompatible(
                    f"engine.{key} = true: not where gradients of single examples are made "
                    "(privacy.mechanism = 'example')"
                )
        if self.adapter.form == "mask" and self.task.base != CONV:
            raise incompatible(f"adapter.form = 'mask': is for task.base = {CONV!r}")
        if self.task.base == CONV and self.adapter.form != "mask" and self.adapter.kind != "none":
            raise incompatible(
                f"task.base = {CONV!r}: has nothing to adapt; allowed: adapter.form = 'mask', a "
                "vote on its weights, or adapter.kind = 'none', which trains them"
            )
        if self.task.base == CONV and self.task.head != "shared":
            raise incompatible(f"task.head: all layers of {CONV!r} are voted on, or trained")
        if self.adapter.kind == "none" and not self.adapter.modules_to_save:
            if self.task.head == "frozen":
                raise incompatible('adapter.kind = "none": task.head = "frozen" trains nothing')
            if self.task.kind == "causal-lm":
                raise incompatible('adapter.kind = "none": causal-lm has no head to train')
            if self.task.head == "local":
                raise incompatible('adapter.kind = "none": task.head = "local" sends nothing')
        return self
