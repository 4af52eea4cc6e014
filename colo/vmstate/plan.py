"""From fields to steps: the plan that saves or loads one version of a description."""

from __future__ import annotations

import struct

from colo.vmstate.fields import (
    Bitmap,
    Buffer,
    Field,
    I32AtMost,
    Nested,
    Queue,
    Scalar,
    Struct,
    Structs,
    Timer,
    Unused,
    Validate,
)
from colo.vmstate.nested import compile_nested
from colo.vmstate.promises import Step
from colo.vmstate.spans import Bits, Bytes, Check, Guarded, Timers
from colo.vmstate.steps import CheckedScalar, Run, ScalarArray


def compile_fields(fields: list[Field]) -> list[Step]:
    """The steps of fields that stand in this order."""
    steps: list[Step] = []
    run: list[Scalar | Unused] = []
    for field in fields:
        if _plain(field):
            assert isinstance(field, (Scalar, Unused))
            run.append(field)
            continue
        if run:
            steps.append(Run(run))
            run = []
        steps.append(_step(field))
    if run:
        steps.append(Run(run))
    return steps


def _plain(field: Field) -> bool:
    """May share a run: always there, of fixed size, and its value asks nothing."""
    if field.exists is not None:
        return False
    return isinstance(field, Unused) or (
        isinstance(field, Scalar) and field.count is None and not field.equal
    )


def _step(field: Field) -> Step:
    step: Step
    match field:
        case Scalar(count=None, equal=True) | I32AtMost():
            step = CheckedScalar(field)
        case Scalar(count=None) | Unused():
            step = Run([field])
        case Scalar():
            step = ScalarArray(field)
        case Buffer():
            step = Bytes(field)
        case Timer():
            step = Timers(field)
        case Bitmap():
            step = Bits(field)
        case Validate():
            step = Check(field)
        case Nested():
            step = compile_nested(field)
        case _:
            raise ValueError(f"field {field.name!r}: {type(field).__name__} cannot be compiled")
    return step if field.exists is None else Guarded(field, step)


def least_bytes(field: Field) -> int:
    """The bytes a field that exists takes at least."""
    match field:
        case Scalar(count=count) if not isinstance(count, str):
            return struct.calcsize(">" + field.code) * (1 if count is None else count)
        case Buffer(size=int(size)) | Unused(size=size):
            return size
        case Timer(count=count) if not isinstance(count, str):
            return 8 * (1 if count is None else count)
        case Bitmap(bits=int(bits)):
            return -(-bits // 64) * 8
        case I32AtMost():
            return 4
        case Struct():
            return field.description.least_bytes
        case Structs(count=int(count)):
            # A None among pointers is one byte.
            return count * min(1, field.description.least_bytes)
        case Queue():
            return 1
    return 0
