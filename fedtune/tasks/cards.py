"""Which files a folder's README.md names in `configs:`, as on the hub, read by the rules here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from datasets.data_files import DataFilesDict, sanitize_patterns
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from fedtune.errors import ScenarioError, first_line
from fedtune.tasks.files import FORMS, form_of

CARD = "README.md"
KNOWN = {"data_files", "default", "description", "version"}
INSTEAD = (
    "name files in task.data and task.test, or take configs out and call them train.* and test.* "
    "(pictures: in folders called by their class)"
)


def files_of_card(path: Path) -> dict[str, list[Path]] | None:
    """The files of each split that a folder's card names; None where it names none.

    Raises:
        ScenarioError: for a card that cannot be read, several configurations without a default,
            settings that say how to read files, and files of other forms.
    """
    card = path / CARD
    try:
        text = card.read_text("utf-8") if card.is_file() else ""
        if not text.startswith("---"):
            return None
        data: Any = DatasetCard(text).data
        configs = MetadataConfigs.from_dataset_card_data(data)
        name = configs.get_default_config_name()
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ScenarioError(f"{card}: cannot be read ({first_line(error)})") from None
    if not configs:
        return None
    if name is None:
        listed = ", ".join(configs)
        raise ScenarioError(f"{card}: has several configs and no default ({listed}); {INSTEAD}")
    config = dict(configs[name])
    if strange := sorted(config.keys() - KNOWN):
        raise ScenarioError(f"{card}: configs sets {strange[0]!r}, which is not read; {INSTEAD}")
    if "data_files" not in config:
        return None
    patterns = sanitize_patterns(config["data_files"])
    found = DataFilesDict.from_patterns(patterns, base_path=str(path.resolve()))
    splits = {str(split): [Path(file) for file in files] for split, files in found.items()}
    for file in (file for files in splits.values() for file in files):
        if not file.is_file() or form_of(file) is None:
            raise ScenarioError(
                f"{card}: configs names {file.name}; allowed: {', '.join(FORMS)}; {INSTEAD}"
            )
        if form_of(file) != ".parquet" and "class_label" in str(data.get("dataset_info")):
            raise ScenarioError(
                f"{card}: dataset_info names the classes of {file.name}; write the names into the "
                "file, and take dataset_info out"
            )
    return splits
