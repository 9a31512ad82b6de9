"""Whether a checkpoint's head is for the classes of the data, and in which order.

A head's outputs mean the classes that its configuration names (`id2label`). Where these are the
data's, in any order, the head is kept and the classes take its order; else the head begins anew,
also where it has as many outputs, or its configuration names more or fewer than it has. Names are
the same if they are equal, or equal but for case and space around them where that leaves no two
alike. A configuration without names of its own (LABEL_0, LABEL_1, ...) numbers its classes: its
head is kept for classes that are called by these numbers, and for as many that `task.labels` names
in the order of the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fedtune.errors import cut

SHOWN = 3


def in_order_of(own: Sequence[str], names: Sequence[str], ordered: bool = False) -> list[str]:
    """The classes of the data, in the order of a head where that is for them.

    Args:
        own: what the head's outputs are called.
        names: of the classes, as the data order them.
        ordered: whether the user gave that order, which a head without names takes.
    """
    numbers = [str(place) for place in range(len(own))]
    if is_numbered(own) and not ordered and sorted(names) == sorted(numbers):
        return numbers
    order = _matched(own, names)
    return list(names) if order is None else [names[place] for place in order]


def names_in(config: PretrainedConfig) -> list[str]:
    """What the outputs of a head are called: `id2label`, or `label2id` where that has no names.

    None where the numbers of the names are not those of outputs, 0, 1, ...
    """
    found = dict(config.id2label or {})
    by_name = {place: name for name, place in (config.label2id or {}).items()}
    own = _by_output(found)
    told = _by_output(by_name) if is_numbered(own) else []
    return told if len(told) == len(own) else own


def head_fits(own: Sequence[str], classes: Sequence[str], ordered: bool) -> bool:
    """Whether output i of a head is for class i.

    Args:
        own: what its outputs are called.
        classes: of the data, in their order.
        ordered: whether the user gave that order.
    """
    if _matched(own, classes) == list(range(len(classes))):
        return True
    by_number = ordered or list(classes) == [str(place) for place in range(len(classes))]
    return by_number and is_numbered(own) and len(own) == len(classes)


def head_notes(
    base: str, own: Sequence[str], classes: Sequence[str], labels: list[str] | None, anew: bool
) -> list[str]:
    """Lines about a checkpoint that has a head of its own.

    Args:
        base: its name.
        own: what its outputs are called.
        classes: of the data, in their order.
        labels: the order that the user gave, if any.
        anew: whether the head, or its last layer, begins anew.
    """
    few = ", ".join(map(cut, own[:SHOWN])) + (", ..." if len(own) > SHOWN else "")
    if anew and not own:
        return [f"head: begins anew, since the configuration of {base} does not name its outputs"]
    if anew and is_numbered(own):
        alike = len(own) == len(classes)
        hint = "; task.labels, in the order of these numbers, keeps it" if alike else ""
        return [f"head: begins anew, since that of {base} numbers its classes ({few}){hint}"]
    if anew:
        count = "other" if len(own) == len(classes) else f"{len(own)} other"
        return [f"head: begins anew, since that of {base} is for {count} classes ({few})"]
    if is_numbered(own) and list(own) != list(classes):
        return [f"head: that of {base} is kept, its output i for class i of the data"]
    if labels is not None and list(classes) != labels:
        return [f"head: that of {base} is kept with its order of classes ({few})"]
    return []


def body_notes(base: str, head: list[str], fresh: set[str]) -> tuple[str, ...]:
    """A line about tensors outside the head that the checkpoint does not hold in their shape."""
    outside = sorted(name for name in fresh if not in_head(name, head))
    if not outside:
        return ()
    few = ", ".join(outside[:SHOWN]) + (", ..." if len(outside) > SHOWN else "")
    return (f"base: {len(outside)} tensors of {base} begin anew and are trained whole ({few})",)


def head_of(model: PreTrainedModel, fresh: set[str]) -> list[str]:
    """Children beside the backbone; where the prefix names no child, those that are all new."""
    children = {n: c for n, c in model.named_children() if any(True for _ in c.parameters())}
    if model.base_model_prefix in children:
        return [name for name in children if name != model.base_model_prefix]
    return [
        name
        for name, child in children.items()
        if all(f"{name}.{parameter}" in fresh for parameter, _ in child.named_parameters())
    ]


def in_head(name: str, head: list[str]) -> bool:
    """Whether a parameter is of a module of the head."""
    return name.split(".")[0] in head


def with_missing(head: list[str], fresh: set[str]) -> list[str]:
    """The head's modules, and those outside it that the checkpoint misses."""
    return [*head, *sorted({n.rpartition(".")[0] for n in fresh if not in_head(n, head)})]


def label_tensors(build: Callable[[int], nn.Module], classes: int) -> set[str]:
    """The parameters of a model whose shapes follow from the number of classes.

    Args:
        build: makes the model for so many.
        classes: how many there are.
    """
    with torch.device("meta"):
        one, more = (dict(build(count).named_parameters()) for count in (classes, classes + 1))
    return {name for name in one if name not in more or one[name].shape != more[name].shape}


def is_numbered(own: Sequence[str]) -> bool:
    """Whether these are the names that a configuration without names makes up."""
    return list(own) == [f"LABEL_{place}" for place in range(len(own))]


def _by_output(names: Mapping[int, object]) -> list[str]:
    places = list(range(len(names)))
    return [str(names[place]) for place in places] if sorted(names) == places else []


def _matched(own: Sequence[str], names: Sequence[str]) -> list[int] | None:
    """Where the class of each output stands among the names; None if the two sets differ."""
    for alike in (str, _folded):
        mine, theirs = [alike(name) for name in own], [alike(name) for name in names]
        if len(set(mine)) == len(mine) and sorted(mine) == sorted(theirs):
            return [theirs.index(name) for name in mine]
    return None


def _folded(name: str) -> str:
    return name.strip().casefold()
