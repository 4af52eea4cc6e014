"""Device state: the FULL sections of a stream, read from a channel, or checked as a blob on the pause
path."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from colo.errors import LimitExceeded, StreamError
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.stream.commands import payload_fits
from colo.stream.delimit import FOOTER_BYTES, DeviceScan, End
from colo.stream.names import encode_name
from colo.stream.resync import START_HEADER_MAX, header_ends
from colo.stream.sections import DeviceSection, DeviceState
from colo.stream.writer import end_of_stream, section_footer, section_full
from colo.vmdesc.document import read_vmdesc
from colo.vmdesc.records import Vmdesc, VmdescDevice
from colo.wire import RAM_IDSTR, ColoMessage, Command, SectionType

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer

WHERE = "device state"
_COMMANDS = frozenset(Command)
_SEAM_NAME = FOOTER_BYTES + 1 + 4
"""Where the next section's name, with its length, stands behind the start of a footer."""
_CHUNK_BYTES = 1 << 18
_LOOKAHEAD_BYTES = 64
_COLO_FOLLOWS = b"".join(
    message.to_bytes(4, "big") for message in (ColoMessage.CHECKPOINT_REQUEST, ColoMessage.VMSTATE_SEND)
)


def check_device_blob(
    blob: bytes,
    expect_names: Collection[str] | None = None,
    *,
    expect_devices: Collection[tuple[str, int]] | None = None,
    limits: StreamLimits = DEFAULT_LIMITS,
) -> tuple[DeviceSection, ...]:
    """Check a checkpoint's device state, FULL sections up to an EOF that is its last byte, and return the
    sections.

    ``expect_names``: the idstrs the first stream had; ``expect_devices``: its (idstr, instance) pairs. None
    missing and none new, in any order. Raises StreamError (empty, not sections, EOF missing or early, other
    devices), LimitExceeded. Runs while the primary's VM stands still: one pass at memory speed, then one step
    per section. QEMU, which has no such check before it loads:
    migration/colo.c:colo_incoming_process_checkpoint.
    """
    if len(blob) > limits.device_state_bytes:
        raise LimitExceeded(
            f"{len(blob)} bytes, at most {limits.device_state_bytes}", where=WHERE, offset=0, value=len(blob)
        )
    if not blob or blob[0] == SectionType.EOF:
        raise StreamError("there is no device section in it", where=WHERE, offset=0, value=len(blob))
    devices = None if expect_devices is None else frozenset(expect_devices)
    names = frozenset(name for name, _ in devices) if devices is not None else expect_names
    scan = DeviceScan(blob, limits, names=names)
    if not scan.open_first():
        raise scan.unfinished()
    scan.run_through()
    footer = len(blob) - FOOTER_BYTES - 1
    if blob[-1] == SectionType.EOF and blob[footer] == SectionType.FOOTER:
        for sections in scan.readings(footer):
            if names is None or names == {s.idstr for s in sections}:
                found = {s.key for s in sections}
                if devices is None or devices == found:
                    return sections
    raise _why_refused(blob, limits, expect_names, devices)


