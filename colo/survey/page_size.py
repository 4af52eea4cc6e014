"""How large are the target's pages? What a stream says of it, and, where it says nothing up front, what its page
records show.

Few targets state it at the beginning (CONFIGURATION's ``target-page-bits``, POSTCOPY_ADVISE); the vmdesc does, at
the end. The records tell: with the wrong size the byte behind a page is no record.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from colo._fast.receive.buffers import ReadBuffer
from colo._fast.receive.ramsurvey import PAGE_BYTES_MAX, PAGE_BYTES_MIN, RamSurvey
from colo.errors import StreamError, Truncated
from colo.limits import DEFAULT_LIMITS, StreamLimits
from colo.survey.salvage import find_vmdesc
from colo.wire import TARGET_PAGE_BYTES

SIZES = (TARGET_PAGE_BYTES, 1024, 2048, 8192, 16384, 32768, 65536)
"""In the order in which they are believed, when nothing tells them apart."""
TRIAL_BYTES = 1 << 18


def is_page_size(size: int) -> bool:
    """Whether a target's pages can have ``size`` bytes here."""
    return PAGE_BYTES_MIN <= size <= PAGE_BYTES_MAX and not size & (size - 1)


def stated_at_the_end(fd: int, limits: StreamLimits = DEFAULT_LIMITS) -> int | None:
    """The page size that the vmdesc at the end of the file ``fd`` states; None if ``fd`` is no regular file, or has
    none there. The file's position stays."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    begin = max(0, status.st_size - limits.vmdesc_bytes)
    tail = os.pread(fd, min(status.st_size, limits.vmdesc_bytes), begin)
    found = find_vmdesc(tail, begin, limits)
    size = found[1].page_size if found is not None else None
    return size if size is not None and is_page_size(size) else None


def shown_by_records(records: bytes, blocks: Iterable[tuple[str, int]]) -> int | None:
    """The page size with which ``records``, the beginning of a ``ram`` section's body, make sense; None if with
    none, or if they show no page at all. ``blocks`` are pairs of idstr and used length."""
    blocks = list(blocks)
    fitting: dict[int, RamSurvey] = {}
    for size in SIZES:
        survey = RamSurvey(size)
        survey.set_blocks(blocks)
        try:
            survey.decode(ReadBuffer.from_bytes(records))
        except Truncated:
            pass
        except StreamError:
            continue
        fitting[size] = survey
    for size, survey in fitting.items():
        # Behind a page's bytes came records that could be read: no other size has that.
        if any(count for block in survey.blocks for kind, count in block.counts.items() if kind == "normal_pages"):
            return size
    stride = next((survey.min_stride for survey in fitting.values()), 0)
    if stride in fitting:
        return stride
    seen = any(sum(block.counts.values()) for survey in fitting.values() for block in survey.blocks)
    return next(iter(fitting)) if seen else None
