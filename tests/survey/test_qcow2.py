"""The VM state in qcow2 images: of a real QEMU's, and of images that lie."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from colo.errors import LimitExceeded, StreamError
from colo.survey import qcow2

IMAGE = lzma.decompress((Path(__file__).resolve().parents[1] / "vectors/inspect/7.2-snapshot.stream.xz").read_bytes())
SNAPSHOTS_AT = int.from_bytes(IMAGE[64:72], "big")


def opened(data: bytes) -> int:
    fd = os.memfd_create("image")
    os.write(fd, data)
    return fd


def edited(at: int, new: bytes) -> bytes:
    return IMAGE[:at] + new + IMAGE[at + len(new) :]


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "big")


@pytest.fixture(autouse=True)
def close_images():
    before = set(os.listdir("/proc/self/fd"))
    yield
    for fd in set(os.listdir("/proc/self/fd")) - before:
        try:
            if "memfd:image" in os.readlink(f"/proc/self/fd/{fd}"):
                os.close(int(fd))
        except OSError:
            pass


def test_a_snapshot_of_a_real_qemu_holds_a_stream():
    image = qcow2.read_qcow2(opened(IMAGE))
    (snapshot,) = image.snapshots
    assert snapshot.name == "snap"
    state = b"".join(qcow2.vm_state(image, snapshot))
    assert len(state) == snapshot.state_bytes
    assert state.startswith(b"QEVM")
    assert state.endswith(b"}]}]}")


def test_a_long_name_is_cut():
    (snapshot,) = qcow2.read_qcow2(opened(edited(SNAPSHOTS_AT + 14, b"\xff\xff"))).snapshots
    assert len(snapshot.name) <= qcow2.NAME_SHOWN
    assert snapshot.name.isprintable()


def test_an_image_without_snapshots():
    assert qcow2.read_qcow2(opened(edited(60, number(0)))).snapshots == ()


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        (b"QFI\xfb", StreamError, "no qcow2 header"),
        (edited(4, number(1)), StreamError, "version 1"),
        (edited(20, number(5)), StreamError, "2\\^5 bytes"),
        (edited(20, number(40)), StreamError, "2\\^40 bytes"),
        (edited(32, number(1)), StreamError, "encrypted"),
        (edited(72, number(1 << 40, 8)), StreamError, "incompatible features"),
        (edited(72, number(1 << 2, 8)), StreamError, "another file"),
        (edited(60, number(1 << 31)), LimitExceeded, "2147483648 snapshots"),
        (edited(60, number(60_000)), StreamError, "outside the file"),
        (edited(64, number(1 << 62, 8)), StreamError, "outside the file"),
        (edited(SNAPSHOTS_AT + 36, number(1 << 31)), StreamError, "2147483648 bytes of extra data"),
    ],
)
def test_headers_that_lie_are_refused(data, kind, says):
    with pytest.raises(kind, match=says):
        qcow2.read_qcow2(opened(data))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (edited(SNAPSHOTS_AT + 40, number(1 << 62, 8)), "in a file of"),  # the state's length
        (edited(SNAPSHOTS_AT, number(1 << 40, 8)), "outside the file"),  # its table's offset
        (edited(SNAPSHOTS_AT + 8, number(1 << 31)), "level-1 table of 2147483648 entries"),
        (edited(SNAPSHOTS_AT + 8, number(0)), "ends 172942 bytes before"),
    ],
)
def test_tables_that_lie_are_refused(data, says):
    image = qcow2.read_qcow2(opened(data))
    with pytest.raises(StreamError, match=says):
        for _ in qcow2.vm_state(image, image.snapshots[0]):
            pass


def test_clusters_outside_the_file_and_compressed_ones_are_refused():
    image = qcow2.read_qcow2(opened(IMAGE))
    snapshot = image.snapshots[0]
    span = image.cluster_bytes * image.cluster_bytes // 8
    entry_at = snapshot.l1_offset + 8 * -(-snapshot.disk_bytes // span)
    table_at = int.from_bytes(IMAGE[entry_at : entry_at + 8], "big") & 0x00FF_FFFF_FFFF_FE00
    for entry, says in ((number(1 << 50, 8), "outside the file"), (number(1 << 62, 8), "compressed clusters")):
        lying = qcow2.read_qcow2(opened(edited(table_at, entry)))
        with pytest.raises(StreamError, match=says):
            next(qcow2.vm_state(lying, lying.snapshots[0]))
    empty = qcow2.read_qcow2(opened(edited(table_at, bytes(8))))
    assert next(qcow2.vm_state(empty, empty.snapshots[0])) == bytes(image.cluster_bytes)


def test_a_pipe_cannot_be_sought_in():
    read_end, write_end = os.pipe()
    with pytest.raises(StreamError, match="not a pipe"):
        qcow2.read_qcow2(read_end)
    os.close(read_end)
    os.close(write_end)
