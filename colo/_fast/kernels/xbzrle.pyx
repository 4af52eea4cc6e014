"""XBZRLE on batches of pages. See xbzrle.pyi for what each function promises."""
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport free, malloc

from colo._fast.kernels.kernels cimport (
    COLO_PAGE_BYTES_MAX,
    COLO_XBZRLE_SLACK,
    check_apart,
    check_page_bytes,
    colo_kernels,
    for_level,
    whole_pages,
)
from colo._fast.kernels.views cimport Views, release, take

from colo.errors import StreamError

SLACK_BYTES = COLO_XBZRLE_SLACK
ENCODED_BYTES_MAX = 0xFFFF


cdef int _dlen(object dlen, Py_ssize_t page_bytes) except -1:
    cdef Py_ssize_t value
    if dlen is None:
        return <int>min(page_bytes, 0xFFFF)
    value = dlen
    if not 0 <= value <= 0xFFFF:
        raise ValueError(f"dlen is {value}: an encoded page has a 16-bit length on the wire, so 0 to {ENCODED_BYTES_MAX}")
    return <int>value


cdef int _check_pair(Py_ssize_t a_bytes, Py_ssize_t b_bytes, str names) except -1:
    if a_bytes != b_bytes:
        raise ValueError(f"{names} differ in size: {a_bytes} and {b_bytes} bytes")
    return 0


cdef int _check_batch(Py_ssize_t pages, Py_ssize_t first, Py_ssize_t entries, Py_ssize_t room, int most) except -1:
    if not 0 <= first <= pages:
        raise ValueError(f"first is {first}: there are {pages} pages")
    if entries < pages:
        raise ValueError(f"lengths has {entries} entries for {pages} pages")
    if first < pages and room < most + COLO_XBZRLE_SLACK:
        raise ValueError(f"arena has {room} bytes: one page may need dlen + {SLACK_BYTES} = {most + COLO_XBZRLE_SLACK}")
    return 0


