"""Cases of the parameters of rules, pre-aggregators, server optimisers, attacks and partitions.

They are looked at in the part itself, made from a scenario: nothing is trained.
"""

from __future__ import annotations

from typing import Any

from tests.kits.key_looks import Looks
from tests.kits.schema_keys import Case
from tests.kits.schema_keys import case as plain


def rule(name: str, key: str, value: Any, **more: Any) -> Case:
    scene = {"strategy.rule": {"name": name, **more}, "strategy.f": 2}
    return plain(f"strategy.rule[{name}].{key}", value, scene, Looks.rule)


def pre(name: str, key: str, value: Any) -> Case:
    scene = {"strategy.pre": [{"name": name}], "strategy.f": 2}
    change = {"strategy.pre": [{"name": name, key: value}]}
    return Case(f"strategy.pre[{name}].{key}", scene, change, Looks.rule)


def server(name: str, key: str, value: Any) -> Case:
    scene = {"strategy.server_optimizer": {"name": name}}
    return plain(f"strategy.server_optimizer[{name}].{key}", value, scene, Looks.server)


def attack(kind: str, key: str, value: Any) -> Case:
    return plain(f"attack[{kind}].{key}", value, {"attack.kind": kind}, Looks.attack)


def dealt(kind: str, key: str, value: Any, **more: Any) -> Case:
    needed = {"dirichlet": {"alpha": 0.5}, "pathological": {"num_classes_per_partition": 2},
              "shard": {"num_shards_per_partition": 2}}[kind]  # fmt: skip
    given = {"kind": kind, **needed, **more}
    scene = {f"clients.partition.{name}": v for name, v in given.items() if v is not None}
    return plain(f"clients.partition[{kind}].{key}", value, scene, Looks.partition)


PARTS = [
    rule("trimmed-mean", "f", 3),
    rule("krum", "f", 0),
    rule("multi-krum", "f", 3),
    rule("multi-krum", "q", 2),
    rule("geometric-median", "smoothing", 2.0),
    rule("geometric-median", "tolerance", 0.5),
    rule("geometric-median", "iterations", 1),
    rule("bulyan", "f", 0),
    rule("meamed", "f", 3),
    rule("phocas", "f", 3),
    rule("centered-clipping", "tau", 0.1),
    rule("centered-clipping", "iterations", 3),
    rule("mda", "f", 3),
    rule("dnc", "f", 3),
    rule("dnc", "iterations", 1, coordinates=5),
    rule("dnc", "coordinates", 5),
    rule("dnc", "factor", 2.0),
    rule("flag", "m", 1),
    rule("flag", "regularization", 2.0),
    rule("flag", "iterations", 1),
    rule("flag", "start", "random"),
    pre("nnm", "f", 3),
    pre("bucketing", "s", 4),
    pre("clip", "norm", 0.5),
    pre("arc", "f", 3),
    server("momentum", "beta", 0.5),
    server("momentum", "lr", 0.5),
    *(server(name, key, value) for name in ("adam", "yogi")
      for key, value in (("lr", 0.5), ("beta_1", 0.5), ("beta_2", 0.5), ("tau", 0.1))),
    server("adagrad", "lr", 0.5),
    server("adagrad", "tau", 0.1),
    attack("sign-flip", "factor", 2.0),
    attack("scaling", "factor", 2.0),
    attack("gaussian", "sigma", 2.0),
    attack("uniform", "size", 2.0),
    attack("ipm", "epsilon", 2.0),
    attack("alie", "z", 2.0),
    attack("min-max", "deviation", "sign"),
    attack("min-sum", "deviation", "sign"),
    attack("adaptive", "deviation", "sign"),
    attack("adaptive", "most", 3.3),
    attack("adaptive", "steps", 5),
    dealt("dirichlet", "alpha", 5.0),
    dealt("dirichlet", "min_partition_size", 12),
    dealt("dirichlet", "self_balancing", True),
    dealt("pathological", "num_classes_per_partition", 3),
    dealt("pathological", "class_assignment_mode", "deterministic"),
    dealt("shard", "num_shards_per_partition", 3),
    dealt("shard", "shard_size", 5),
    dealt("shard", "keep_incomplete_shard", True, shard_size=7, num_shards_per_partition=None),
]  # fmt: skip
