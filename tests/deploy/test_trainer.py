"""The resident trainer loads once, frees when idle, is alone on its store; its app is thin."""

from __future__ import annotations

import subprocess
import sys

import pytest
from flwr.app import Message

from fedtune.deploy.serving import serve
from fedtune.deploy.trainer import Trainer
from fedtune.errors import ScenarioError
from fedtune.files import locked
from fedtune.grids.compat import message_to_bytes
from tests.deploy.kit import FEDERATION, deployment, settings_of


@pytest.fixture
def undone(tmp_path, monkeypatch):
    """What a trainer sets for its whole process is left as it was."""
    monkeypatch.setattr("fedtune.deploy.serving.os.umask", lambda mask: mask)
    monkeypatch.setattr("fedtune.deploy.serving.signal.signal", lambda number, handler: None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))


def test_the_client_app_imports_no_torch():
    code = (
        "import sys, fedtune.deploy.client_app; "
        "print([m for m in ('torch', 'transformers', 'pandas', 'datasets') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_what_was_freed_is_loaded_anew_and_gives_the_same(tmp_path):
    made = deployment(tmp_path, clients__count=2, run__rounds=1)
    seen: list[bytes] = []
    plain = made.clients.answer

    def answer(client: int, message: Message) -> Message:
        if client == 0:
            seen.append(message_to_bytes(message))
        return plain(client, message)

    made.clients.answer = answer
    made.run(tmp_path / "run")
    trainer = made.clients.trainers[0]
    header = {"scenario": made.clients.text, "federation": FEDERATION}
    first = trainer.answer(header, seen[0])
    held = trainer._loaded
    assert trainer.answer(header, seen[0]) == first
    assert trainer._loaded is held
    trainer.release()
    assert trainer._loaded is None
    trainer.release()
    assert trainer.answer(header, seen[0]) == first
    assert trainer._loaded is not held


def test_another_run_of_the_same_scenario_reads_the_data_anew(tmp_path, monkeypatch):
    trainer, loaded = Trainer(settings_of(tmp_path, 0)), []
    monkeypatch.setattr(trainer, "_load", lambda text: loaded.append(text) or object())
    first = trainer._federation("a" * 8, "text")
    assert trainer._federation("a" * 8, "text") is first
    assert trainer._federation("b" * 8, "text") is not first
    assert trainer._federation("b" * 8, "other") is not first
    assert loaded == ["text", "text", "other"]


def test_two_trainers_do_not_share_a_store(tmp_path, undone):
    own = settings_of(tmp_path, 0)
    (tmp_path / "store-0").mkdir()
    with locked(tmp_path / "store-0" / ".lock"), pytest.raises(ScenarioError, match="another tra"):
        serve(own)


def test_a_path_that_is_too_long_for_a_socket_is_told(tmp_path, undone):
    own = settings_of(tmp_path, 0, socket=str(tmp_path / ("s" * 120)))
    with pytest.raises(ScenarioError, match="socket = "):
        serve(own)
