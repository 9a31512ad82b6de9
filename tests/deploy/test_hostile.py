"""A hostile bundle at a client whose trainer is another user: what it gets."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import tomli_w

from fedtune.deploy.certificates import make_certificates, make_client_keys
from fedtune.deploy.processes import Place, supernode_command
from fedtune.deploy.runs import register
from fedtune.runs.processes import Child, flower_environment, stop_all
from fedtune.runs.settling import settle_paths
from fedtune.runs.superlink import CONNECTION, SuperLink, flwr
from fedtune.scenario import dump_scenario, load_scenario
from tests.deploy.kit import FEDERATION
from tests.runs.kit import small

NOBODY = 65534
AS_NOBODY = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
HERE = Path(__file__).parent


def other_user_can_run() -> bool:
    """Whether user nobody can start this interpreter (not where it lies in a closed home)."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    ran = subprocess.run([*AS_NOBODY, sys.executable, "-c", "import flwr"], check=False,
                         capture_output=True, cwd="/")  # fmt: skip
    return ran.returncode == 0


@pytest.mark.long
def test_a_hostile_bundle_reads_neither_data_nor_ledger_and_cannot_exceed_what_is_allowed():
    if not other_user_can_run():
        pytest.skip("needs root, and a Python that another user may run")
    folder = Path(tempfile.mkdtemp(prefix="fedtune-hostile-"))  # pytest's own is closed to others
    folder.chmod(0o755)
    children = []
    try:
        found = attacked(folder, children)
    finally:
        stop_all(children)
        shutil.rmtree(folder, ignore_errors=True)
    assert found["user"] == NOBODY
    assert set(found["files"].values()) <= {"PermissionError", "FileNotFoundError"}
    assert list(found["files"].values()).count("PermissionError") >= 3
    steps, kind, nothing, path = found["answers"]
    assert "accepts.steps allows 2" in steps
    assert "accepts.adapters allows: lora" in kind
    assert "names no federation" in nothing
    assert "refused" in path
    for answer in found["answers"]:
        assert "secret" not in answer


def attacked(folder, children) -> dict:
    """Run the hostile bundle; what it found."""
    private, shared, home = folder / "private", folder / "shared", folder / "node"
    private.mkdir(mode=0o700)
    shared.mkdir(mode=0o750)
    os.chown(shared, 0, NOBODY)
    home.mkdir()
    data = private / "rows.csv"
    data.write_text("text,label\nsecret words,a\nsecret more,b\n")
    settings = {
        "client": 0, "socket": str(shared / "t.sock"), "store": str(private / "store"),
        "data": {"file": str(data)}, "accepts": {"steps": 2, "adapters": ["lora"]},
    }  # fmt: skip
    file = private / "client.toml"
    file.write_text(tomli_w.dumps(settings))
    keys = folder / "keys"
    make_certificates(keys, ["127.0.0.1"])
    make_client_keys(home, ["key"])
    options = ["--ssl-ca-certfile", str(keys / "ca.crt"), "--ssl-certfile",
               str(keys / "server.crt"), "--ssl-keyfile", str(keys / "server.key"),
               "--enable-supernode-auth"]  # fmt: skip
    flower = folder / "flower"
    flower.mkdir()
    link = SuperLink(flower, options, keys / "ca.crt")
    children.append(link)
    link.wait()
    register(home / "key.pub", CONNECTION, link.environment)
    shutil.copyfile(keys / "ca.crt", home / "ca.crt")
    for place in (home, *home.iterdir()):
        os.chown(place, NOBODY, NOBODY)
    bridge = ["setpriv", "--regid", str(NOBODY), "--clear-groups"]  # root, with the node's group
    trainer = [sys.executable, "-m", "fedtune", "deploy", "trainer", str(file)]
    environment = {**flower_environment(home), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    children.append(Child("trainer", [*bridge, *trainer], private / "log", environment))
    place = Place(f"127.0.0.1:{link.port}", home / "ca.crt", home / "key")
    node = supernode_command(place, 0, str(shared / "t.sock"))
    children.append(Child("node", [*AS_NOBODY, *node], folder / "node.log", environment))
    deadline = time.monotonic() + 90
    while not (shared / "t.sock").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert stat.S_IMODE((shared / "t.sock").stat().st_mode) == 0o660
    out = folder / "found.json"
    submitted(folder, link, wanted(private, shared), out)
    while not out.exists() and time.monotonic() < deadline + 150:
        time.sleep(0.3)
    return json.loads(out.read_text())


def wanted(private, shared) -> dict:
    """What the attacker asks for."""
    asked = [{"local.steps": 5000}, {"adapter.kind": "ffa", "strategy.name": "ffa-lora"}]
    texts = [
        dump_scenario(settle_paths(load_scenario("quickstart", {**small(), **one})))
        for one in asked
    ]
    headers = [{"federation": FEDERATION, "scenario": text} for text in texts]
    headers += [{"scenario": texts[0]}, {"federation": "../../private", "scenario": texts[0]}]
    files = [private / "rows.csv", private / "client.toml", private / "store" / "ledger.jsonl",
             private / "log", f"/proc/{os.getpid()}/environ"]  # fmt: skip
    return {"files": [str(f) for f in files], "socket": str(shared / "t.sock"), "headers": headers}


def submitted(folder, link, asked, out) -> None:
    """Submit the bundle, its own code in it."""
    app = folder / "app"
    app.mkdir()
    shutil.copyfile(HERE / "hostile_app.py", app / "hostile_app.py")
    (app / "LICENSE").write_text("none\n")
    config = {"wanted": json.dumps(asked), "out": str(out)}
    components = {"serverapp": "hostile_app:server", "clientapp": "hostile_app:client"}
    project = {"name": "hostile", "version": "0.0.0", "license": {"file": "LICENSE"},
               "dependencies": ["flwr>=1.41"]}  # fmt: skip
    flower = {"publisher": "x", "components": components, "config": {"wanted": "", "out": ""}}
    (app / "pyproject.toml").write_text(
        tomli_w.dumps({"project": project, "tool": {"flwr": {"app": flower}}})
    )
    (folder / "run.toml").write_text(tomli_w.dumps(config))
    ran = flwr(["run", str(app), CONNECTION, "--run-config", str(folder / "run.toml")],
               link.environment)  # fmt: skip
    assert ran["success"], ran
