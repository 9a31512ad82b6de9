"""The quickstart's claim: federated adapters gain over the head trained equally."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "quickstart_gain.py"


@pytest.mark.long
def test_the_gains_interval_over_five_seeds_excludes_zero():
    script = runpy.run_path(str(SCRIPT))
    found = script["gain"](script["curves"]({}), script["curves"]({"adapter.kind": "none"}))
    assert found["interval"][0] > 0
