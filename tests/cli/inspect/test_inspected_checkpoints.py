"""The checkpoints that `colo inspect` shows: read by the protocol's table, and nothing but what that expects."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import pytest

from colo._fast.receive.buffers import ReadBuffer
from colo.cli.inspect.inspection import Inspection
from colo.cli.inspect.observer import Observer
from colo.errors import LimitExceeded, StreamError, Truncated
from colo.protocol import Event, Reads, State, encode_message
from colo.protocol.words import FROM_PEER
from colo.wire import ColoMessage

VECTOR = Path(__file__).resolve().parents[2] / "vectors" / "7.2-colo.stream.xz"


@pytest.fixture(scope="module")
def captured() -> bytes:
    return lzma.decompress(VECTOR.read_bytes())


def inspected(data: bytes) -> dict[str, Any]:
    inspection = Inspection(ReadBuffer.from_bytes(data))
    inspection.read()
    return inspection.found


def size_message(data: bytes, number: int = 0) -> tuple[int, bytes]:
    """Where VMSTATE_SIZE of a checkpoint is, and it."""
    row = inspected(data)["checkpoints"][number]
    message = encode_message(ColoMessage.VMSTATE_SIZE, row["device_state_bytes"])
    return data.index(message, row["offset"]), message


def test_a_secondarys_own_steps_count_as_done() -> None:
    observer = Observer()
    assert observer.state is State.IDLE and observer.reads is Reads.MESSAGE
    steps = (
        (Event.CHECKPOINT_REQUEST, Reads.MESSAGE), (Event.VMSTATE_SEND, Reads.STREAM), (Event.SWITCHOVER_START, Reads.STREAM),
        (Event.RAM_STAGED, Reads.MESSAGE), (Event.CHECKPOINT_DIGEST, Reads.MESSAGE), (Event.VMSTATE_SIZE, Reads.DEVICE),
        (Event.DEVICE_RECEIVED, Reads.MESSAGE),
    )
    for event, reads in steps:
        observer.see(event)
        assert observer.reads is reads
    assert observer.state is State.IDLE


@pytest.mark.parametrize("event", sorted(FROM_PEER - {Event.CHECKPOINT_REQUEST}, key=lambda each: each.value))
def test_between_checkpoints_a_primary_says_nothing_but_request(event: Event) -> None:
    observer = Observer()
    with pytest.raises(StreamError, match=f"{event.value}, expected checkpoint-request"):
        observer.see(event, offset=7)


def test_a_digest_is_part_of_a_checkpoint(captured: bytes) -> None:
    """Two colo ends may have agreed on it; only the answer, which is not here, would tell."""
    at, _ = size_message(captured)
    digest = encode_message(ColoMessage.CHECKPOINT_DIGEST, 1 << 100)
    before, found = inspected(captured), inspected(captured[:at] + digest + captured[at:])
    assert len(found["checkpoints"]) == len(before["checkpoints"]) and not found["errors"]
    assert found["checkpoints"][0]["length_bytes"] == before["checkpoints"][0]["length_bytes"] + len(digest)


def test_a_message_out_of_its_order_is_told_with_its_place(captured: bytes) -> None:
    at, message = size_message(captured)
    with pytest.raises(StreamError, match="checkpoint-request, expected vmstate-size or checkpoint-digest") as caught:
        inspected(captured[:at] + encode_message(ColoMessage.CHECKPOINT_REQUEST) + captured[at + len(message):])
    assert caught.value.offset == at


@pytest.mark.parametrize(("number", "error"), [(0, StreamError), (1 << 40, LimitExceeded)])
def test_no_size_is_believed(captured: bytes, number: int, error: type[StreamError]) -> None:
    at, message = size_message(captured)
    wrong = message[:4] + number.to_bytes(8, "big")
    with pytest.raises(error):
        inspected(captured[:at] + wrong + captured[at + len(message):])


def test_a_channel_may_end_between_checkpoints_and_when_one_was_only_asked_for(captured: bytes) -> None:
    rows = inspected(captured)["checkpoints"]
    end = rows[0]["offset"] + rows[0]["length_bytes"]
    assert [row["number"] for row in inspected(captured[:end])["checkpoints"]] == [1]
    asked = inspected(captured[: end + 4])["checkpoints"]
    assert [row["number"] for row in asked] == [1, 2] and "length_bytes" not in asked[1]
    at, message = size_message(captured)
    for cut in (end + 8, at, at + len(message), end - 1):
        with pytest.raises(Truncated):
            inspected(captured[:cut])
