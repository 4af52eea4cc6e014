"""Destinations that are not what they should be."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from colo.errors import ArbitrationError, ChannelError, ColoError, ProtocolError, StreamError
from colo.protocol import encode_return_path
from colo.protocol.deadlines import Deadlines
from colo.session.migration import MigrationSource, MigrationSourceConfig
from colo.wire import ReturnPath
from tests.session.migration.peer import Peer, colo_until_the_end
from tests.session.migration.target import QUICK, runs_on


@pytest.mark.parametrize(("answer", "error"), [
    (encode_return_path(ReturnPath.PONG, 77), ProtocolError),
    (encode_return_path(ReturnPath.SHUT, 0), ProtocolError),
    (encode_return_path(ReturnPath.SHUT, 1), ChannelError),
    (encode_return_path(ReturnPath.REQ_PAGES, payload=bytes(12)), ProtocolError),
    (b"\x00\x09\x00\x04abcd", StreamError),
    (b"\x00\x02\xff\xff", StreamError),
    (b"\x00\x02", ChannelError),
    (b"", ChannelError),
])
def test_an_answer_that_is_none_ends_it_and_the_vm_runs_on(vm: Any, answer: bytes, error: type[ColoError]) -> None:
    peer = Peer()

    def say(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(answer)
        return True

    thread = peer.serve(say)
    vm.resume()
    with MigrationSource(vm, MigrationSourceConfig(peer.to, deadlines=QUICK)) as it, pytest.raises(error):
        it.run()
    runs_on(vm)
    thread.join(10)
    peer.listener.close()


def test_a_silent_destination_meets_its_deadline(vm: Any) -> None:
    peer = Peer()
    thread = peer.serve(lambda sock, data: False)
    vm.resume()
    deadlines = Deadlines(handshake_s=0.3)
    with MigrationSource(vm, MigrationSourceConfig(peer.to, deadlines=deadlines)) as it, pytest.raises(ChannelError, match="handshake"):
        it.run()
    runs_on(vm)
    thread.join(10)
    peer.listener.close()


@pytest.mark.parametrize("last_word", [b"", b"\x00\x01", b"\x00\x09\x00\x00", encode_return_path(ReturnPath.PONG, 3)])
def test_an_answer_lost_at_the_very_end_runs_the_vm_nowhere_by_itself(vm: Any, last_word: bytes) -> None:
    peer = Peer()
    state = {"at": 0}

    def say(sock: socket.socket, data: bytes) -> bool:
        if colo_until_the_end(sock, peer.got, state):
            sock.sendall(last_word)
            return True
        return False

    peer.serve(say)
    vm.resume()
    with MigrationSource(vm, MigrationSourceConfig(peer.to, deadlines=QUICK)) as it:
        with pytest.raises(ArbitrationError, match="stands still"):
            it.run()
        assert not vm.running
        assert it.status()["vm"] == "undecided" and it.status()["status"] == "failed"
        it.decide(destination_runs=False)
        assert it.status()["vm"] == "here"
        with pytest.raises(RuntimeError, match="not undecided"):
            it.decide(destination_runs=True)
    runs_on(vm)
    peer.listener.close()
