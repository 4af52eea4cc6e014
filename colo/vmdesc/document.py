"""The VMDESCRIPTION item: JSON that lists the devices of a stream with their fields, in the order they were
sent.

QEMU writes it behind EOF (migration/savevm.c, migration/vmstate.c). It is the only place where the length of
a device section can be read: the sum of its fields, and of its subsections with their headers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from colo.errors import LimitExceeded, StreamError
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.wire import IDSTR_MAX_BYTES, SectionType

if TYPE_CHECKING:
    from colo._fast.receive.buffers import ReadBuffer

WHERE = "VMDESCRIPTION"
SUBSECTION_HEADER_BYTES = 1 + 1 + 4
"""Type byte, length byte of the name, version: the name's bytes come on top."""
_SCALAR = re.compile(r"u?int(8|16|32|64)\b|bool$|timer$|float64$|cpudouble$")
_QUOTE = ord('"')
_SIZE_MAX = 1 << 40

# Strings are matched whole so that brackets inside them do not count. One without an end goes on to the end
# of the text, so that nothing is matched twice: the JSON parser then refuses it.
_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]|,', re.DOTALL)
_STRINGS = re.compile(rb'"[^"]*+"?')
_TO_SQUARE = bytes.maketrans(b"{}", b"[]")
_NOT_MARKS = bytes(byte for byte in range(256) if byte not in b'[]{},"\\')


@dataclass(frozen=True, slots=True)
class VmdescField:
    """A field as sent: ``count`` elements of ``size_bytes`` each; ``struct`` describes one element's own
    fields."""

    name: str
    type: str
    size_bytes: int
    count: int
    index: int | None
    struct: VmdescStruct | None


