"""What a RAM directory keeps of the committed checkpoint, read back by another object as another process would."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

import pytest

from colo._fast.kernels.ramblock import RamBlock
from colo._fast.receive.staging import Staging
from colo.errors import StorageError
from colo.memory import KeptCopy, Phase, RamImage
from colo.memory.decision import RECORD_BYTES, SLOT_BYTES, decode_record, latest
from colo.memory.kept_copy import DECISION, LOG
from tests.session.scripted_primary import BLOCKS as SCRIPTED
from tests.session.scripted_primary import PAGE, Peer, devices, epoch, page, raw

BLOCKS = (("pc.ram", 16 * PAGE), ("pc.bios", 2 * PAGE))


def commit(kept: KeptCopy, number: int, extent: tuple[int, int, int] = (0, 0, 0)) -> None:
    kept.prepare(number, "pc-test", 2, devices(number), BLOCKS, 0)
    kept.commit(extent)


@pytest.fixture
def kept(tmp_path: Path) -> KeptCopy:
    return KeptCopy(tmp_path)


def test_an_empty_directory_holds_nothing(tmp_path: Path, kept: KeptCopy) -> None:
    assert kept.record is None
    assert list(tmp_path.iterdir()) == []


def test_each_commit_is_found_with_all_its_parts(tmp_path: Path, kept: KeptCopy) -> None:
    for number in range(7):
        commit(kept, number, (number, 10 * number, 0))
        found = KeptCopy(tmp_path)
        assert found.record == kept.record and found.record is not None
        assert found.record.checkpoint == number
        assert found.record.phase is (Phase.REPLAY if number else Phase.WHOLE)
        assert found.device_state() == devices(number)
        assert found.description is not None and found.description.blocks == BLOCKS
        assert found.description.machine == "pc-test"
    kept.replayed()
    assert KeptCopy(tmp_path).record is not None
    assert KeptCopy(tmp_path).record.phase is Phase.WHOLE  # type: ignore[union-attr]


def test_a_write_of_the_record_cut_short_at_any_byte_leaves_the_one_before(tmp_path: Path, kept: KeptCopy) -> None:
    commit(kept, 1)
    commit(kept, 2)
    path = kept.path / DECISION
    before = path.read_bytes()
    commit(kept, 3)
    after = path.read_bytes()
    changed = [n for n in range(len(after)) if before[n] != after[n]]
    at = changed[0] // SLOT_BYTES * SLOT_BYTES
    for cut in range(0, RECORD_BYTES + 1, 7):
        path.write_bytes(before[:at] + after[at : at + cut] + before[at + cut :])
        found = KeptCopy(tmp_path)
        whole = cut > changed[-1] - at
        assert found.record is not None and found.record.checkpoint == (3 if whole else 2), cut
        assert found.device_state() == devices(3 if whole else 2)


def test_prepared_and_not_committed_changes_nothing(tmp_path: Path, kept: KeptCopy) -> None:
    commit(kept, 1)
    kept.prepare(2, "pc-other", 3, devices(2), (("other", PAGE),), 1)
    found = KeptCopy(tmp_path)
    assert found.record is not None and found.record.checkpoint == 1
    assert found.device_state() == devices(1)
    assert found.description is not None and found.description.machine == "pc-test"


@pytest.mark.parametrize("name", ["decision", "device.1", "description.0"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty", "gone"])
def test_a_damaged_part_is_named_and_never_taken_for_none(tmp_path: Path, kept: KeptCopy, name: str, how: str) -> None:
    commit(kept, 1)
    commit(kept, 2)
    path = kept.path / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2] if name != DECISION else data[:100])
    else:
        path.write_bytes(bytes(byte ^ 0x55 if n % 16 == 3 else byte for n, byte in enumerate(data)))
    if name == DECISION and how in ("gone", "empty"):
        assert KeptCopy(tmp_path).record is None  # nothing was decided
        return
    with pytest.raises(StorageError) as error:
        KeptCopy(tmp_path).device_state()
    assert str(path) in str(error.value)
    assert "colo discard" in str(error.value)


def test_lengths_that_a_record_may_not_have_are_refused_before_they_are_read(tmp_path: Path, kept: KeptCopy) -> None:
    commit(kept, 1)
    for change in ({"device_bytes": 1 << 62}, {"description_bytes": 1 << 62}):
        kept.change(**change)
        with pytest.raises(StorageError, match="more than"):
            KeptCopy(tmp_path).device_state()


def test_a_record_is_none_with_any_bit_changed(kept: KeptCopy) -> None:
    commit(kept, 1)
    assert kept.record is not None
    data = kept.record.encode()
    assert decode_record(data) == kept.record
    for n in range(0, RECORD_BYTES * 8, 5):
        bad = bytearray(data)
        bad[n // 8] ^= 1 << n % 8
        assert decode_record(bytes(bad)) is None
    assert latest(data) == kept.record
    assert latest(b"") is None



@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_storage_that_fails_keeps_what_is_committed(
    tmp_path: Path, kept: KeptCopy, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    commit(kept, 1)
    write = os.pwrite

    def failing(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 10:
            return write(fd, memoryview(data)[:10], offset)  # a part of it, as a disk that fills does
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(StorageError, match=r"copy/device\.1: .*") as error:
        commit(kept, 2)
    monkeypatch.undo()
    assert os.strerror(code) in str(error.value)
    assert kept.record is not None and kept.record.checkpoint == 1
    assert KeptCopy(tmp_path).device_state() == devices(1)
    commit(kept, 2)
    assert KeptCopy(tmp_path).device_state() == devices(2)


# -- with the image and the redo log


def test_an_image_that_was_never_committed_leaves_nothing(tmp_path: Path) -> None:
    with RamImage(tmp_path / "ram") as image:
        image.announce([("pc.ram", PAGE)])
    assert not (tmp_path / "ram").exists()


def copy_of(directory: Path, to: Path) -> Path:
    """The files as another process would find them were this one killed now."""
    to.mkdir(mode=0o700)
    for folder, _, names in os.walk(directory):
        where = to / Path(folder).relative_to(directory)
        where.mkdir(mode=0o700, exist_ok=True)
        for name in names:
            source = Path(folder, name)
            if source.is_file():
                (where / name).write_bytes(source.read_bytes())
    return to


def memory_of(image: RamImage) -> dict[str, bytes]:
    return {b.idstr: image.path(b.idstr).read_bytes()[: b.used_length] for b in image.blocks}


def test_the_log_of_a_killed_process_is_replayed(tmp_path: Path) -> None:
    """Killed when a checkpoint is committed and nothing of it replayed, a part, all, and while the next is staged."""
    directory = committed_and_not_replayed(tmp_path)
    wanted = {name: bytearray(length) for name, length in SCRIPTED}
    for n in range(16):
        wanted["pc.ram"][n * PAGE : (n + 1) * PAGE] = page(n)
    wanted["/rom@etc/acpi/tables"][:PAGE] = page(100)
    before = {name: bytes(data) for name, data in wanted.items()}
    for offset, number in ((PAGE, 90), (5 * PAGE, 91)):
        wanted["pc.ram"][offset : offset + PAGE] = page(number)
    after = {name: bytes(data) for name, data in wanted.items()}
    half = copy_of(directory, tmp_path / "half")
    ram = bytearray((half / "blocks" / "pc.ram").read_bytes())
    assert bytes(ram) == before["pc.ram"]
    ram[PAGE : 2 * PAGE] = page(90)
    ram[5 * PAGE : 5 * PAGE + 100] = page(91)[:100]
    (half / "blocks" / "pc.ram").write_bytes(ram)
    for where in (directory, half):
        for _ in range(2):  # whoever comes after that finds it replayed
            with RamImage(where) as image:
                record = image.kept.record
                assert record is not None and record.checkpoint == 1 and record.phase is Phase.WHOLE
                assert image.kept.device_state() == devices(1)
                assert memory_of(image) == after


def test_what_is_staged_for_the_next_checkpoint_is_no_part_of_the_last(tmp_path: Path) -> None:
    with Peer(tmp_path) as peer:
        peer.begin()
        peer.checkpoint(raw(0, 77), {0: page(77)})
        peer.request()
        peer.send(epoch(raw(0, 55) + raw(PAGE, 56, None), 2)[:-30])
        until = time.monotonic() + 10
        while peer.ram.staging.records < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert peer.ram.staging.records == 2
        killed = copy_of(peer.image.directory, tmp_path / "killed")
        with RamImage(killed) as image:
            assert image.kept.record is not None and image.kept.record.checkpoint == 1
            assert memory_of(image) == {name: bytes(data) for name, data in peer.memory.items()}


def test_a_first_copy_beside_a_held_one_takes_its_place_when_it_is_committed(tmp_path: Path) -> None:
    directory = committed_and_not_replayed(tmp_path)
    with RamImage(directory) as image:
        held = memory_of(image)
        image.begin()
        [ram, _] = image.announce(SCRIPTED)
        assert ram.memory_buffer is not None
        ram.memory_buffer[:PAGE] = page(1000)  # type: ignore[index]
        killed = copy_of(directory, tmp_path / "killed meanwhile")
        image.forget()
        assert memory_of(image) == held
        image.begin()
        blocks = image.announce(SCRIPTED)
        blocks[0].memory_buffer[:PAGE] = page(1001)  # type: ignore[index]
        image.prepare(0, "pc-test", 2, devices(0), blocks)
        image.commit(blocks)
        assert sorted(p.name for p in directory.iterdir() if p.name.startswith("blocks")) == ["blocks-2"]
    with RamImage(killed) as image:
        assert memory_of(image) == held
        assert not (killed / "blocks-2").exists()
    with RamImage(directory) as image:
        assert image.kept.record is not None and image.kept.record.checkpoint == 0
        assert memory_of(image)["pc.ram"][:PAGE] == page(1001)


@pytest.mark.parametrize("damage", ["log.entries short", "log short", "block", "offset", "kind", "data", "blocks short"])
def test_a_damaged_log_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    directory = committed_and_not_replayed(tmp_path)
    entries = directory / "copy" / LOG[1]
    path = entries
    if damage == "log.entries short":
        entries.write_bytes(entries.read_bytes()[:24])
    elif damage == "log short":
        path = directory / "copy" / LOG[0]
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "blocks short":
        path = directory / "blocks" / "pc.ram"
        path.write_bytes(path.read_bytes()[:PAGE])
    else:
        offset, data, length, block, kind = struct.unpack("=QQIHH", entries.read_bytes()[:24])
        offset = 1 << 60 if damage == "offset" else offset
        data = 1 << 60 if damage == "data" else data
        block = 9 if damage == "block" else block
        kind = 9 if damage == "kind" else kind
        raw_entries = entries.read_bytes()
        entries.write_bytes(struct.pack("=QQIHH", offset, data, length, block, kind) + raw_entries[24:])
    with pytest.raises(StorageError) as error:
        RamImage(directory)
    assert str(path) in str(error.value)
    assert entries.exists(), "what cannot be read is not deleted either"
    with RamImage(directory, discard=True) as image:
        assert image.kept.record is None
    assert not (directory / "copy").exists()


def committed_and_not_replayed(tmp_path: Path) -> Path:
    """A directory whose process was killed right after a commit with two raw pages."""
    with Peer(tmp_path) as peer:
        peer.begin()
        apply = peer.ram._apply

        def apply_later(*, first: bool) -> None:
            assert peer.last.committed is not None
            if peer.last.committed.number == 1:
                copy_of(peer.image.directory, tmp_path / "killed")
            apply(first=first)

        peer.ram._apply = apply_later  # type: ignore[method-assign]
        peer.checkpoint(raw(PAGE, 90) + raw(5 * PAGE, 91, None), {PAGE: page(90), 5 * PAGE: page(91)})
        peer.sock.close()
        peer.finish()
        peer.ram.settle()
    return tmp_path / "killed"


def test_a_log_in_files_is_the_one_in_memory(tmp_path: Path) -> None:
    """The same records staged both ways: entries, replay, and what another Staging adopts."""
    files = tuple(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in LOG)
    memory = bytearray(16 * PAGE)
    block = RamBlock("pc.ram", len(memory), memory=memory)
    staging = Staging((files[0], files[1], files[2]))
    staging.begin([block])
    assert staging.extent == (0, 0, 0)
    with pytest.raises(StorageError, match="was cut short"):
        staging.adopt([block], 1 << 20, 0, 0)
    with pytest.raises(StorageError, match="more than its RAM blocks"):
        os.ftruncate(files[0], 1 << 40)
        staging.adopt([block], 0, 1 << 40, 0)
    for fd in files:
        os.close(fd)
