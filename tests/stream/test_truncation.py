"""A stream cut anywhere ends in a clean error that says where."""

from __future__ import annotations

import socket

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import ChannelLost, StreamError, Truncated
from colo.stream import DeviceCheck, check_device_blob, read_devices


def test_truncation_at_every_byte_of_a_whole_stream(vector, consume):
    data = vector("7.2-none")
    state = consume(data).device_state()
    whole_without_vmdesc = state.offset + len(state.blob)
    for cut in range(len(data)):
        if cut == whole_without_vmdesc:
            continue  # as with suppress-vmdesc
        with pytest.raises(Truncated) as caught:
            list(consume(data[:cut]).items())
        assert caught.value.offset == cut


def test_truncation_at_every_byte_of_the_device_sections(vector, consume):
    state = consume(vector("7.2-microvm")).device_state()
    for cut in range(1, len(state.blob)):
        with pytest.raises(Truncated) as caught:
            read_devices(ReadBuffer.from_bytes(state.blob[:cut]))
        assert caught.value.offset == cut


def test_truncation_at_every_byte_of_a_checkpoint_blob(vector, consume):
    state = consume(vector("7.2-microvm")).device_state()
    check = DeviceCheck(state.sections)
    for cut in range(len(state.blob)):
        with pytest.raises(StreamError):
            check.check(state.blob[:cut])
        with pytest.raises(StreamError):
            check_device_blob(state.blob[:cut])


@pytest.mark.parametrize("name", ["7.2-none", "7.2-microvm", "7.2-pc-ignore-shared"])
def test_a_socket_closed_in_the_middle_is_a_lost_channel(name, vector, consume):
    data = vector(name)
    state = consume(data).device_state()
    whole_without_vmdesc = state.offset + len(state.blob)
    for cut in range(3, len(data), len(data) // 40):
        if cut == whole_without_vmdesc:
            continue
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.sendall(data[:cut])
            theirs.close()
            # In device data the end may be noticed while looking for a footer: that is the data's truncation.
            with pytest.raises((ChannelLost, Truncated)):
                list(consume(ReadBuffer(ours.fileno())).items())