@dataclass(frozen=True, slots=True)
class VmdescStruct:
    """A vmstate: of a device, of a struct inside one, or of a subsection."""

    vmsd_name: str
    version: int
    fields: tuple[VmdescField, ...]
    subsections: tuple[VmdescStruct, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the body: fields, then subsections with their headers."""
        return sum(field.size_bytes * field.count for field in self.fields) + sum(
            SUBSECTION_HEADER_BYTES + len(sub.vmsd_name.encode()) + sub.size_bytes for sub in self.subsections
        )

    @property
    def exact(self) -> bool:
        """Whether :attr:`size_bytes` is surely what was sent.

        QEMU describes an array by its first element. One of null pointers, or of structs that hold arrays or
        data of no fixed length, may have had elements of another length. A first element that is a null pointer
        can show as a struct without fields that yet has a byte.
        """
        return all(sub.exact for sub in self.subsections) and all(
            field.type != "nullptr"
            and (
                field.struct is None
                or (
                    field.struct.size_bytes == field.size_bytes
                    and (field.struct.exact if field.count <= 1 else field.struct.uniform)
                )
            )
            for field in self.fields
        )

    @property
    def uniform(self) -> bool:
        """Whether every instance of this struct has the same length."""
        return not self.subsections and all(
            field.count == 1 and (field.struct.uniform if field.struct else bool(_SCALAR.match(field.type)))
            for field in self.fields
        )


@dataclass(frozen=True, slots=True)
class VmdescDevice:
    """A device section: idstr and instance, as in its section header, and what is in it."""

    idstr: str
    instance_id: int
    state: VmdescStruct

    @property
    def key(self) -> tuple[str, int]:
        return self.idstr, self.instance_id


@dataclass(frozen=True, slots=True)
class Vmdesc:
    """The whole description; ``offset`` is that of the JSON text in the stream, ``text`` the JSON as
    received."""

    offset: int
    text: bytes
    page_size: int | None
    configuration: VmdescStruct | None
    devices: tuple[VmdescDevice, ...]


def read_vmdesc(buf: ReadBuffer, limits: StreamLimits = DEFAULT_LIMITS) -> Vmdesc:
    """Read what follows the type byte. Raises LimitExceeded before reading a text longer than the limit."""
    offset = buf.position
    length = buf.read_u32()
    if length > limits.vmdesc_bytes:
        raise LimitExceeded(
            f"{length} bytes, at most {limits.vmdesc_bytes} are read",
            where=WHERE,
            offset=offset,
            value=length,
        )
    return parse_vmdesc(buf.read_exact(length), offset=buf.position - length, limits=limits)


def parse_vmdesc(text: bytes, *, offset: int = 0, limits: StreamLimits = DEFAULT_LIMITS) -> Vmdesc:
    """Check ``text`` (which starts at ``offset`` in the stream) against the schema and return it as records.

    Raises LimitExceeded if it is nested deeper, or has more values, than the limits allow, before it is
    parsed; StreamError, with the byte offset, if it is not UTF-8 or not JSON, and with the path of the value if a
    value is not as it must be.
    """
    _bound(text, offset, limits)
    try:
        # As text: given bytes, the parser would take UTF-16 and UTF-32 too, whose brackets were not counted.
        top = json.loads(text.decode(), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise StreamError(
            f"not JSON: {error.msg}",
            where=WHERE,
            offset=offset + len(error.doc[: error.pos].encode()),
            value=error.msg,
        ) from None
    except UnicodeDecodeError as error:
        raise StreamError(
            "not UTF-8", where=WHERE, offset=offset + error.start, value=text[error.start]
        ) from None
    except ValueError as error:  # a number of thousands of digits, or NaN
        raise StreamError(
            f"a number that cannot be: {error}", where=WHERE, offset=offset, value=str(error)
        ) from None
    schema = _Schema(offset)
    top = schema.mapping(top, ROOT)
    devices = schema.sequence(top.get("devices"), ROOT, "devices")
    return Vmdesc(
        offset,
        text,
        schema.number(top["page_size"], ROOT, "page_size", 1 << 34) if "page_size" in top else None,
        schema.struct(top["configuration"], (ROOT, "configuration")) if "configuration" in top else None,
        tuple(schema.device(device, (ROOT, "devices", i)) for i, device in enumerate(devices)),
    )


def vmdescription(text: bytes) -> bytes:
    """The VMDESCRIPTION item around JSON ``text``."""
    return bytes((SectionType.VMDESCRIPTION,)) + len(text).to_bytes(4, "big") + text


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _bound(text: bytes, offset: int, limits: StreamLimits) -> None:
    """Depth and number of values, told from the brackets and commas: json.loads itself would recurse and
    allocate."""
    if _is_within(text, limits):
        return
    depth = values = 0
    for token in _tokens(text):
        byte = text[token]
        if byte in b"[{":
            depth += 1
            values += 1
            if depth > limits.vmdesc_depth:
                raise LimitExceeded(
                    f"nested deeper than {limits.vmdesc_depth}",
                    where=WHERE,
                    offset=offset + token,
                    value=depth,
                )
        elif byte in b"]}":
            depth -= 1
        else:
            values += 1
        if values > limits.vmdesc_values:
            raise LimitExceeded(
                f"more than {limits.vmdesc_values} values", where=WHERE, offset=offset + token, value=values
            )


def _is_within(text: bytes, limits: StreamLimits) -> bool:
    """Whether brackets and commas are as those of an honest text: the primary's VM stands still meanwhile, so
    in a few passes at memory speed. What is not is gone through one by one, for its offset."""
    marks = text.translate(_TO_SQUARE, _NOT_MARKS)
    if b"\\" in marks:
        return False
    # Two quotes with nothing between them: whether they are one string or the seam of two, what is inside
    # strings and what is not stays the same without them.
    marks = _STRINGS.sub(b"", marks.replace(b'""', b""))
    nested = marks.replace(b",", b"")
    if len(marks) - len(nested) + nested.count(b"[") > limits.vmdesc_values:
        return False
    for _ in range(limits.vmdesc_depth):
        nested = nested.replace(b"[]", b"")
    return not nested


def _tokens(text: bytes) -> Iterator[int]:
    """Offsets of brackets and commas outside strings."""
    for match in _TOKENS.finditer(text):
        if text[match.start()] != _QUOTE:
            yield match.start()


Path = tuple[Any, ...]
"""Where a value is: (path of what it is in, key), or (path, key, index). Only an error spells it out."""
ROOT: Path = ()


def _spell(path: Path) -> str:
    if not path:
        return "$"
    return f"{_spell(path[0])}.{path[1]}" + (f"[{path[2]}]" if len(path) > 2 else "")


class _Schema:
    """Checks each value where it is used; an error names its JSON path."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def wrong(self, path: Path, wanted: str, value: object) -> StreamError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return StreamError(
            f"{_spell(path)} is not {wanted}: {shown}", where=WHERE, offset=self.offset, value=value
        )

    def mapping(self, value: object, path: Path) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(path, "an object", value)
        return value

    def sequence(self, value: object, path: Path, key: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong((path, key), "an array", value)
        return value

    def number(self, value: object, path: Path, key: str, high: int) -> int:
        if type(value) is not int or not 0 <= value <= high:
            raise self.wrong((path, key), f"an integer from 0 to {high}", value)
        return value

    def name(self, value: object, path: Path, key: str) -> str:
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.wrong((path, key), "a name", value)
        return value

    def device(self, value: object, path: Path) -> VmdescDevice:
        device = self.mapping(value, path)
        idstr = self.name(device.get("name"), path, "name")
        if len(idstr.encode()) > IDSTR_MAX_BYTES:
            raise self.wrong((path, "name"), f"at most {IDSTR_MAX_BYTES} bytes", idstr)
        instance = self.number(device.get("instance_id"), path, "instance_id", 0xFFFFFFFF)
        # A device of the old kind (no vmstate declaration) has no vmsd_name, and one field of all its bytes.
        return VmdescDevice(idstr, instance, self.struct(device, path, default_name=idstr))

    def struct(self, value: object, path: Path, default_name: str = "") -> VmdescStruct:
        struct = self.mapping(value, path)
        fields = self.sequence(struct.get("fields", []), path, "fields")
        subsections = self.sequence(struct.get("subsections", []), path, "subsections")
        name = struct.get("vmsd_name", default_name)
        return VmdescStruct(
            self.name(name, path, "vmsd_name") if name else "",
            self.number(struct.get("version", 0), path, "version", 0xFFFFFFFF),
            tuple([self.field(item, (path, "fields", i)) for i, item in enumerate(fields)]),
            tuple([self.struct(item, (path, "subsections", i)) for i, item in enumerate(subsections)]),
        )

    def field(self, value: object, path: Path) -> VmdescField:
        field = self.mapping(value, path)
        kind = field.get("type", "")
        if not isinstance(kind, str) or not kind.isprintable():
            raise self.wrong((path, "type"), "a string of printable characters", kind)
        index = field.get("index")
        return VmdescField(
            self.name(field.get("name"), path, "name"),
            kind,
            self.number(field.get("size"), path, "size", _SIZE_MAX),
            self.number(field.get("array_len", 1), path, "array_len", _SIZE_MAX),
            None if index is None else self.number(index, path, "index", _SIZE_MAX),
            self.struct(field["struct"], (path, "struct")) if "struct" in field else None,
        )
