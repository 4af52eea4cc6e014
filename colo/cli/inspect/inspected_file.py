"""What ``colo inspect`` is given: a file or standard input, with whatever is put around the stream in it."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from colo._fast.receive.buffers import ReadBuffer
from colo.cli.inspect.inspection import Inspection, problem_row
from colo.errors import ColoError, StreamError
from colo.survey.envelope import compression_of, decompressed, fed, read_libvirt_header
from colo.survey.page_size import stated_at_the_end
from colo.survey.qcow2 import MAGIC as QCOW2_MAGIC
from colo.survey.qcow2 import Qcow2, Snapshot, read_qcow2, vm_state
from colo.wire import FILE_MAGIC

LAYERS_MAX = 4
SNAPSHOTS_SHOWN = 64
_STREAM = FILE_MAGIC.to_bytes(4, "big")


def examine(
    path: str, *, max_ram_bytes: int = 1 << 40, device: str = "", snapshot: str | None = None
) -> tuple[dict[str, Any], ColoError | None]:
    """What is in the file ``path`` (``-``: standard input), and the error that ends it, or the first of those that did
    not. Raises StreamError when it cannot be opened."""
    layers: list[dict[str, Any]] = []
    inspection: Inspection | None = None
    error: ColoError | None = None
    with _opened(path) as fd, ExitStack() as unwrapping:
        try:
            buf, page_bytes = _unwrap(fd, layers, snapshot, unwrapping)
            inspection = Inspection(buf, max_ram_bytes=max_ram_bytes, device=device, page_bytes=page_bytes)
            inspection.read()
            unwrapping.close()  # tells of damaged compressed data
        except ColoError as caught:
            error = caught
            try:
                unwrapping.__exit__(type(caught), caught, caught.__traceback__)
            except ColoError as cause:
                error = cause
    found: dict[str, Any] = {"file": layers} | (inspection or Inspection(ReadBuffer.from_bytes(b""))).found
    if error is not None:
        found["error"] = problem_row(error)
    elif inspection is not None and inspection.first_problem is not None:
        error = inspection.first_problem
        found["error"] = problem_row(error)
    return found, error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    if path == "-":
        try:
            fd = sys.stdin.fileno()
            os.fstat(fd)
        except (AttributeError, ValueError, OSError):
            raise StreamError("standard input is closed: give it a stream, or name a file", where="-") from None
        yield fd
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StreamError(f"cannot be read: {reason}", where=path) from None
    try:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise StreamError("is a directory: name the file in it", where=path)
        yield fd
    finally:
        os.close(fd)


def _unwrap(
    fd: int, layers: list[dict[str, Any]], snapshot: str | None, stack: ExitStack
) -> tuple[ReadBuffer, int | None]:
    """A reader that stands at the stream's first byte, and the page size that the end of the file states."""
    buf = ReadBuffer(fd)
    plain = True
    for _ in range(LAYERS_MAX):
        start = buf.peek(16)
        if start.startswith(_STREAM):
            break
        offset = buf.position
        header = read_libvirt_header(buf)
        if header is not None:
            whole = "" if header.whole else ", NOT whole: the save did not come to its end"
            ran = "running" if header.was_running else "paused"
            layers.append(
                {
                    "offset": offset,
                    "kind": "libvirt",
                    "text": f"libvirt's header, version {header.version}: domain '{header.domain}', {ran}, "
                    f"{header.xml_bytes} bytes of XML, format {header.format}{whole}",
                    "domain": header.domain,
                    "format": header.format,
                    "whole": header.whole,
                }
            )
            continue
        kind = compression_of(start)
        if kind is not None:
            layers.append({"offset": offset, "kind": kind, "text": f"compressed with {kind}: offsets are of what it holds"})
            buf = stack.enter_context(decompressed(buf, kind))
            plain = False
            continue
        if start.startswith(QCOW2_MAGIC) and plain and not offset:
            buf = _snapshot_of(fd, layers, snapshot, stack)
            plain = False
        break
    if snapshot is not None and not any(layer["kind"] == "qcow2" for layer in layers):
        raise StreamError("--snapshot is for qcow2 images, which this is not", where="file")
    return buf, stated_at_the_end(fd) if plain else None


def _snapshot_of(fd: int, layers: list[dict[str, Any]], wanted: str | None, stack: ExitStack) -> ReadBuffer:
    image = read_qcow2(fd)
    for each in image.snapshots[:SNAPSHOTS_SHOWN]:
        state = f"{each.state_bytes} bytes of VM state" if each.state_bytes else "no VM state"
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.date_s))
        layers.append(
            {
                "offset": None,
                "kind": "qcow2",
                "text": f"qcow2 snapshot {each.id} '{each.name}' of {when}: {state}",
                "id": each.id,
                "name": each.name,
                "state_bytes": each.state_bytes,
            }
        )
    chosen = _chosen(image, wanted)
    layers.append(
        {
            "offset": None,
            "kind": "qcow2",
            "text": f"VM state of snapshot '{chosen.name}': offsets are of it",
            "id": chosen.id,
            "name": chosen.name,
            "state_bytes": chosen.state_bytes,
        }
    )
    return stack.enter_context(_state_of(image, chosen))


def _chosen(image: Qcow2, wanted: str | None) -> Snapshot:
    with_state = [each for each in image.snapshots if each.state_bytes]
    if wanted is not None:
        with_state = [each for each in with_state if wanted in (each.id, each.name)]
        if not with_state:
            raise StreamError(f"the image has no snapshot '{wanted}' with VM state", where="qcow2", value=wanted)
    if not with_state:
        raise StreamError(
            "the image has no internal snapshot with VM state (savevm, snapshot-save make one): nothing to inspect",
            where="qcow2",
        )
    if len(with_state) > 1:
        names = ", ".join(each.name for each in with_state[:8])
        raise StreamError(f"several snapshots have VM state: choose with --snapshot NAME ({names})", where="qcow2")
    return with_state[0]


@contextmanager
def _state_of(image: Qcow2, snapshot: Snapshot) -> Iterator[ReadBuffer]:
    failure: list[Exception] = []
    with fed(vm_state(image, snapshot), failure) as inner:
        try:
            yield inner
        except StreamError as error:
            if failure and isinstance(failure[0], ColoError):
                raise failure[0] from error
            raise
    if failure:
        raise failure[0]
