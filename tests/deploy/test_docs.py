"""The commands of docs/deployment.md, run in two folders that stand for two machines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

import fedtune
from fedtune.runs.processes import flower_environment, free_port

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"
BLOCK = re.compile(r"^```sh (server|client)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.long
def test_the_commands_of_the_page_work_in_their_order(tmp_path):
    port, groups = free_port(), []
    blocks = BLOCK.findall(PAGE.read_text("utf-8"))
    assert [where for where, _ in blocks] == ["server", "client", "server", "client", "server"]
    try:
        for where, commands in blocks:
            folder = tmp_path / where
            folder.mkdir(exist_ok=True)
            output = folder / "output"
            with output.open("w") as file:
                ran = subprocess.Popen(
                    ["bash", "-euc", commands.replace("8000", str(port))], cwd=folder,
                    env={**flower_environment(folder / ".flwr"), "OMP_NUM_THREADS": "1"},
                    stdout=file, stderr=file, process_group=0,
                )  # fmt: skip
            groups.append(ran.pid)
            assert ran.wait(timeout=240) == 0, output.read_text()
    finally:
        for group in groups:
            try:
                os.killpg(group, signal.SIGTERM)
            except ProcessLookupError:
                continue
    run = fedtune.RunDirectory(tmp_path / "server" / "runs" / "intents")
    assert [line["client_ids"] for line in run.metrics] == [[0], [0]]
    assert (run.path / "report.html").is_file()
