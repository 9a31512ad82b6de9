"""Keys of `[adapter]` that would do nothing: found once the layers are known, and refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.constants import DUMMY_TARGET_MODULES

from fedtune.adapters.layout import Layout
from fedtune.errors import Incompatible, ScenarioError
from fedtune.scenario.adapter import AdapterSection

OF_LAYERS = (
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
)


def without_layers(section: AdapterSection) -> AdapterSection:
    """The section for a kind that adapts no layer: PEFT's own name for no targets, nothing else.

    So a base without any layer that could be adapted can have its head trained, and a comparison
    of kinds can say for all of them which layers the others adapt.
    """
    return section.model_copy(update={"targets": DUMMY_TARGET_MODULES, **dict.fromkeys(OF_LAYERS)})


def check_excluded(modules: Sequence[str], section: AdapterSection, config: LoraConfig) -> None:
    """Refuse what `adapter.exclude_modules` names and no target is called.

    Args:
        modules: names of all modules of the base.
        section: the scenario's `[adapter]`.
        config: of the wrapped model, its targets resolved; PEFT itself does the matching.

    Raises:
        ScenarioError: for the first name (or the pattern) that keeps nothing out.
    """
    given = section.exclude_modules or []
    targeted = [name for name in modules if _adapted(config, None, name)]
    for one in [given] if isinstance(given, str) else given:
        alone = one if isinstance(given, str) else [one]
        if all(_adapted(config, alone, name) for name in targeted):
            raise ScenarioError(
                f"adapter.exclude_modules = {given!r}: {one!r} keeps nothing out; it matches none "
                f"of the {len(targeted)} layers of adapter.targets = {section.targets!r}"
            )


def check_saved(layout: Layout, section: AdapterSection) -> None:
    """Refuse what `adapter.modules_to_save` names and nobody trains.

    Raises:
        Incompatible: for a module of a frozen head.
        ScenarioError: for a module without parameters.
    """
    for module in section.modules_to_save or []:
        inside = [s for s in layout.specs if any(p.endswith(module) for p in _owners(s.name))]
        if any(spec.trained for spec in inside):
            continue
        if inside:
            raise Incompatible(
                f"adapter.modules_to_save: {module!r} is of the head, which task.head = 'frozen' "
                "leaves as it is; leave it out, or set task.head = 'shared'"
            )
        raise ScenarioError(f"adapter.modules_to_save: {module!r} has no parameters to train")


def _adapted(config: LoraConfig, excluded: str | list[str] | None, name: str) -> bool:
    """Whether PEFT would adapt a module if that alone were excluded."""
    asked = copy.copy(config)
    asked.exclude_modules = excluded
    return bool(check_target_module_exists(asked, name))


def _owners(tensor: str) -> Iterator[str]:
    """The modules that a tensor is in, from the outermost."""
    _, _, *path, _ = tensor.split(".")  # without PEFT's own two
    return (".".join(path[:end]) for end in range(1, len(path) + 1))
