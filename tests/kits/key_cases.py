"""All cases of the schema's keys, and the keys that have none, each with its reason."""

from __future__ import annotations

from tests.kits.cases_compare import COMPARE
from tests.kits.cases_parts import PARTS
from tests.kits.cases_strategy import STRATEGY
from tests.kits.cases_task import TASK
from tests.kits.cases_training import ADAPTER, CLIENTS, LOCAL
from tests.kits.cases_trouble import ATTACK, ENGINE, FAULTS, PRIVACY, RUN

CASES = [
    *TASK, *ADAPTER, *CLIENTS, *LOCAL, *STRATEGY, *PRIVACY, *ATTACK, *FAULTS, *ENGINE, *RUN,
    *PARTS, *COMPARE,
]  # fmt: skip

# Of the cases that run, those of the quick suite; all others are long tests.
QUICK = {
    "task.head", "task.test_examples", "adapter.kind", "adapter.rank", "adapter.dropout",
    "adapter.exclude_modules", "adapter.modules_to_save", "clients.count",
    "clients.participation.value", "clients.holdout", "local.steps", "local.batch_size",
    "local.momentum", "local.weight_decay", "local.clip", "local.round_schedule", "strategy.name",
    "strategy.rule", "strategy[fedavg].aggregation_error", "faults.noise_up", "attack.kind",
    "engine.cohort_size", "run.eval_every", "run.seed",
}  # fmt: skip

# Why a key has no case, and the test that shows what it does.
EXCEPTIONS = {
    "task.subset": (
        "names a configuration of a data set of the hub, which needs a network",
        "tests/tasks/test_unused.py::test_the_configuration_of_a_hub_data_set_is_asked_for",
    ),
    "privacy.deterministic_randomness": (
        "without it every run differs from every other",
        "tests/runs/test_private_runs.py::"
        "test_equal_seeds_give_equal_runs_only_where_randomness_is_deterministic",
    ),
    "faults.on_error": (
        "needs a client that raises",
        "tests/runs/test_run.py::test_a_failing_client_stops_the_run_or_is_skipped",
    ),
    "engine.device": (
        "a machine without a GPU has one device",
        "tests/runs/test_engines.py::test_a_device_is_the_one_that_was_asked_for",
    ),
    "engine.workers": (
        "Ray workers give the same result as one process",
        "tests/workers/test_pool.py::test_a_run_does_not_depend_on_the_number_of_workers",
    ),
    "engine.ray_address": (
        "needs a Ray cluster",
        "tests/workers/test_cluster.py::"
        "test_a_run_takes_the_machines_that_there_are_and_leaves_them_up",
    ),
    "engine.gradient_checkpointing": (
        "changes memory alone",
        "tests/cohort/test_checkpointing.py::test_a_run_has_it_by_a_key",
    ),
    "engine.compile": (
        "changes time alone, and takes half a minute",
        "tests/runs/test_engines.py::test_a_compiled_model_trains_alike",
    ),
    "engine.deterministic": (
        "changes results on CUDA alone",
        "tests/runs/test_engines.py::test_torch_is_told_to_be_deterministic",
    ),
    "run.trackers": (
        "logs to another program, not to the run directory",
        "tests/runs/test_tracking.py::test_mlflow_holds_the_same_names",
    ),
    "deploy.min_clients": (
        "clients of a simulation are always there",
        "tests/deploy/test_deployment.py::test_with_too_few_clients_the_server_waits_and_says_so",
    ),
    "deploy.join_timeout": (
        "clients of a simulation are always there",
        "tests/deploy/test_deployment.py::test_the_first_round_waits_as_long_as_it_may",
    ),
    "deploy.round_timeout": (
        "clients of a simulation always answer",
        "tests/deploy/test_deployment.py::test_a_client_that_never_answers_is_lost_when_time_is_up",
    ),
    "compare.target": (
        "counts what runs cost until they reach it, once they are trained",
        "tests/comparison/test_compare.py::test_the_target_is_what_the_comparison_says",
    ),
    "compare.claim.paper": (
        "a text of the report",
        "tests/comparison/test_claims.py::"
        "test_variants_are_compared_and_the_claim_is_judged_and_shown",
    ),
    "compare.claim.says": (
        "a text of the report",
        "tests/comparison/test_claims.py::"
        "test_variants_are_compared_and_the_claim_is_judged_and_shown",
    ),
    "compare.claim.parts.says": (
        "a text of the report",
        "tests/comparison/test_claims.py::"
        "test_variants_are_compared_and_the_claim_is_judged_and_shown",
    ),
}