def encode_pages(old, new, Py_ssize_t page_bytes, arena, lengths, *, dlen=None, Py_ssize_t first=0, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Views views
    cdef Py_ssize_t size, new_bytes, room, entries, pages, used = 0, i = first
    cdef const uint8_t *o
    cdef const uint8_t *w
    cdef uint8_t *d
    cdef int32_t *out
    cdef int most, n
    views.count = 0
    try:
        o = <const uint8_t *>take(&views, old, c"B", False, "old", &size)
        w = <const uint8_t *>take(&views, new, c"B", False, "new", &new_bytes)
        d = <uint8_t *>take(&views, arena, c"B", True, "arena", &room)
        out = <int32_t *>take(&views, lengths, c"i", True, "lengths", &entries)
        _check_pair(size, new_bytes, "old and new")
        pages = whole_pages(size, page_bytes, "old")
        most = _dlen(dlen, page_bytes)
        _check_batch(pages, first, entries, room, most)
        check_apart(d, room, o, size, "arena and old")
        check_apart(d, room, w, size, "arena and new")
        check_apart(d, room, out, 4 * entries, "arena and lengths")
        check_apart(out, 4 * entries, o, size, "lengths and old")
        check_apart(out, 4 * entries, w, size, "lengths and new")
        with nogil:
            while i < pages and room - used >= most + COLO_XBZRLE_SLACK:
                n = k.xbzrle_encode(o + i * page_bytes, w + i * page_bytes, <int>page_bytes, d + used, most)
                out[i] = n
                if n > 0:
                    used += n
                i += 1
        return i, used
    finally:
        release(&views)


def step_pages(shadow, live, Py_ssize_t page_bytes, arena, lengths, *, dlen=None, Py_ssize_t first=0, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Views views
    cdef Py_ssize_t size, shadow_bytes, room, entries, pages, used = 0, i = first
    cdef uint8_t *s
    cdef const uint8_t *w
    cdef uint8_t *d
    cdef int32_t *out
    cdef const uint8_t *next_shadow
    cdef const uint8_t *next_live
    cdef uint8_t *scratch = NULL
    cdef uint8_t *snapshot
    cdef int most, n
    views.count = 0
    try:
        s = <uint8_t *>take(&views, shadow, c"B", True, "shadow", &shadow_bytes)
        w = <const uint8_t *>take(&views, live, c"B", False, "live", &size)
        d = <uint8_t *>take(&views, arena, c"B", True, "arena", &room)
        out = <int32_t *>take(&views, lengths, c"i", True, "lengths", &entries)
        _check_pair(shadow_bytes, size, "shadow and live")
        pages = whole_pages(size, page_bytes, "live")
        most = _dlen(dlen, page_bytes)
        _check_batch(pages, first, entries, room, most)
        check_apart(s, size, w, size, "shadow and live")
        check_apart(d, room, s, size, "arena and shadow")
        check_apart(d, room, w, size, "arena and live")
        check_apart(d, room, out, 4 * entries, "arena and lengths")
        check_apart(out, 4 * entries, s, size, "lengths and shadow")
        check_apart(out, 4 * entries, w, size, "lengths and live")
        scratch = <uint8_t *>malloc(COLO_PAGE_BYTES_MAX + 64)
        if scratch == NULL:
            raise MemoryError()
        snapshot = scratch + (64 - (<size_t>scratch & 63))
        with nogil:
            while i < pages and room - used >= most + COLO_XBZRLE_SLACK:
                next_shadow = s + (i + 1) * page_bytes if i + 1 < pages else NULL
                next_live = w + (i + 1) * page_bytes if i + 1 < pages else NULL
                n = k.xbzrle_step(s + i * page_bytes, w + i * page_bytes, next_shadow, next_live, snapshot,
                                  <int>page_bytes, d + used, most)
                out[i] = n
                if n > 0:
                    used += n
                i += 1
        return i, used
    finally:
        free(scratch)
        release(&views)


cdef object _bad_encoding(Py_ssize_t page, Py_ssize_t at, int length, Py_ssize_t page_bytes):
    return StreamError(
        f"these {length} bytes are no valid encoding of a change to a page of {page_bytes} bytes; no page was touched",
        where=f"XBZRLE, page {page}", offset=at, value=length)


def decode_pages(arena, lengths, pages, Py_ssize_t page_bytes, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Views views
    cdef Py_ssize_t size, held, entries, count, at = 0, bad = -1, i
    cdef const int32_t *n
    cdef const uint8_t *src
    cdef uint8_t *dst
    views.count = 0
    try:
        src = <const uint8_t *>take(&views, arena, c"B", False, "arena", &held)
        n = <const int32_t *>take(&views, lengths, c"i", False, "lengths", &entries)
        dst = <uint8_t *>take(&views, pages, c"B", True, "pages", &size)
        count = whole_pages(size, page_bytes, "pages")
        if entries != count:
            raise ValueError(f"lengths has {entries} entries for {count} pages")
        check_apart(dst, size, src, held, "pages and arena")
        check_apart(dst, size, n, 4 * count, "pages and lengths")
        with nogil:
            for i in range(count):
                if n[i] <= 0:
                    continue
                if n[i] > held - at or k.xbzrle_check(src + at, n[i], <int>page_bytes) < 0:
                    bad = i
                    break
                at += n[i]
        if bad >= 0:
            if n[bad] > held - at:
                raise ValueError(f"lengths[{bad}] is {n[bad]}, but the arena holds {held - at} more bytes at offset {at}; "
                                 f"no page was touched")
            raise _bad_encoding(bad, at, n[bad], page_bytes)
        at = 0
        with nogil:
            for i in range(count):
                if n[i] > 0:
                    k.xbzrle_decode(src + at, n[i], dst + i * page_bytes, <int>page_bytes)
                    at += n[i]
        return at
    finally:
        release(&views)


def encode(const uint8_t[::1] old, const uint8_t[::1] new, dlen=None, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    cdef Py_ssize_t page_bytes = old.shape[0]
    _check_pair(page_bytes, new.shape[0], "old and new")
    check_page_bytes(page_bytes)
    cdef int most = _dlen(dlen, page_bytes), n
    cdef uint8_t *arena = <uint8_t *>malloc(most + COLO_XBZRLE_SLACK)
    if arena == NULL:
        raise MemoryError()
    try:
        n = k.xbzrle_encode(&old[0], &new[0], <int>page_bytes, arena, most)
        return None if n < 0 else PyBytes_FromStringAndSize(<char *>arena, n)
    finally:
        free(arena)


def check(const uint8_t[::1] encoded, Py_ssize_t page_bytes, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    if encoded.shape[0] > 0x7FFFFFFF:
        return -1
    return k.xbzrle_check(&encoded[0] if encoded.shape[0] else NULL, <int>encoded.shape[0], <int>page_bytes)


def decode(const uint8_t[::1] encoded, uint8_t[::1] page, *, level=None):
    cdef const colo_kernels *k = for_level(level)
    cdef Py_ssize_t page_bytes = page.shape[0], size = encoded.shape[0]
    check_page_bytes(page_bytes)
    if not size:
        return 0
    check_apart(&encoded[0], size, &page[0], page_bytes, "encoded and page")
    if size > 0x7FFFFFFF or k.xbzrle_check(&encoded[0], <int>size, <int>page_bytes) < 0:
        raise _bad_encoding(0, 0, <int>min(size, 0x7FFFFFFF), page_bytes)
    return k.xbzrle_decode(&encoded[0], <int>size, &page[0], <int>page_bytes)
