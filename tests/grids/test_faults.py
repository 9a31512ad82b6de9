"""Faults: each happens as often as asked, is named, and leaves the rest of the round alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedtune
from fedtune.errors import ScenarioError
from fedtune.grids.arrays import to_record
from fedtune.grids.faults import CORRUPT, checksum, damaged
from fedtune.runs.build import build
from fedtune.runs.loop import one_round, start_state
from fedtune.runs.settling import settle_paths
from fedtune.scenario import load_scenario
from tests.runs.kit import adapter_bytes, lines, small

TWENTY = {"clients__count": 20, "clients__participation__value": 1.0, "run__rounds": 3}


def run(path, **changes):
    return fedtune.run("quickstart", small(**TWENTY, **changes), path)


def reasons(done):
    return [p["reason"] for line in done.metrics for p in line["problems"]]


def test_lost_replies_are_counted_and_the_others_are_used(tmp_path):
    done = run(tmp_path / "run", faults__dropout=0.3)
    for line in done.metrics:
        assert line["clients"] + line["lost"] == 20
        assert line["failures"] == line["rejected"] == 0
    assert 8 <= sum(line["lost"] for line in done.metrics) <= 28
    assert len({tuple(line["client_ids"]) for line in done.metrics}) == 3


def test_slow_clients_are_the_same_ones_more_often_than_not(tmp_path):
    done = run(tmp_path / "run", faults__deadline=1.0, faults__spread=1.0)
    lost = [set(range(20)) - set(line["client_ids"]) for line in done.metrics]
    assert 15 <= sum(map(len, lost)) <= 45
    assert len(set.intersection(*lost)) >= 4


def test_a_reply_that_comes_twice_counts_once(tmp_path):
    done = run(tmp_path / "run", faults__duplicate=1.0)
    calm = run(tmp_path / "calm")
    assert [line["rejected"] for line in done.metrics] == [20, 20, 20]
    assert set(reasons(done)) == {"sent twice"}
    assert adapter_bytes(done) == adapter_bytes(calm)


def test_a_late_reply_does_not_enter_another_round(tmp_path):
    done = run(tmp_path / "run", faults__late=0.4)
    late = [line["lost"] for line in done.metrics]
    assert [line["rejected"] for line in done.metrics] == [0, *late[:-1]]
    assert set(reasons(done)) == {"answers an earlier round"}
    assert all(line["clients"] + line["lost"] == 20 for line in done.metrics)


def test_damage_in_transit_is_found_and_named(tmp_path):
    done = run(tmp_path / "run", faults__corrupt=0.25)
    assert set(reasons(done)) == {CORRUPT}
    assert 5 <= sum(line["failures"] for line in done.metrics) <= 27
    assert all(line["clients"] + line["failures"] == 20 for line in done.metrics)


@given(st.integers(0, 2**31))
def test_every_flipped_bit_and_every_cut_changes_the_checksum(seed):
    random = np.random.default_rng(seed)
    record = to_record({n: torch.from_numpy(random.normal(size=(3, 4))) for n in ("a", "b")})
    assert checksum(damaged(record, random)) != checksum(record)
    assert checksum(record) == checksum(record)


@pytest.mark.parametrize("way", ["down", "up"])
@pytest.mark.parametrize("ratio", [None, 20.0])
def test_noise_has_the_variance_that_was_asked_for_and_is_new_for_each_client(way, ratio):
    faults = {f"noise_{way}": 0.05} if ratio is None else {f"snr_{way}": ratio}
    noisy, calm = (
        build(settle_paths(load_scenario("quickstart", small(**TWENTY, faults=f))))
        for f in (faults, {})
    )
    seen = []
    for federation in (noisy, calm):
        handle = federation.clients.handle
        rows = []

        def watched(messages, handle=handle, rows=rows):
            if way == "down":
                rows.extend(_flat(m.content["arrays"]) for _, m in messages)
            return handle(messages)

        federation.clients.handle = watched
        if way == "up":

            def caught(updates, rows=rows):
                rows.extend(updates.replies)
                return updates

            federation.strategy.collect = caught
        with federation.serving.serving():
            one_round(federation, start_state(federation, None), 1)
        seen.append(torch.stack(rows).double())
    apart = seen[0] - seen[1]
    if ratio is None:
        assert float(apart.std()) == pytest.approx(0.05, rel=0.05)
        assert abs(float(torch.corrcoef(apart[:2])[0, 1])) < 0.1
    assert float(apart.abs().sum()) > 0


def _flat(record):
    from fedtune.grids.arrays import to_tensors

    return torch.cat([tensor.ravel() for tensor in to_tensors(record).values()])


def test_a_run_with_faults_resumes_to_the_same_bytes(tmp_path):
    faults = {"dropout": 0.2, "noise_up": 0.01, "corrupt": 0.1}
    whole = run(tmp_path / "whole", faults=faults)
    changes = small(**{**TWENTY, "run__rounds": 2}, faults=faults)
    fedtune.run("quickstart", changes, tmp_path / "part")
    again = fedtune.resume(tmp_path / "part", {"run.rounds": 3})
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert lines(again) == lines(whole)


def test_without_faults_there_is_no_wrapper():
    federation = build(settle_paths(load_scenario("quickstart", small())))
    assert federation.grid.inner is federation.serving


def test_late_replies_outlive_a_stop(tmp_path):
    whole = run(tmp_path / "whole", faults__late=0.4)
    changes = {**TWENTY, "run__rounds": 2, "faults__late": 0.4}
    half = fedtune.run("quickstart", small(**changes), tmp_path / "half")
    assert sum(line["lost"] for line in half.metrics[1:2]) > 0
    again = fedtune.resume(tmp_path / "half", {"run.rounds": 3})
    assert lines(again) == lines(whole)
    assert adapter_bytes(again) == adapter_bytes(whole)


def test_a_trace_of_lost_replies(tmp_path):
    trace = tmp_path / "lost.csv"
    trace.write_text("round,client\n1,3\n1,7\n3,0\n")
    done = run(tmp_path / "run", faults__trace=str(trace))
    gone = [sorted(set(range(20)) - set(line["client_ids"])) for line in done.metrics]
    assert gone == [[3, 7], [], [0]]
    assert [line["lost"] for line in done.metrics] == [2, 0, 1]


def test_a_trace_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ScenarioError, match=r"faults.trace = .*columns round and client"):
        run(tmp_path / "run", faults__trace=str(tmp_path / "nowhere.csv"))


def test_late_replies_do_not_answer_evaluations(tmp_path):
    done = run(tmp_path / "run", faults__late=0.5, task__head="local")
    late = [line["lost"] for line in done.metrics]
    assert [line["rejected"] for line in done.metrics] == [0, *late[:-1]]


def test_a_trace_of_somebody_else_is_refused(tmp_path):
    trace = tmp_path / "lost.csv"
    trace.write_text("round,client\n1,20\n")
    with pytest.raises(ScenarioError, match=r"names client 20; clients are 0 to 19"):
        run(tmp_path / "run", faults__trace=str(trace))
