"""Descriptions: how an object's state looks in the stream, by version.

A description is compiled once per version into a plan, the list of steps that save or load it (``steps``,
``nested``); runs of plain numbers become one step. What travels is QEMU's encoding, byte for byte: no field
carries a tag, so both ends must agree on the version, and only subsections announce themselves::

    fields in order
    per subsection that is needed:   0x05, u8 len, name, u32 version, its fields, its subsections
"""

from __future__ import annotations

import dataclasses
import struct
import typing
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic

from colo.errors import StreamError, Truncated
from colo.vmdesc.cursor import Cursor, Fault, as_bytes_view
from colo.vmdesc.encoding import DEPTH_MAX, subsection_head
from colo.vmstate.fields import Field, Nested, Struct, Unused
from colo.vmstate.plan import compile_fields, least_bytes
from colo.vmstate.promises import Entry, Step
from colo.wire import IDSTR_MAX_BYTES, SectionType

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # Type checkers know defaults of type variables before Python 3.13 does.
    T = TypeVar("T", default=Any)
else:
    T = typing.TypeVar("T")

_SUBSECTION_HEAD = struct.Struct(">BB")
_VERSION = struct.Struct(">I")


class Description(Generic[T]):
    """The state of one kind of device, as QEMU's VMStateDescription.

    - ``name``: up to 255 bytes; a subsection's starts with its parent's name (by custom and ``/``).
    - ``version``: what is saved; ``minimum_version``: the oldest that still loads (default: ``version``).
    - ``fields``: in the order of the stream. ``subsections``: descriptions of the same object, each sent when
      its ``needed(obj)`` holds. ``needed`` of a registered description says the same of its section.
    - ``pre_save(obj)``, ``post_save(obj)``, ``pre_load(obj)``, ``post_load(obj, version)``: refuse by
      raising; ``post_save`` also runs when the saving failed after ``pre_save``.
    - ``priority``: sections of higher priority are saved, so loaded, first.
    - ``factory``: makes an empty object, for lists that grow to the peer's length.

    A load that fails leaves the object part old, part new, as in QEMU: load a whole state again, or drop the
    object. Matches QEMU migration/vmstate.c: vmstate_save_state_v, vmstate_load_state. ValueError if the
    declaration cannot work.
    """

    def __init__(
        self,
        name: str,
        *,
        version: int = 1,
        minimum_version: int | None = None,
        fields: Iterable[Field] = (),
        subsections: Iterable[Description[T]] = (),
        needed: Callable[[T], bool] | None = None,
        pre_save: Callable[[T], object] | None = None,
        post_save: Callable[[T], object] | None = None,
        pre_load: Callable[[T], object] | None = None,
        post_load: Callable[[T, int], object] | None = None,
        priority: int = 0,
        factory: Callable[[], T] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.minimum_version = version if minimum_version is None else minimum_version
        self.fields = tuple(fields)
        self.subsections = tuple(subsections)
        self.needed = needed
        self.pre_save = pre_save
        self.post_save = post_save
        self.pre_load = pre_load
        self.post_load = post_load
        self.priority = priority
        self.factory = factory
        self._check()
        self._plans: dict[int, list[Step]] = {}
        self._described: dict[int, list[tuple[str, Step]]] = {}
        self._by_name = {sub.name: sub for sub in self.subsections}
        self._heads = [(sub, subsection_head(sub.name, sub.version)) for sub in self.subsections]
        self.least_bytes = sum(least_bytes(f) for f in self.fields if not f.exists and not f.since)
        """No object takes fewer bytes, subsections aside."""

    @classmethod
    def of(cls, state: type[T], name: str, **options: Any) -> Description[T]:
        """The description of a dataclass whose attributes say their field: ``irr: Annotated[int, U8()]``.

        Attributes without a field in their annotation are not saved. ``options`` are those of the
        constructor; the class is the ``factory`` if it can be made without arguments. ValueError if ``state``
        is no dataclass.
        """
        if not dataclasses.is_dataclass(state):
            raise ValueError(f"{state.__name__} is no dataclass: decorate it, or list its fields")
        hints = typing.get_type_hints(state, include_extras=True)
        fields: list[Field] = []
        bare = True
        for attribute in dataclasses.fields(state):
            for extra in getattr(hints[attribute.name], "__metadata__", ()):
                if isinstance(extra, Field):
                    fields.append(_named(extra, attribute.name))
            if attribute.init:
                missing = dataclasses.MISSING
                bare &= attribute.default is not missing or attribute.default_factory is not missing
        if bare:
            options.setdefault("factory", state)
        return cls(name, fields=(*fields, *options.pop("fields", ())), **options)

    def __repr__(self) -> str:
        return f"Description({self.name!r}, version={self.version}, {len(self.fields)} fields)"

    def _check(self) -> None:
        name = self.name
        if not 0 < len(name.encode()) <= IDSTR_MAX_BYTES:
            raise ValueError(f"description {name!r}: a name has 1 to {IDSTR_MAX_BYTES} bytes")
        if not 0 <= self.minimum_version <= self.version < 1 << 31:
            raise ValueError(
                f"description {name!r}: minimum_version {self.minimum_version}, version {self.version}"
            )
        for field in self.fields:
            if not field.name:
                raise ValueError(f"description {name!r}: a {type(field).__name__} has no name")
            if field.since > self.version:
                raise ValueError(f"{name}.{field.name}: since {field.since} is after version {self.version}")
            if isinstance(field, Struct):
                inner = field.description
                if not inner.minimum_version <= field.inner_version <= inner.version:
                    raise ValueError(
                        f"{name}.{field.name}: {inner.name!r} has no version {field.inner_version}"
                    )
        for sub in self.subsections:
            if not sub.name.startswith(name) or sub.name == name:
                raise ValueError(f"subsection {sub.name!r} of {name!r}: its name must start with that")
        if len({sub.name for sub in self.subsections}) != len(self.subsections):
            raise ValueError(f"description {name!r}: two subsections have one name")
        inside = [f.description.depth for f in self.fields if isinstance(f, Nested)]
        self.depth: int = 1 + max([*inside, *(sub.depth for sub in self.subsections)], default=0)
        if self.depth > DEPTH_MAX:
            raise ValueError(f"description {name!r}: nested deeper than {DEPTH_MAX}")

    # The public edge: bytes and StreamErrors.

    def save(self, obj: T, version: int | None = None) -> bytes:
        """The state of ``obj``, as ``version`` (default: the description's) has it.

        StreamError naming the field if a value does not fit its type. What a hook or a property raises comes
        through.
        """
        out = bytearray()
        try:
            self.save_into(obj, out, self._saved_version(version))
        except Fault as fault:
            raise fault.error(self.name) from fault.__cause__
        return bytes(out)

    def save_described(self, obj: T, version: int | None = None) -> tuple[bytes, Entry]:
        """The state, and what a vmdesc says of it: ``{"vmsd_name", "version", "fields", "subsections"?}``."""
        out = bytearray()
        try:
            told = self.describe_into(obj, out, self._saved_version(version))
        except Fault as fault:
            raise fault.error(self.name) from fault.__cause__
        return bytes(out), told

    def load(self, obj: T, data: object, version: int | None = None) -> None:
        """Load ``data`` (any buffer), saved as ``version``, into ``obj``; all bytes must be used.

        StreamError (or Truncated, LimitExceeded) with the field's path, the byte offset in ``data`` and the
        value.
        """
        cursor = Cursor(as_bytes_view(data))
        try:
            self.load_from(obj, cursor, self.version if version is None else version)
            if cursor.at != cursor.end:
                raise self.stranded(cursor)
        except Fault as fault:
            raise fault.error(self.name) from fault.__cause__

    def _saved_version(self, version: int | None) -> int:
        if version is None:
            return self.version
        if not self.minimum_version <= version <= self.version:
            raise StreamError(
                f"cannot be saved as version {version}, only as {self.minimum_version} to {self.version}",
                where=self.name,
                value=version,
            )
        return version

    # The inner edge: one bytearray or cursor through all levels, and Faults.

    def save_into(self, obj: T, out: bytearray, version: int) -> None:
        """Append the state to ``out``."""
        if self.pre_save is not None:
            self.pre_save(obj)
        try:
            for step in self.plan(version):
                step.save(obj, out, version)
            for sub, head in self._heads:
                if sub.needed is None or sub.needed(obj):
                    out += head
                    _under(sub, sub.save_into, obj, out)
        finally:
            if self.post_save is not None:
                self.post_save(obj)

    def describe_into(self, obj: T, out: bytearray, version: int) -> Entry:
        """Append the state to ``out`` and return what a vmdesc says of it."""
        told: Entry = {"vmsd_name": self.name, "version": version, "fields": []}
        if self.pre_save is not None:
            self.pre_save(obj)
        try:
            for label, step in self._described_plan(version):
                told["fields"] += [{"name": label, **entry} for entry in step.describe(obj, out, version)]
            for sub, head in self._heads:
                if sub.needed is None or sub.needed(obj):
                    out += head
                    told.setdefault("subsections", []).append(_under(sub, sub.describe_into, obj, out))
        finally:
            if self.post_save is not None:
                self.post_save(obj)
        return told

    def load_from(self, obj: T, cursor: Cursor, version: int) -> None:
        """Load from ``cursor``, which is left behind the last subsection that is ours."""
        start = cursor.at
        if not self.minimum_version <= version <= self.version:
            new = version > self.version
            raise Fault(
                f"version {version} of {self.name!r} is too {'new' if new else 'old'}: "
                f"this side loads {self.minimum_version} to {self.version}",
                offset=start,
                value=version,
            )
        if self.pre_load is not None:
            _hooked("pre_load", self.name, start, self.pre_load, obj)
        for step in self.plan(version):
            step.load(obj, cursor, version)
        self._load_subsections(obj, cursor)
        if self.post_load is not None:
            _hooked("post_load", self.name, start, self.post_load, obj, version)

    def _load_subsections(self, obj: T, cursor: Cursor) -> None:
        """Those that follow and are ours by name (QEMU migration/vmstate.c:vmstate_subsection_load).

        A name that is not ours ends the loop: the subsection is that of a description further out. Where our
        name only happens to begin another's, with no ``/`` after it, QEMU fails; here it may be another's
        too.
        """
        while cursor.at < cursor.end and cursor.data[cursor.at] == SectionType.SUBSECTION:
            name = self._announced(cursor)
            sub = self._by_name.get(name)
            if sub is None:
                if not name.startswith(f"{self.name}/"):
                    return
                known = ", ".join(sorted(self._by_name)) or "none"
                raise Fault(
                    f"unknown subsection {name!r} (known here: {known})", offset=cursor.at, value=name
                )
            cursor.at += _SUBSECTION_HEAD.size + len(name.encode())
            try:
                (version,) = _VERSION.unpack(cursor.take(_VERSION.size))
                sub.load_from(obj, cursor, version)
            except Fault as fault:
                fault.inside(f"({name})")
                raise

    @staticmethod
    def _announced(cursor: Cursor) -> str:
        """The whole name of the subsection ahead, or nothing."""
        head = _SUBSECTION_HEAD.size
        ahead = bytes(cursor.peek(head + IDSTR_MAX_BYTES))
        if len(ahead) < head or len(ahead) < head + ahead[1]:
            return ""
        try:
            return ahead[head : head + ahead[1]].decode()
        except UnicodeDecodeError:
            return ""

    def stranded(self, cursor: Cursor) -> Fault:
        """The fault that bytes are left, and what they look like."""
        left = cursor.end - cursor.at
        ahead = bytes(cursor.peek(_SUBSECTION_HEAD.size + IDSTR_MAX_BYTES))
        message = f"{left} bytes are left after the last field"
        kind: type[StreamError] = StreamError
        if ahead[0] == SectionType.SUBSECTION:
            name = ahead[2 : 2 + ahead[1]] if len(ahead) > 1 else b""
            if len(ahead) == 1 or len(name) < ahead[1]:
                kind = Truncated
                message += "; they look like the cut-off head of a subsection"
            else:
                told = name.decode(errors="backslashreplace")
                message += f"; they look like a subsection {told!r}, which is none of {self.name!r}"
        return Fault(message, kind=kind, offset=cursor.at, value=ahead[:16].hex())

    # Compiling.

    @property
    def is_uniform(self) -> bool:
        """Whether an array of such objects may be told by its first (QEMU migration/vmstate.c:vmsd_can_compress)."""
        return not self.subsections and all(field.compressible for field in self.fields)

    def plan(self, version: int) -> list[Step]:
        """The steps of ``version``, compiled on first use."""
        plan = self._plans.get(version)
        if plan is None:
            present = [f for f in self.fields if f.exists is not None or f.since <= version]
            plan = self._plans[version] = compile_fields(present)
        return plan

    def _described_plan(self, version: int) -> list[tuple[str, Step]]:
        """One step per field, with the name the vmdesc gives it: a repeated one is numbered."""
        plan = self._described.get(version)
        if plan is None:
            times = Counter(f.name for f in self.fields)
            seen: Counter[str] = Counter()
            plan = []
            for field in self.fields:
                label = field.name if times[field.name] == 1 else f"{field.name}[{seen[field.name]}]"
                seen[field.name] += 1
                if field.exists is not None or field.since <= version:
                    plan.append((label, compile_fields([field])[0]))
            self._described[version] = plan
        return plan


def _under(sub: Description[T], act: Callable[[T, bytearray, int], Any], obj: T, out: bytearray) -> Any:
    try:
        return act(obj, out, sub.version)
    except Fault as fault:
        fault.inside(f"({sub.name})")
        raise


def _hooked(hook: str, name: str, offset: int, call: Callable[..., object], *args: Any) -> None:
    try:
        call(*args)
    except Fault:
        raise
    except Exception as exc:
        raise Fault(f"{hook} of {name!r} refused it: {type(exc).__name__}: {exc}", offset=offset) from exc


def _named(field: Field, attribute: str) -> Field:
    """The field of an annotation, with the attribute it stands on."""
    if isinstance(field, Unused):
        return field
    if not field.name:
        return dataclasses.replace(field, name=attribute)
    return field if field.attr else dataclasses.replace(field, attr=attribute)
