"""The version; pyproject.toml says the same (Flower wants it there, as plain text)."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"
PACKAGES = ("flwr", "numpy", "peft", "torch", "transformers")


def versions() -> dict[str, str]:
    """Versions of what decides a result; fedtune's own also where it is not installed."""
    found = {"fedtune": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
