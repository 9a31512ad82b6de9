"""Finding, reading, overriding and writing scenario files."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fedtune.errors import Incompatible, ScenarioError
from fedtune.scenario.schema import Scenario
from fedtune.scenario.section import INCOMPATIBLE

Model = TypeVar("Model", bound=BaseModel)
Overrides = Mapping[str, Any] | Sequence[str]
_TYPE_NAMES = {"str", "int", "float", "bool", "list", "dict"}
_NAMED = {"strategy": "name", "attack": "kind"}
CLAIMS = "claims"
_EXCLUSIVE = {"local.steps": "epochs", "local.epochs": "steps"}


def scenario_names() -> dict[str, str]:
    """The scenarios shipped in `simulations/`: name to the first comment line of the file."""
    folder = resources.files("simulations")
    found = {}
    for place, start in ((folder, ""), (folder / CLAIMS, f"{CLAIMS}/")):
        for file in sorted(place.iterdir(), key=lambda f: f.name):
            if file.name.endswith(".toml"):
                found[start + file.name.removesuffix(".toml")] = _title(file.read_text("utf-8"))
    return found


def load_scenario(source: str | Path | Scenario, overrides: Overrides = ()) -> Scenario:
    """Read a scenario and lay `--set` values over it.

    Parameters of a strategy or an attack belong to it: another one does not inherit them.

    Args:
        source: a path, the name of a file in `simulations/`, or a scenario.
        overrides: `key=value` strings (a value is TOML, else plain text) or a mapping of dotted
            keys to values.

    Raises:
        ScenarioError: naming the key, what was given and what is allowed.
    """
    if isinstance(source, Scenario):
        raw = source.model_dump(exclude_none=True)
    else:
        raw = _read(source)
    given = overrides.items() if isinstance(overrides, Mapping) else map(_parse, overrides)
    pairs = list(given)
    for section, key in _NAMED.items():
        named = [value for name, value in pairs if name == f"{section}.{key}"]
        _forget_parameters(raw, section, key, named)
    for key, value in pairs:
        _put(raw, key, value)
    return validate(raw)


def _forget_parameters(raw: dict[str, Any], section: str, key: str, named: list[Any]) -> None:
    """Drop the own parameters of what a section names, if it is to name another."""
    table = raw.get(section)
    model = Scenario.model_fields[section].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    if not named or not isinstance(table, dict):
        return
    if table.get(key, model.model_fields[key].default) != named[-1]:
        for name in [name for name in table if name not in model.model_fields]:
            del table[name]


def validate(raw: dict[str, Any]) -> Scenario:
    """The scenario of a plain dictionary; raises `ScenarioError` with one line."""
    return validate_as(Scenario, raw)


def validate_as(model: type[Model], raw: dict[str, Any]) -> Model:
    """The settings of a plain dictionary; raises `ScenarioError` with one line."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        kinds = {detail["type"] for detail in error.errors()}
        cls = Incompatible if kinds == {INCOMPATIBLE} else ScenarioError
        raise cls(_one_line(model, error)) from None


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """A TOML file; raises `ScenarioError` with one line.

    Args:
        what: the file is called in it.
    """
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{what} = {str(path)!r}: cannot be read ({error})") from None
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{what} = {str(path)!r}: not valid TOML ({error})") from None


def dump_scenario(scenario: Scenario) -> str:
    """The whole scenario as TOML, defaults included (unset keys left out)."""
    return tomli_w.dumps(scenario.model_dump(mode="json", exclude_none=True))


def _title(text: str) -> str:
    first = text.split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _read(source: str | Path) -> dict[str, Any]:
    path = Path(source)
    if path.suffix != ".toml" and not path.is_file():
        shipped = resources.files("simulations") / f"{source}.toml"
        if not shipped.is_file():
            raise ScenarioError(
                f"scenario = {str(source)!r}: no such file, and not one of the shipped scenarios "
                f"({', '.join(scenario_names())})"
            )
        return tomllib.loads(shipped.read_text("utf-8"))
    return read_toml(path, "scenario")


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ScenarioError(f"--set {text!r}: must be key=value, e.g. run.rounds=10")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    table = raw
    for part in path:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ScenarioError(f"{key} = {value!r}: {part} is a value, not a table")
    table[last] = value
    if key in _EXCLUSIVE:
        table.pop(_EXCLUSIVE[key], None)


def _one_line(model: type[BaseModel], error: ValidationError) -> str:
    details = error.errors(include_url=False)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return _line(model, details[0]) + more


def _line(model: type[BaseModel], detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        return _unknown_key(model, path)
    known = [part for part in path if part.isidentifier() and part not in _TYPE_NAMES]
    key = ".".join(known) or "scenario"
    given = "" if isinstance(detail["input"], dict | BaseModel) else f" = {detail['input']!r}"
    reason = detail["msg"].removeprefix("Value error, ")
    return f"{key}{given}: {reason[0].lower()}{reason[1:]}"


def _unknown_key(model: type[BaseModel], path: list[str]) -> str:
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        for choice in (annotation, *get_args(annotation)):
            if isinstance(choice, type) and issubclass(choice, BaseModel):
                model = choice
    allowed = list(model.model_fields)
    close = difflib.get_close_matches(path[-1], allowed, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{'.'.join(path)}: unknown key{hint}; allowed: {', '.join(allowed)}"
