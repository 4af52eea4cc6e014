"""What is damaged, cut or made to look whole is not run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from typing import Any

import pytest

from colo.errors import ChannelError, ColoError
from colo.session.migration import MigrationDestination, MigrationDestinationConfig, MigrationSource, MigrationSourceConfig
from colo.stream.writer import end_of_stream, section_footer, vmdescription
from tests.session.migration.peer import Peer, stream_of
from tests.session.migration.target import QUICK, Target, runs_on
from tests.session.primary_vm import PAGE, PageVm


def test_what_is_damaged_while_the_vm_stands_still_is_not_run(vm: Any, target: Target) -> None:
    """Neither a page nor the device state; the VM goes on here."""
    random_page = os.urandom(PAGE)
    for planted, state in ((b"gadget", b"gadget" * 20), (random_page[:64], None)):
        peer = Peer()
        host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
        with socket.create_connection((host, int(port))) as far:
            near: list[socket.socket] = []

            def back(far: socket.socket = far, near: list[socket.socket] = near) -> None:
                with contextlib.suppress(OSError):
                    while data := far.recv(4096):
                        near[0].sendall(data)

            def say(
                sock: socket.socket, data: bytes, far: socket.socket = far, near: list[socket.socket] = near,
                planted: bytes = planted,
            ) -> bool:
                if not near:
                    near.append(sock)
                    threading.Thread(target=back, daemon=True).start()
                at = data.find(planted)
                far.sendall(data if at < 0 else data[: at + 3] + bytes((data[at + 3] ^ 4,)) + data[at + 4 :])
                return False

            thread = peer.serve(say)
            if state is not None:
                vm.save_state = lambda state=state: state
            else:
                del vm.save_state

                def write_page() -> None:  # though it should not: it is sent with the last pages
                    vm.views[1][:PAGE] = random_page

                vm.on_save = write_page
            vm.resume()
            with MigrationSource(vm, MigrationSourceConfig(peer.to, deadlines=QUICK)) as it, pytest.raises(ChannelError, match="SHUT 1"):
                it.run()
            assert "damaged on its way" in str(target.join()), target.outcome
            assert vm.running and not target.vm.running
            thread.join(10)
            peer.listener.close()
        target.thread = threading.Thread(target=target._run, daemon=True)
        target.thread.start()


def test_what_looks_like_the_end_is_not_enough(vm: Any, target: Target) -> None:
    """State that holds a footer, EOF and a vmdesc which fits: a cut right behind it must run the VM on one side only."""
    planted = b"12345678" + section_footer(1) + end_of_stream() + vmdescription(json.dumps({
        "page_size": 4096, "devices": [{
            "name": "colo/state", "instance_id": 0, "version": 1, "fields": [{"name": "state", "type": "buffer", "size": 8}],
        }]}).encode())
    vm.save_state = lambda: planted + bytes(32 << 20)  # more than sockets hold
    peer = Peer()
    host, port = target.destination.address.removeprefix("tcp:").rsplit(":", 1)
    far = socket.create_connection((host, int(port)))

    def back() -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(4096):
                near[0].sendall(data)

    near: list[socket.socket] = []

    def say(sock: socket.socket, data: bytes) -> bool:
        if not near:
            near.append(sock)
            threading.Thread(target=back, daemon=True).start()
        at = peer.got.find(planted)
        if at < 0:
            far.sendall(data)
            return False
        before = len(peer.got) - len(data)
        far.sendall(bytes(peer.got[before : at + len(planted)]))
        return True  # cut

    thread = peer.serve(say)
    vm.resume()
    with MigrationSource(vm, MigrationSourceConfig(peer.to, deadlines=QUICK)) as it, pytest.raises(ChannelError):
        it.run()
    thread.join(10)
    time.sleep(0.1)
    far.shutdown(socket.SHUT_WR)
    assert isinstance(target.join(), ColoError), target.outcome
    runs_on(vm)
    far.close()
    peer.listener.close()


def test_a_damaged_or_cut_stream_never_runs_what_did_not_arrive() -> None:
    draw = random.Random(5)
    source = PageVm(4)
    source.advance()
    whole = stream_of(source)
    source.close()
    vm = PageVm(4)
    with MigrationDestination(vm, MigrationDestinationConfig("tcp:127.0.0.1:0", deadlines=QUICK)) as destination:
        host, port = destination.address.removeprefix("tcp:").rsplit(":", 1)
        outcomes = []
        for n in range(150):
            data = bytearray(whole)
            cut = n % 2 == 0
            if cut:
                del data[draw.randrange(8, len(data)) :]
            else:
                at = draw.randrange(8, len(data))
                data[at] ^= 1 << draw.randrange(8)
            vm.pause()
            vm.turn = -1

            def send(data: bytes = bytes(data)) -> None:
                with socket.create_connection((host, int(port))) as sock, contextlib.suppress(OSError):
                    sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass

            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            try:
                outcomes.append(destination.run())
                # Damage to a page, the machine's name or the vmdesc's text; never to the device state.
                assert not cut
                assert vm.running and vm.turn == 1
            except ColoError as error:
                outcomes.append(error)
                assert not vm.running and vm.turn == -1
            thread.join(10)
    vm.close()
    assert sum(isinstance(each, ColoError) for each in outcomes) > 75
