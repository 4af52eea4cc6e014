"""Reads a section stream for people who look into it: what cannot be read is named, and passed over."""

from __future__ import annotations

from collections.abc import Iterator

from colo._fast.receive.buffers import ReadBuffer
from colo.errors import ChannelError, LimitExceeded, StreamError
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.stream.commands import read_command
from colo.stream.configuration import read_configuration
from colo.stream.delimit import DeviceScan, End
from colo.stream.devices import agreeing_sections, collect_run, read_vmdesc_if_any
from colo.stream.reader import StreamReader
from colo.stream.resync import pass_over_body, pass_to_item
from colo.stream.sections import CommandItem, DeviceSection, DeviceState, EndOfStream, Item, LiveSection
from colo.survey.salvage import salvage
from colo.vmdesc.records import Vmdesc
from colo.wire import RAM_IDSTR, Command, SectionType

_PROBLEMS_MAX = 256


class _AnyName:
    """Contains every name: live sections are not chosen by theirs here."""

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter((RAM_IDSTR,))

    def __len__(self) -> int:
        return 1


class SurveyReader(StreamReader):
    """A :class:`StreamReader` that goes on behind what it does not know.

    Live sections of every name come; the consumer reads the body of those it can, and :meth:`pass_over` the others.
    Streams without CONFIGURATION, and those without footers (machine types up to 2.3), are read. What is wrong is kept in
    ``problems``, in the order of the stream, and reading goes on where another item can start. ``wrong`` has what is wrong
    with single devices, by the offset of their :class:`DeviceState`. Only what ends the channel, and a file header that is
    none, are raised.
    """

    def __init__(self, buf: ReadBuffer, limits: StreamLimits = DEFAULT_LIMITS) -> None:
        super().__init__(buf, limits, live_names=_AnyName())
        self.problems: list[StreamError] = []
        self.notes: list[str] = []
        self.wrong: dict[int, dict[int, StreamError]] = {}
        self.footers: bool | None = None
        """Whether sections end with a footer; None until the first one has."""
        self._refused_start: LiveSection | None = None

    def pass_over(self, section: LiveSection) -> None:
        """Read past the rest of the body of ``section``."""
        live = self._live.keys() - self._ended
        if not pass_over_body(self.buf, section.section_id, live, footers=self.footers is not False):
            self._note_problem(
                StreamError(
                    "no end of it follows",
                    where=f"{section.type.name} of section {section.section_id} '{section.idstr}'",
                    offset=section.offset,
                )
            )

    def note(self, error: StreamError) -> None:
        """Keep a problem that the consumer found."""
        self._note_problem(error)

    def __iter__(self) -> Iterator[Item]:
        yield self._read_header()
        if self.buf.peek(1) == bytes((SectionType.CONFIGURATION,)):
            self.buf.skip(1)
            try:
                yield read_configuration(self.buf, self.limits, any_page_bits=True)
            except StreamError as error:
                self._lost(error)
        else:
            self.notes.append("no CONFIGURATION: the machine type is not told (machine types up to 2.3, or sent so)")
        while True:
            try:
                item = self._read_item()
            except StreamError as error:
                if self.buf.at_end():
                    self._note_problem(error)
                    return
                self._lost(error)
                continue
            yield item
            if isinstance(item, LiveSection):
                self._read_footer(item)
            elif isinstance(item, CommandItem) and item.command is Command.PACKAGED:
                start = self.buf.position
                try:
                    packaged = self._read_packaged(item)
                except StreamError as error:
                    if self.buf.position == start:
                        self._lost(error)
                    else:
                        self._note_problem(error)
                else:
                    yield packaged
            elif isinstance(item, DeviceState) and item.complete:
                yield EndOfStream(item.offset + len(item.blob) - 1, item.vmdesc)
                return
            elif isinstance(item, EndOfStream):
                return

    # -- losing the place, and finding it again

    def _note_problem(self, error: StreamError) -> None:
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append(error)

    def _lost(self, error: StreamError) -> None:
        self._note_problem(error)
        start = self.buf.position
        if not pass_to_item(self.buf, self._live.keys() - self._ended):
            self._note_problem(
                StreamError("nothing behind it could be read", where="stream", offset=self.buf.position)
            )
        elif self.buf.position > start:
            self.notes.append(f"{self.buf.position - start} bytes from byte {start} ({start:#x}) on were passed over")

    def _read_item(self) -> Item:
        while self.buf.peek(1) == bytes((SectionType.COMMAND,)):
            head = self.buf.peek(5)
            self.buf.skip(1)
            try:
                return read_command(self.buf)
            except StreamError as error:
                if len(head) < 5:
                    raise
                # Its length is told, so what is behind it is not lost.
                self._note_problem(error)
                self.buf.skip(int.from_bytes(head[3:5], "big"))
        return super()._read_item()

    def _read_start(self, offset: int) -> LiveSection:
        self._refused_start = None
        try:
            return super()._read_start(offset)
        except LimitExceeded:
            raise
        except StreamError as error:
            # Its header was read, so its body begins here: what is wrong is the id, or the version.
            live = self._refused_start
            if live is None:
                raise
            self._note_problem(error)
            self._live[live.section_id] = live
            return live

    def _check_start(self, section: LiveSection, where: str) -> None:
        self._refused_start = section
        super()._check_start(section, where)

    def _read_footer(self, section: LiveSection) -> None:
        if self.footers is False:
            return
        start = self.buf.position
        head = self.buf.peek(5)
        if len(head) < 5:
            return  # the end of the data, told by who reads on
        if head == bytes((SectionType.FOOTER,)) + section.section_id.to_bytes(4, "big"):
            self.buf.skip(5)
            self.footers = True
            return
        if self.footers is None and head[0] in (SectionType.START, SectionType.PART, SectionType.END, SectionType.FULL):
            self.footers = False
            self.notes.append("sections have no footers (machine types up to 2.3)")
            return
        where = f"{section.type.name} of section {section.section_id} '{section.idstr}'"
        if head[0] == SectionType.FOOTER:
            self.buf.skip(5)
            found = int.from_bytes(head[1:], "big")
            text = f"footer of section {found}, expected one of section {section.section_id}"
            self._note_problem(StreamError(text, where=where, offset=start, value=found))
            return
        self._lost(
            StreamError(
                f"byte {head[0]:#04x} where the footer ({SectionType.FOOTER:#04x}) should be",
                where=where,
                offset=start,
                value=head[0],
            )
        )

    # -- devices

    def _read_devices(self) -> DeviceState:
        if self.footers is False:
            return self._devices_without_footers()
        live = self._live.keys() - self._ended
        base = self.buf.position
        data = bytearray()
        try:
            scan, end = collect_run(
                self.buf, data, self.limits, live=live or (), any_start=True, packaged=self._packaged
            )
        except ChannelError:
            raise
        except StreamError as error:
            return self._salvaged(base, data, None, error)
        complete = end.type == SectionType.EOF
        vmdesc = None
        if complete and self._may_have_vmdesc:
            try:
                vmdesc = read_vmdesc_if_any(self.buf, self.limits)
            except StreamError as error:
                self._note_problem(error)
        try:
            sections, ambiguous = self._split(scan, end, vmdesc)
        except StreamError as error:
            return self._salvaged(base, data, vmdesc, error, complete=complete)
        state = DeviceState(base, bytes(data), sections, complete, vmdesc, ambiguous)
        self._devices += sections
        return state

    def _split(self, scan: DeviceScan, end: End, vmdesc: Vmdesc | None) -> tuple[tuple[DeviceSection, ...], bool]:
        if vmdesc is not None:
            return agreeing_sections(scan, end.footer, vmdesc, self._devices), False
        found = scan.readings(end.footer)
        sections = next(found, None)
        if sections is None:
            raise scan.unfinished()
        return sections, next(found, None) is not None

    def _devices_without_footers(self) -> DeviceState:
        base = self.buf.position
        data = bytearray()
        while not self.buf.at_end() and len(data) < self.limits.device_state_bytes:
            chunk = self.buf.peek(min(self.buf.available, self.limits.device_state_bytes - len(data)))
            self.buf.skip(len(chunk))
            data += chunk
        return self._salvaged(base, data, None, None)

    def _salvaged(
        self, base: int, data: bytearray, vmdesc: Vmdesc | None, error: StreamError | None, *, complete: bool = True
    ) -> DeviceState:
        """The devices of a run that does not fit together; ``error`` says how."""
        found = salvage(
            data, base, self.limits, vmdesc=vmdesc, footers=self.footers is not False, skip=len(self._devices)
        )
        if error is not None and not found.wrong and not found.problems:
            self._note_problem(error)
        for problem in (*found.wrong.values(), *found.problems):
            self._note_problem(problem)
        self.wrong[base] = found.wrong
        self._devices += found.sections
        guessed = self.footers is False and found.vmdesc is None
        behind = len(data) - found.end - (5 + len(found.vmdesc.text) if found.vmdesc is not None and vmdesc is None else 0)
        if behind > 0:
            self.notes.append(f"{behind} bytes behind the devices were read with them, and not looked at")
        return DeviceState(base, bytes(data[: found.end]), tuple(found.sections), complete, found.vmdesc, guessed)