class DeviceCheck:
    """Checks the device state of checkpoint after checkpoint against the sections of the first stream.

    A QEMU process keeps its section ids and their order, so each footer with the header behind it is known
    bytes, and a blob is checked by finding one after the other. A blob that differs is left to
    :func:`check_device_blob`.
    """

    def __init__(self, sections: Sequence[DeviceSection], limits: StreamLimits = DEFAULT_LIMITS) -> None:
        if not sections:
            raise StreamError("the first stream has no device section", where=WHERE)
        self._sections = tuple(sections)
        self._limits = limits
        self._keys = frozenset(section.key for section in sections)
        headers = [
            section_full(s.section_id, s.idstr, instance_id=s.instance_id, version_id=s.version_id)
            for s in sections
        ]
        footers = [section_footer(s.section_id) for s in sections]
        self._first = headers[0]
        # The name is what is looked for: text skips through binary data several times faster than a pattern
        # of NULs.
        self._seams = [
            (encode_name(section.idstr), footer + header)
            for section, footer, header in zip(sections[1:], footers, headers[1:], strict=False)
        ]
        self._last = footers[-1] + end_of_stream()

    def check(self, blob: bytes) -> tuple[DeviceSection, ...]:
        """The sections of ``blob``. Raises as :func:`check_device_blob` does."""
        bounds = self._bounds(blob)
        if bounds is None:
            return check_device_blob(blob, expect_devices=self._keys, limits=self._limits)
        return tuple(
            DeviceSection(
                known.section_id, known.idstr, known.instance_id, known.version_id, start, stop - start
            )
            for known, start, stop in zip(self._sections, *bounds, strict=True)
        )

    def verify(self, blob: bytes) -> None:
        """As :meth:`check`, for those who do not need the sections: on the pause path each record counts."""
        if self._bounds(blob) is None:
            check_device_blob(blob, expect_devices=self._keys, limits=self._limits)

    def _bounds(self, blob: bytes) -> tuple[list[int], list[int]] | None:
        """Where the bodies start and where they end; None if ``blob`` is not laid out as the first was."""
        if (
            len(blob) > self._limits.device_state_bytes
            or not blob.startswith(self._first)
            or not blob.endswith(self._last)
        ):
            return None
        body = len(self._first)
        bodies = [body]
        ends = []
        for name, seam in self._seams:
            footer = blob.find(name, body + _SEAM_NAME) - _SEAM_NAME
            while footer >= 0 and not blob.startswith(seam, footer):
                footer = blob.find(name, footer + _SEAM_NAME + 1) - _SEAM_NAME
            if footer < 0:
                return None
            ends.append(footer)
            body = footer + len(seam)
            bodies.append(body)
        ends.append(len(blob) - len(self._last))
        return (bodies, ends) if body <= ends[-1] else None


def _why_refused(
    blob: bytes,
    limits: StreamLimits,
    names: Collection[str] | None,
    devices: Collection[tuple[str, int]] | None,
) -> StreamError:
    """The reason, found without the expectation: off the fast path."""
    scan = DeviceScan(blob, limits)
    scan.open_first()
    scan.run_through()
    footer = len(blob) - FOOTER_BYTES - 1
    if blob[-1] == SectionType.EOF and blob[footer] == SectionType.FOOTER:
        sections = next(scan.readings(footer), None)
        if sections is not None:
            found: set[object] = {s.key if devices is not None else s.idstr for s in sections}
            expected: set[object] = set(devices if devices is not None else names or ())
            differences = [
                f"{word} {', '.join(map(str, sorted(items, key=str)[:8]))}"
                for word, items in (("missing", expected - found), ("new", found - expected))
                if items
            ]
            if differences:
                return StreamError(
                    "not the devices of the first stream: " + "; ".join(differences),
                    where=WHERE,
                    offset=0,
                    value=sorted(map(str, expected ^ found)),
                )
    error = scan.unfinished()
    end = scan.find_end()
    while end is not None:
        if end.type == SectionType.EOF and next(scan.readings(end.footer), None) is not None:
            extra = len(blob) - end.next - 1
            if extra:
                return StreamError(
                    f"{extra} bytes follow the EOF", where=WHERE, offset=end.next + 1, value=extra
                )
        end = scan.find_end()
    return error


