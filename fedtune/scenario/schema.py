"""The scenario: everything that decides a run's result, one section a model.

Every key has a default except `task.kind`'s companions that only the user can know; unknown keys
and wrong types are refused. `Scenario.model_json_schema()` is what `fedtune schema` prints.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedtune.scenario.clients import ClientsSection
from fedtune.scenario.compare import CompareSection
from fedtune.scenario.deploy import DeploySection
from fedtune.scenario.names import ADAPTERS_GROUP, RULES_GROUP, Named
from fedtune.scenario.privacy import PrivacySection
from fedtune.scenario.section import Beta, OpenSection, Section, Share
from fedtune.scenario.task import CONV, TaskSection
from fedtune.scenario.trouble import AttackSection, FaultsSection

INCOMPATIBLE = "incompatible"
KIND = Named(ADAPTERS_GROUP, ("auto", "lora", "ffa", "lora-sb", "rank", "none"))
RULE = Named(
    RULES_GROUP,
    (
        "auto", "mean", "median", "trimmed-mean", "krum", "multi-krum", "geometric-median",
        "bulyan", "meamed", "phocas", "centered-clipping", "mda", "dnc", "fltrust", "flag",
        "normalized-mean", "vote",
    ),
)  # fmt: skip
KindName = Annotated[str, KIND]
RuleName = Annotated[str, RULE]


class AdapterSection(OpenSection):
    """The adapter, by the fields of `peft.LoraConfig`; those not here are refused by name."""

    kind: KindName = Field(
        "auto",
        description="auto: the strategy's own; lora: A and B; ffa: B; lora-sb: an R between frozen "
        "B and A; rank: an order of fixed edges of B; none: only the head is trained",
    )
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0)] = Field(
        16.0, description="s = alpha / rank scales B A; no use for lora-sb, where s = 1"
    )
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: str | list[str] = Field(
        "auto", description="module names or a pattern, as LoraConfig.target_modules takes them"
    )
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] | None = None
    use_rslora: bool = False
    init: Literal["auto", "client-sketch", "client-dense", "public", "random", "pooled"] = Field(
        "auto",
        description="where B, A and the first R of lora-sb come from: a gradient of the base that "
        "clients send as two random projections, or whole, or that the server takes on "
        "task.server_examples; nothing; or the clients' pooled data (simulation only). auto: "
        "client-sketch, under privacy random",
    )
    init_examples: Annotated[int, Field(ge=1)] = Field(
        64, description="examples of a client for that gradient"
    )
    init_step: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="size of the step that the first R makes; auto: the learning rate of the first "
        "step if 2 % of all a client's steps were a warm-up",
    )
    keep: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        0.5, description="share of the edges that count, of kind rank"
    )
    constant: Annotated[float, Field(gt=0)] = Field(
        0.1, description="size of an edge, of kind rank"
    )
    form: Literal["antithetic", "signed", "mask"] = Field(
        "antithetic",
        description="of kind rank: two edges +c and -c an entry of B, or one whose sign is voted "
        "on too; mask: the random weights of builtin:conv themselves",
    )
    by_magnitude: bool = Field(
        False,
        description="of kind rank: the edges of highest |score| count, as in the authors' program, "
        "and not those of highest score",
    )


class EarlyStopping(Section):
    """Stop when the watched loss has not fallen by `min_delta` for `patience` looks."""

    patience: Annotated[int, Field(ge=1)] = 3
    min_delta: Annotated[float, Field(ge=0)] = 0.0


class LocalSection(Section):
    """A client's training in one round."""

    steps: Annotated[int, Field(ge=1)] | None = Field(None, description="optimiser steps")
    epochs: Annotated[int, Field(ge=1)] | None = Field(None, description="passes over its data")
    batch_size: Annotated[int, Field(ge=1)] = 16
    accumulation: Annotated[int, Field(ge=1)] = Field(
        1, description="batches whose gradients make one optimiser step"
    )
    group_by_length: bool = Field(
        False,
        description="make batches of examples of like length, and let clients meet short and "
        "long ones in step",
    )
    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    client_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0,
        description="b in m = b m + (1 - b) update, which a client keeps over rounds and sends "
        "instead of its update",
    )
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = Field([0.9, 0.999])
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest L2 norm of a client's gradient over all it trains"
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="of the learning rate, within a round"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(0, description="warm-up steps of a round")
    round_schedule: Literal["constant", "linear", "cosine", "exponential"] = Field(
        "constant", description="of the learning rate, over the rounds"
    )
    round_decay: Share = Field(0.99, description="the factor a round of `exponential`")
    early_stopping: EarlyStopping | None = Field(
        None, description="a client watches its own training loss, epoch by epoch"
    )

    @model_validator(mode="after")
    def _check(self) -> LocalSection:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.momentum and self.optimizer != "sgd":
            raise _incompatible(f"momentum is for optimizer 'sgd', not '{self.optimizer}'")
        if self.steps is None and self.epochs is None:
            self.epochs = 1
        return self


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
        "auto", description="CPU threads of torch"
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
            raise _incompatible(
                f"clients.participation.value: has {len(value)} probabilities for "
                f"clients.count = {self.clients.count}"
            )
        for key in ("gradient_checkpointing", "compile"):
            if getattr(self.engine, key) and self.privacy.mechanism == "example":
                raise _incompatible(
                    f"engine.{key} = true: not where gradients of single examples are made "
                    "(privacy.mechanism = 'example')"
                )
        if self.adapter.form == "mask" and self.task.base != CONV:
            raise _incompatible(f"adapter.form = 'mask': is for task.base = {CONV!r}")
        if self.task.base == CONV and self.adapter.form != "mask" and self.adapter.kind != "none":
            raise _incompatible(
                f"task.base = {CONV!r}: has nothing to adapt; allowed: adapter.form = 'mask', a "
                "vote on its weights, or adapter.kind = 'none', which trains them"
            )
        if self.task.base == CONV and self.task.head != "shared":
            raise _incompatible(f"task.head: all layers of {CONV!r} are voted on, or trained")
        if self.adapter.kind == "none":
            if self.task.head == "frozen":
                raise _incompatible('adapter.kind = "none": task.head = "frozen" trains nothing')
            if self.task.kind == "causal-lm":
                raise _incompatible('adapter.kind = "none": causal-lm has no head to train')
            if self.task.head == "local":
                raise _incompatible('adapter.kind = "none": task.head = "local" sends nothing')
        return self


def _incompatible(text: str) -> PydanticCustomError:
    return PydanticCustomError(INCOMPATIBLE, "{reason}", {"reason": text})
