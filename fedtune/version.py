"""The version; pyproject.toml says the same (Flower wants it there, as plain text)."""

__version__ = "0.1.0"
