"""Times kernels and memory's own limits page by page, with nothing of Python in the loop. See timing.pyi."""
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from colo._fast.kernels.kernels cimport (
    COLO_PAGE_BYTES_MAX,
    check_apart,
    check_page_bytes,
    colo_kernels,
    for_level,
    whole_pages,
)


cdef extern from "simd/limits.h" nogil:
    uint64_t colo_now_ns()
    uint64_t colo_read_one(const uint8_t *a, size_t n)
    uint64_t colo_read_two(const uint8_t *a, const uint8_t *b, size_t n)
    void COLO_OPAQUE(size_t v)


cdef enum Work:
    MEMCMP, MEMCPY, READ_ONE, READ_TWO, ENCODE, STEP, DECODE, CHECK, IS_ZERO, SCAN, SCAN_HASH

_WORKS = {
    "memcmp": MEMCMP, "memcpy": MEMCPY, "read one": READ_ONE, "read two": READ_TWO, "encode": ENCODE, "step": STEP,
    "decode": DECODE, "check": CHECK, "is_zero": IS_ZERO, "scan": SCAN, "scan_hash": SCAN_HASH,
}
WORKS = tuple(_WORKS)


cdef uint64_t _run(Work work, const colo_kernels *k, uint8_t *old, const uint8_t *new, Py_ssize_t pages,
                   int page_bytes, uint8_t *scratch, const uint8_t *arena, const int32_t *lengths,
                   Py_ssize_t stride, int repeats, uint64_t *words) noexcept nogil:
    """Nanoseconds of ``repeats`` passes. scratch has room for two pages of the largest size, words for the bitmap and
    the hashes of all pages."""
    cdef uint64_t begun = colo_now_ns()
    cdef uint64_t *hashes = words + (pages + 63) // 64
    cdef uint8_t *encoded = scratch + COLO_PAGE_BYTES_MAX
    cdef int dlen = page_bytes if page_bytes < 0xFFFF else 0xFFFF
    cdef size_t result = 0
    cdef Py_ssize_t i
    cdef int _pass
    for _pass in range(repeats):
        if work == SCAN:
            result += k.scan(new, old, pages, page_bytes, words, 0)
        elif work == SCAN_HASH:
            result += k.scan_hash(new, hashes, scratch, pages, page_bytes, words, 0)
        elif work == MEMCMP:
            for i in range(pages):
                result += memcmp(old + i * page_bytes, new + i * page_bytes, page_bytes) != 0
        elif work == MEMCPY:
            for i in range(pages):
                memcpy(scratch, new + i * page_bytes, page_bytes)
                COLO_OPAQUE(<size_t>scratch)
        elif work == READ_ONE:
            for i in range(pages):
                result += colo_read_one(new + i * page_bytes, page_bytes)
        elif work == READ_TWO:
            for i in range(pages):
                result += colo_read_two(old + i * page_bytes, new + i * page_bytes, page_bytes)
        elif work == ENCODE:
            for i in range(pages):
                result += k.xbzrle_encode(old + i * page_bytes, new + i * page_bytes, page_bytes, encoded, dlen)
        elif work == STEP:
            for i in range(pages):
                result += k.xbzrle_step(
                    old + i * page_bytes, new + i * page_bytes,
                    old + (i + 1) * page_bytes if i + 1 < pages else NULL,
                    new + (i + 1) * page_bytes if i + 1 < pages else NULL, scratch, page_bytes, encoded, dlen)
        elif work == DECODE:
            for i in range(pages):
                if lengths[i] > 0:
                    result += k.xbzrle_decode(arena + i * stride, lengths[i], old + i * page_bytes, page_bytes)
        elif work == CHECK:
            for i in range(pages):
                if lengths[i] > 0:
                    result += k.xbzrle_check(arena + i * stride, lengths[i], page_bytes)
        elif work == IS_ZERO:
            for i in range(pages):
                result += k.is_zero(new + i * page_bytes, page_bytes)
    COLO_OPAQUE(result)
    return colo_now_ns() - begun


def time_pages(str work, uint8_t[::1] old, const uint8_t[::1] new, Py_ssize_t page_bytes=4096, *, int repeats=1,
               int warm_up_us=0, level=None, const uint8_t[::1] arena=None, const int32_t[::1] lengths=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    if work not in _WORKS:
        raise ValueError(f"work is {work!r}: it is one of {', '.join(WORKS)}")
    cdef Work which = _WORKS[work]
    cdef Py_ssize_t size = old.shape[0], pages = whole_pages(size, page_bytes, "old"), stride = 0, i
    if new.shape[0] != size or not pages:
        raise ValueError(f"old and new have {size} and {new.shape[0]} bytes: give as many, and a page at least")
    if repeats < 1 or warm_up_us < 0:
        raise ValueError(f"repeats is {repeats}, warm_up_us {warm_up_us}: give 1 and 0 or more")
    if which == STEP or which == DECODE:
        check_apart(&old[0], size, &new[0], size, "old and new")
    if which == DECODE or which == CHECK:
        if arena is None or lengths is None or lengths.shape[0] != pages or arena.shape[0] % pages:
            raise ValueError(f"{work} takes lengths, and an arena with an equal share, for each of {pages} pages")
        stride = arena.shape[0] // pages
        for i in range(pages):
            if lengths[i] > stride:
                raise ValueError(f"lengths[{i}] is {lengths[i]}: a page's share of the arena is {stride}")
    cdef uint64_t *words = <uint64_t *>calloc((pages + 63) // 64 + 2 * pages, 8)
    cdef uint8_t *scratch = <uint8_t *>calloc(3 * COLO_PAGE_BYTES_MAX, 1)
    cdef uint8_t *aligned = <uint8_t *>((<size_t>scratch + 4095) & ~<size_t>4095)
    # The step changes its shadow: the same pages and the same instructions warm up without that.
    cdef Work before = ENCODE if which == STEP else which
    cdef uint64_t taken, warm
    try:
        if words == NULL or scratch == NULL:
            raise MemoryError()
        with nogil:
            if warm_up_us:
                warm = colo_now_ns() + <uint64_t>warm_up_us * 1000
                while colo_now_ns() < warm:
                    _run(before, k, &old[0], &new[0], pages, <int>page_bytes, aligned,
                         &arena[0] if stride else NULL, &lengths[0] if stride else NULL, stride, 1, words)
            taken = _run(which, k, &old[0], &new[0], pages, <int>page_bytes, aligned,
                         &arena[0] if stride else NULL, &lengths[0] if stride else NULL, stride, repeats, words)
        return <double>taken / (pages * repeats)
    finally:
        free(words)
        free(scratch)
