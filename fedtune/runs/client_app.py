"""fedtune's ClientApp: the same clients as in the cohort engine, one message at a time.

Model and data are loaded once a process, not once a message: Flower keeps this module loaded in its
Ray actors.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedtune.grids.node_grid import CLIENT, CONFIG
from fedtune.runs.build import Federation, build
from fedtune.runs.flower import OUT, RESUME, SCENARIO, scenario_of, store_of
from fedtune.scenario import load_scenario

app = ClientApp()
_LOADED: dict[tuple[str, ...], Federation] = {}


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train this client from the tensors it is sent."""
    return _answer(message, context)


@app.train("opening")
def opening(message: Message, context: Context) -> Message:
    """Say what is needed of this client before the first round."""
    return _answer(message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate this client's own head on its own held-out data."""
    return _answer(message, context)


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Say which client this is."""
    content = ConfigRecord({CLIENT: client_id(context)})
    return Message(RecordDict({CONFIG: content}), reply_to=message)


def client_id(context: Context) -> int:
    """The logical id of the client behind a node: `client-id`, else `partition-id`."""
    config = context.node_config
    return int(str(config.get("client-id", config.get("partition-id"))))


def federation_of(context: Context) -> Federation:
    """Model and data of the run, loaded at the first message of this process."""
    key = tuple(str(context.run_config.get(name, "")) for name in (SCENARIO, OUT, RESUME))
    if key not in _LOADED:
        scenario = scenario_of(context.run_config)
        if scenario.engine.device.startswith("cuda"):  # Ray shows each actor its own cards only
            scenario = load_scenario(scenario, {"engine.device": "auto"})
        _LOADED.clear()
        out = str(context.run_config.get(OUT, ""))
        _LOADED[key] = build(scenario, folder=Path(out) if out else None)
    return _LOADED[key]


def _answer(message: Message, context: Context) -> Message:
    federation = federation_of(context)
    clients = federation.clients
    clients.store = store_of(federation.scenario, context.run_config, message)
    answer = clients.handle([(client_id(context), message)])[0]
    if isinstance(answer, Message):
        return answer
    raise answer
