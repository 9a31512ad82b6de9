"""Imports run one way (docs/architecture.md); Flower's insides are touched in one place."""

from __future__ import annotations

import ast
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    "errors", "files", "console", "randomness", "version", "waiting", "scenario", "adapters",
    "tasks", "privacy", "cohort", "workers",
    "rules", "participation", "grids", "adversaries", "apps", "server", "strategies",
    "reporting", "runs", "deploy", "audit", "comparison", "cli",
]  # fmt: skip
MATHEMATICS = {"adapters", "privacy", "cohort", "rules", "randomness", "participation"}
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}


def modules() -> list[Path]:
    return [*(ROOT / "fedtune").rglob("*.py"), *(ROOT / "strategies").glob("*.py")]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, those under TYPE_CHECKING left out."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part(path: Path) -> str:
    inside = path.relative_to(ROOT).with_suffix("").parts
    return inside[0] if inside[0] == "strategies" else inside[1]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    mine = part(path)
    if mine not in ORDER:
        return
    for module in imports(path):
        names = module.split(".")
        if names[0] not in ("fedtune", "strategies") or module == "fedtune":
            continue
        other = "strategies" if names[0] == "strategies" else names[1]
        assert ORDER.index(other) <= ORDER.index(mine), f"{mine} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_flowers_insides_are_touched_in_one_module(path):
    used = {m for m in imports(path) if m.split(".")[0] == "flwr"}
    if part(path) in MATHEMATICS:
        assert not used
        assert "typer" not in imports(path)
    if path.name != "compat.py":
        assert used <= PUBLIC


def test_the_version_of_flower_that_the_compatibility_module_was_tried_with():
    assert version("flwr").startswith("1.41.")