def read_devices(
    buf: ReadBuffer,
    limits: StreamLimits = DEFAULT_LIMITS,
    *,
    live: Collection[int] | None = None,
    earlier: Sequence[DeviceSection] = (),
    packaged: bool = False,
    may_have_vmdesc: bool = True,
) -> DeviceState:
    """Read FULL sections, from the type byte of the first up to EOF, and the vmdesc when one follows.

    ``live`` are the ids of live sections that have not ended, or None when there are none to come: with it,
    the run also ends (``complete`` False) where one of them or the ``ram`` section goes on, or a COMMAND
    follows; with ``packaged`` also where the data end. ``earlier`` are sections of the same stream that have
    been read before: the vmdesc names them too. Behind EOF at most ``limits.quiet_ms`` are waited for a
    vmdesc.

    Never reads past the end of the run, and holds at most ``limits.device_state_bytes`` of it. Raises
    StreamError if the bytes are not sections, or if every way to split them disagrees with the vmdesc;
    LimitExceeded.
    """
    base = buf.position
    data = bytearray()
    scan, end = collect_run(buf, data, limits, live=live, packaged=packaged)
    complete = end.type == SectionType.EOF
    vmdesc = read_vmdesc_if_any(buf, limits) if complete and may_have_vmdesc else None
    if vmdesc is None:
        found = scan.readings(end.footer)
        sections = next(found, None)
        if sections is None:
            raise scan.unfinished()
        return DeviceState(base, bytes(data), sections, complete, None, next(found, None) is not None)
    return DeviceState(
        base, bytes(data), agreeing_sections(scan, end.footer, vmdesc, earlier), complete, vmdesc
    )


def collect_run(
    buf: ReadBuffer,
    data: bytearray,
    limits: StreamLimits,
    *,
    live: Collection[int] | None = None,
    packaged: bool = False,
    any_start: bool = False,
) -> tuple[DeviceScan, End]:
    """Read a run of FULL sections into ``data``, as :func:`read_devices` does; the scan and the run's last footer.

    ``any_start``: the run also ends where a live section of any name starts. On an error ``data`` holds what was
    read of the run.
    """
    base = buf.position
    scan = DeviceScan(data, limits, base=base)
    opened = False
    while True:
        end = scan.find_end() if opened else None
        if end is None:
            # All that is in data is the run's, so it may be consumed; what came since may then be looked at.
            buf.skip(base + len(data) - buf.position)
            if buf.at_end():
                end = scan.end_without_item() if packaged and opened else None
                if end is None:
                    raise scan.unfinished()
                break
            room = limits.device_state_bytes - len(data)
            if room <= 0:
                raise LimitExceeded(
                    f"no end within {limits.device_state_bytes} bytes",
                    where=WHERE,
                    offset=buf.position,
                    value=limits.device_state_bytes,
                )
            data += buf.peek(min(buf.available, _CHUNK_BYTES, room))
            opened = opened or scan.open_first()
            continue
        run_end = end.next + (end.type == SectionType.EOF)
        near = len(data) - run_end < _LOOKAHEAD_BYTES
        ahead = bytes(data[run_end : run_end + _LOOKAHEAD_BYTES])
        if near:
            del data[run_end:]
            buf.skip(base + len(data) - buf.position)
        peek = buf.peek if near else _peek_in(ahead)
        if end.type == SectionType.EOF:
            ends = (near and _nothing_follows(buf, limits)) or _follows_eof(peek)
        else:
            ends = live is not None and _goes_on(end.type, peek, live, any_start)
        if ends:
            del data[run_end:]
            buf.skip(base + len(data) - buf.position)
            break
    return scan, end


def read_vmdesc_if_any(buf: ReadBuffer, limits: StreamLimits = DEFAULT_LIMITS) -> Vmdesc | None:
    """Behind an EOF: the vmdesc, or None if the stream ends, something else follows, or nothing for a
    while."""
    if _nothing_follows(buf, limits) or buf.peek(1)[0] != SectionType.VMDESCRIPTION:
        return None
    buf.skip(1)
    return read_vmdesc(buf, limits)


def _nothing_follows(buf: ReadBuffer, limits: StreamLimits) -> bool:
    return not buf.poll(limits.quiet_ms) or buf.at_end()


def _peek_in(data: bytes) -> Callable[[int], bytes]:
    return lambda n: data[:n]


