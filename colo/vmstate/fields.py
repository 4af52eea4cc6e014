"""Fields: what a description lists, one class for each of QEMU's VMSTATE_ macro families.

Every field has ``name`` (in the vmdesc, and the attribute unless ``attr`` names another, dots allowed), and
one of

- ``since``: the first version of the description that carries it (QEMU: a field's ``version_id``), or
- ``exists(obj, version)``: asked on each save and load. As in QEMU it decides alone, so the two are not
  combined.

``count`` makes an array: a number, or the name of the attribute that holds the number, which then needs
``max_count``. Inside ``typing.Annotated`` the name is left out: it is taken from the annotated attribute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from colo.errors import LimitExceeded
from colo.vmdesc.cursor import Fault
from colo.vmstate.promises import Described

Exists = Callable[[Any, int], bool]


@dataclass(frozen=True, slots=True)
class Field:
    """What all fields share. Not used by itself."""

    name: str = ""
    _: KW_ONLY
    attr: str = ""
    since: int = 0
    exists: Exists | None = None

    type_name: ClassVar[str] = "unknown"

    def __post_init__(self) -> None:
        if self.exists is not None and self.since:
            raise ValueError(
                f"field {self.name!r}: 'exists' decides alone, as in QEMU; test the version in it"
            )
        if self.since < 0:
            raise ValueError(f"field {self.name!r}: since={self.since} is negative")

    @property
    def attribute(self) -> str:
        return self.attr or self.name

    @property
    def compressible(self) -> bool:
        """An array of it may be told by its first element (QEMU migration/vmstate.c:vmsd_can_compress)."""
        return self.exists is None


Count = int | str | None


def check_count(field_name: str, count: Count, max_count: int | None, what: str = "count") -> None:
    """Refuse, when declared, a count that is negative or is told by the peer without a limit."""
    if isinstance(count, str):
        if max_count is None or max_count < 0:
            raise ValueError(
                f"field {field_name!r}: {what}={count!r} comes from the peer and needs a max_{what}"
            )
    elif count is not None and count < 0:
        raise ValueError(f"field {field_name!r}: {what}={count} is negative")


def counter(
    field: Field, count: int | str, max_count: int | None, what: str = "count"
) -> Callable[[Any], int]:
    """A function of the object that gives the bounded count."""
    if isinstance(count, int):
        return lambda _obj: count
    get = operator.attrgetter(count)
    limit = max_count if max_count is not None else 0

    def number(obj: Any) -> int:
        try:
            value = operator.index(get(obj))
        except (AttributeError, TypeError) as exc:
            raise Fault(f"no {what} in attribute {count!r}: {exc}", field=field.name) from exc
        if not 0 <= value <= limit:
            raise Fault(
                f"{what} {value} from {count!r} is not in 0..{limit}",
                kind=LimitExceeded,
                value=value,
                field=field.name,
            )
        return value

    return number


@dataclass(frozen=True, slots=True)
class Scalar(Field):
    """A number, or with ``count`` an array of them. Use :class:`U8` … :class:`I64`, :class:`Bool`,
    :class:`F64`.

    Arrays live in a list, or in any writable buffer of that item size (NumPy array, ``array.array``,
    memoryview), which is filled in place. ``equal``: the peer's value must be the one here already, which is
    not written (QEMU: VMSTATE_*_EQUAL); ``hint`` is added to the error.
    """

    count: Count = None
    _: KW_ONLY
    max_count: int | None = None
    equal: bool = False
    hint: str = ""

    code: ClassVar[str] = ""
    """Its letter in :mod:`struct`."""

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        check_count(self.name, self.count, self.max_count)
        if self.equal and self.count is not None:
            raise ValueError(f"field {self.name!r}: an array cannot be 'equal'")

    @property
    def described_type(self) -> str:
        if not self.equal:
            return self.type_name
        # QEMU's name of the unsigned 64-bit one lacks its u.
        return "int64 equal" if self.type_name == "uint64" else f"{self.type_name} equal"


class U8(Scalar):
    """uint8_t (QEMU: VMSTATE_UINT8…)."""

    __slots__ = ()
    type_name, code = "uint8", "B"


class U16(Scalar):
    """uint16_t (QEMU: VMSTATE_UINT16…)."""

    __slots__ = ()
    type_name, code = "uint16", "H"


class U32(Scalar):
    """uint32_t (QEMU: VMSTATE_UINT32…)."""

    __slots__ = ()
    type_name, code = "uint32", "I"


class U64(Scalar):
    """uint64_t (QEMU: VMSTATE_UINT64…)."""

    __slots__ = ()
    type_name, code = "uint64", "Q"


class I8(Scalar):
    """int8_t (QEMU: VMSTATE_INT8…)."""

    __slots__ = ()
    type_name, code = "int8", "b"


class I16(Scalar):
    """int16_t (QEMU: VMSTATE_INT16…)."""

    __slots__ = ()
    type_name, code = "int16", "h"


class I32(Scalar):
    """int32_t (QEMU: VMSTATE_INT32…)."""

    __slots__ = ()
    type_name, code = "int32", "i"


class I64(Scalar):
    """int64_t (QEMU: VMSTATE_INT64…)."""

    __slots__ = ()
    type_name, code = "int64", "q"


class Bool(Scalar):
    """bool: one byte, any but 0 is true (QEMU: VMSTATE_BOOL…)."""

    __slots__ = ()
    type_name, code = "bool", "?"


class F64(Scalar):
    """A Python float as its IEEE 754 bits (QEMU: VMSTATE_CPUDOUBLE)."""

    __slots__ = ()
    type_name, code = "CPU_Double_U", "d"


@dataclass(frozen=True, slots=True)
class I32AtMost(Field):
    """An int32_t of 0 up to the value that is here already (QEMU: VMSTATE_INT32_POSITIVE_LE)."""

    type_name: ClassVar[str] = "int32 le"


@dataclass(frozen=True, slots=True)
class Buffer(Field):
    """``size`` bytes: bytes, bytearray, or any buffer of that size (QEMU: VMSTATE_BUFFER…).

    A writable buffer is filled in place. ``size`` as a name is the attribute that holds it, bounded by
    ``max_size`` (QEMU: VMSTATE_VBUFFER_UINT32); it must be loaded before, or be fixed.
    """

    size: int | str = 0
    _: KW_ONLY
    max_size: int | None = None
    type_name: ClassVar[str] = "buffer"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        check_count(self.name, self.size, self.max_size, "size")


@dataclass(frozen=True, slots=True)
class Unused(Field):
    """``size`` bytes that nothing uses any more: sent as zeros, skipped on load (QEMU: VMSTATE_UNUSED…)."""

    name: str = "unused"
    size: int = 0
    type_name: ClassVar[str] = "unused_buffer"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        check_count(self.name, self.size, None, "size")


@dataclass(frozen=True, slots=True)
class Timer(Field):
    """When a timer fires, in ns of its clock; None (or -1) if it is not armed (QEMU: VMSTATE_TIMER_PTR…)."""

    count: Count = None
    _: KW_ONLY
    max_count: int | None = None
    type_name: ClassVar[str] = "timer"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        check_count(self.name, self.count, self.max_count)


@dataclass(frozen=True, slots=True)
class Bitmap(Field):
    """``bits`` bits in 64-bit words (QEMU: VMSTATE_BITMAP).

    Held as an int (bit n is ``1 << n``) or as a writable buffer of whole 64-bit words, bit n in byte ``n //
    8``. ``bits`` as a name is the attribute that holds the number, bounded by ``max_bits``.
    """

    bits: int | str = 0
    _: KW_ONLY
    max_bits: int | None = None
    type_name: ClassVar[str] = "bitmap"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        check_count(self.name, self.bits, self.max_bits, "bits")


@dataclass(frozen=True, slots=True)
class Validate(Field):
    """No bytes: ``check(obj, version)`` must hold on save and on load, at this place (QEMU:
    VMSTATE_VALIDATE).
    """

    check: Exists = lambda _obj, _version: True
    type_name: ClassVar[str] = "validate"


@dataclass(frozen=True, slots=True)
class Nested(Field):
    """What fields that carry another description share. Not used by itself."""

    of: Described | None = None
    _: KW_ONLY
    factory: Callable[[], Any] | None = None
    type_name: ClassVar[str] = "struct"

    def __post_init__(self) -> None:
        Field.__post_init__(self)
        if self.of is None:
            raise ValueError(f"field {self.name!r}: the description of its elements is missing")

    @property
    def description(self) -> Described:
        assert self.of is not None
        return self.of

    @property
    def compressible(self) -> bool:
        return self.exists is None and self.description.is_uniform

    def make(self) -> Any:
        """A new element for what the peer has and this side lacks."""
        factory = self.factory or self.description.factory
        if factory is None:
            raise Fault(
                f"no object to load {self.description.name!r} into; set one before, or declare a factory",
                field=self.name,
            )
        return factory()


@dataclass(frozen=True, slots=True)
class Struct(Nested):
    """An object with its own description (QEMU: VMSTATE_STRUCT, _STRUCT_POINTER, _VSTRUCT).

    Its version does not travel: both ends take the description's, or ``version`` (QEMU: VMS_VSTRUCT). Loaded
    in place; a missing one is made by ``factory`` or the description's.
    """

    version: int | None = None

    @property
    def kind(self) -> str:
        return "struct" if self.version is None else "vstruct"

    @property
    def inner_version(self) -> int:
        return self.description.version if self.version is None else self.version


@dataclass(frozen=True, slots=True)
class Structs(Nested):
    """A list of objects of one description (QEMU: VMSTATE_STRUCT_ARRAY, _VARRAY_…). Loaded in place.

    With a ``count`` that names an attribute the list is cut, or grown by the factory, to the peer's count.
    """

    count: int | str = 0
    _: KW_ONLY
    max_count: int | None = None

    def __post_init__(self) -> None:
        Nested.__post_init__(self)
        check_count(self.name, self.count, self.max_count)


@dataclass(frozen=True, slots=True)
class Pointers(Structs):
    """A list of objects or None, a marker byte for each None (QEMU: VMSTATE_ARRAY_OF_POINTER_TO_STRUCT).

    As in QEMU the stream does not tell which are None: both ends must have the same ones before.
    """


@dataclass(frozen=True, slots=True)
class Queue(Nested):
    """A list of any length up to ``max_count``, told element by element (QEMU: VMSTATE_QTAILQ_V). Replaced on
    load.
    """

    max_count: int = 0
    type_name: ClassVar[str] = "qtailq"

    def __post_init__(self) -> None:
        Nested.__post_init__(self)
        if self.max_count <= 0:
            raise ValueError(
                f"field {self.name!r}: a queue's length comes from the peer and needs a max_count"
            )
