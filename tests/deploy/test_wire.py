"""Frames over a socket: what comes out is what went in; what is no message is refused."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.deploy import wire
from fedtune.deploy.serving import _answer


def through(header, body, most=wire.MOST_BODY):
    one, other = socket.socketpair()
    with one, other:
        sender = threading.Thread(target=wire.send, args=(one, header, body))
        sender.start()
        found = wire.receive(other, most)
        sender.join()
    return found


@given(st.dictionaries(st.text(), st.text() | st.integers()), st.binary(max_size=5000))
def test_a_message_comes_as_it_was_sent(header, body):
    assert through(header, body) == (header, body)


def test_a_large_body_comes_whole():
    body = bytes(range(256)) * 20_000
    assert through({}, body) == ({}, body)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "closed"),
        (wire.LENGTH.pack(5) + b"{}", "closed"),
        (wire.LENGTH.pack(1 << 60), "frame of"),
        (wire.LENGTH.pack(2) + b"[]", "no JSON object"),
        (wire.LENGTH.pack(2) + b"\xff\xfe", "no JSON"),
        (wire.LENGTH.pack(10**5) + b"[" * 10**5, "no JSON"),
        (wire.LENGTH.pack(2) + b"{}" + wire.LENGTH.pack(101), "allowed: 100"),
    ],
)
def test_what_is_no_message_is_refused(sent, said):
    one, other = socket.socketpair()
    with other:
        with one:
            one.sendall(sent)
        with pytest.raises(wire.Broken, match=said):
            wire.receive(other, 100)


def test_a_message_that_comes_in_drops_is_given_up():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(wire.LENGTH.pack(100) + b"{")
        with pytest.raises((wire.Broken, TimeoutError)):
            wire.receive(other, seconds=0.2)


def test_nothing_that_a_bundle_sends_ends_the_trainer():
    class Failing:
        def answer(self, header, body):
            raise RuntimeError("whatever")

    for sent in (b"", wire.LENGTH.pack(2) + b"{}" + wire.LENGTH.pack(0)):
        one, other = socket.socketpair()
        with other:
            with one:
                one.sendall(sent)
            _answer(Failing(), other, 100)