def _follows_eof(peek: Callable[[int], bytes]) -> bool:
    """Whether what comes is a vmdesc, or COLO's first messages: byte by byte, as more than these may never
    come."""
    if peek(1)[0] == SectionType.VMDESCRIPTION:
        # The start of a JSON object; nothing behind it is a stream cut short, for the vmdesc's reader to tell.
        return peek(6)[5:] == b"{" and peek(7)[6:] in (b'"', b"}", b" ", b"\n", b"")
    return all(peek(n) == _COLO_FOLLOWS[:n] for n in range(1, len(_COLO_FOLLOWS) + 1))


def _goes_on(kind: int, peek: Callable[[int], bytes], live: Collection[int], any_start: bool) -> bool:
    """Whether an item other than FULL and EOF starts here."""
    if kind == SectionType.COMMAND:
        head = peek(5)
        number = int.from_bytes(head[1:3], "big")
        return (
            len(head) == 5
            and number in _COMMANDS
            and payload_fits(Command(number), int.from_bytes(head[3:5], "big"))
        )
    if kind == SectionType.START and any_start:
        return header_ends(peek(START_HEADER_MAX), 0) is not None
    if kind == SectionType.START:
        name = encode_name(RAM_IDSTR)
        return peek(6)[5:] == name[:1] and peek(5 + len(name))[5:] == name
    return int.from_bytes(peek(5)[1:], "big") in live


def agreeing_sections(
    scan: DeviceScan, footer: int, vmdesc: Vmdesc, earlier: Sequence[DeviceSection] = ()
) -> tuple[DeviceSection, ...]:
    """The way to split the run that ends with ``footer`` into the devices that ``vmdesc`` lists, with their
    lengths.

    The vmdesc lists all sections in the order of the stream, those ``earlier`` than this run first. A length
    that it cannot state exactly (:attr:`VmdescStruct.exact`) may differ, if nothing else agrees. Raises
    StreamError that names the first disagreement if no way to split agrees.
    """
    listed = vmdesc.devices
    count = len(listed) - len(earlier)

    def same_length(section: DeviceSection, behind: int) -> bool:
        device = listed[-1 - behind] if behind < count else None
        return (
            device is not None
            and device.key == section.key
            and device.state.size_bytes == section.length_bytes
        )

    def fits(section: DeviceSection, behind: int) -> bool:
        device = listed[-1 - behind] if behind < count else None
        return device is not None and _fits(section, device)

    if all(_fits(section, device) for section, device in zip(earlier, listed, strict=False)):
        for accept in (same_length, fits):
            for sections in scan.readings(footer, accept):
                if len(sections) == count:
                    return sections
    sections = next(scan.readings(footer), ())
    if not sections:
        raise scan.unfinished()
    raise _disagreement(scan.base, (*earlier, *sections), len(earlier), vmdesc)


def _fits(section: DeviceSection, device: VmdescDevice) -> bool:
    return device.key == section.key and (
        not device.state.exact or device.state.size_bytes == section.length_bytes
    )


def _disagreement(base: int, sections: Sequence[DeviceSection], earlier: int, vmdesc: Vmdesc) -> StreamError:
    for nth, (section, device) in enumerate(zip_longest(sections, vmdesc.devices)):
        if section is None:
            return StreamError(
                f"the vmdesc lists '{device.idstr}' instance {device.instance_id}, which has no section",
                where=WHERE,
                offset=base,
                value=device.key,
            )
        if device is None or not _fits(section, device):
            said = "does not list it"
            if device is not None:
                size = device.state.size_bytes
                said = f"has '{device.idstr}' instance {device.instance_id} of {size} bytes there"
            return StreamError(
                f"{section.length_bytes} bytes up to its footer, but the vmdesc {said}",
                where=f"device section {section.section_id} '{section.idstr}' instance {section.instance_id}",
                offset=base + section.offset if nth >= earlier else None,
                value=section.length_bytes,
            )
    return StreamError("the vmdesc disagrees with the sections", where=WHERE, offset=base)
