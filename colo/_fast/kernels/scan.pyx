"""Which pages changed: against a shadow copy, or against keyed hashes. See scan.pyi."""
from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels.kernels cimport (
    COLO_HASH_KEY_SHIFT,
    COLO_HASH_WORDS,
    check_apart,
    check_page_bytes,
    colo_kernels,
    for_level,
    whole_pages,
)
from colo._fast.kernels.views cimport Views, release, take

import os


cdef Py_ssize_t _range(Py_ssize_t pages, Py_ssize_t first, object count, Py_ssize_t words) except -1:
    """The number of pages to look at, once the range and the bitmap fit the block."""
    cdef Py_ssize_t n
    if words != (pages + 63) // 64:
        raise ValueError(f"bitmap has {words} words: a block of {pages} pages takes {(pages + 63) // 64}")
    if not 0 <= first <= pages:
        raise ValueError(f"first_page is {first}: the block has {pages} pages")
    n = pages - first if count is None else count
    if not 0 <= n <= pages - first:
        raise ValueError(f"pages is {n}: the block has {pages - first} from page {first}")
    return n


def scan_shadow(memory, shadow, bitmap, Py_ssize_t page_bytes=4096, *, Py_ssize_t first_page=0, pages=None, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Views views
    cdef Py_ssize_t size, shadow_bytes, words, n
    cdef const uint8_t *m
    cdef const uint8_t *s
    cdef uint64_t *bits
    cdef size_t dirty
    views.count = 0
    try:
        m = <const uint8_t *>take(&views, memory, c"B", False, "memory", &size)
        s = <const uint8_t *>take(&views, shadow, c"B", False, "shadow", &shadow_bytes)
        bits = <uint64_t *>take(&views, bitmap, c"Q", True, "bitmap", &words)
        if shadow_bytes != size:
            raise ValueError(f"memory and shadow differ in size: {size} and {shadow_bytes} bytes")
        n = _range(whole_pages(size, page_bytes, "memory"), first_page, pages, words)
        check_apart(m, size, bits, 8 * words, "memory and bitmap")
        check_apart(s, size, bits, 8 * words, "shadow and bitmap")
        with nogil:
            dirty = k.scan(m + first_page * page_bytes, s + first_page * page_bytes, n, page_bytes, bits, first_page)
        return dirty
    finally:
        release(&views)


def hash_key(Py_ssize_t page_bytes=4096):
    check_page_bytes(page_bytes)
    return os.urandom(page_bytes + COLO_HASH_KEY_SHIFT)


def scan_hashes(memory, hashes, key, bitmap, Py_ssize_t page_bytes=4096, *, Py_ssize_t first_page=0, pages=None,
                level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Views views
    cdef Py_ssize_t size, hash_words, key_bytes, words, block, n
    cdef const uint8_t *m
    cdef uint64_t *h
    cdef const uint8_t *secret
    cdef uint64_t *bits
    cdef size_t dirty
    views.count = 0
    try:
        m = <const uint8_t *>take(&views, memory, c"B", False, "memory", &size)
        h = <uint64_t *>take(&views, hashes, c"Q", True, "hashes", &hash_words)
        secret = <const uint8_t *>take(&views, key, c"B", False, "key", &key_bytes)
        bits = <uint64_t *>take(&views, bitmap, c"Q", True, "bitmap", &words)
        block = whole_pages(size, page_bytes, "memory")
        n = _range(block, first_page, pages, words)
        if hash_words != COLO_HASH_WORDS * block:
            raise ValueError(f"hashes has {hash_words} words: {block} pages take {COLO_HASH_WORDS * block}")
        if key_bytes != page_bytes + COLO_HASH_KEY_SHIFT:
            raise ValueError(f"key has {key_bytes} bytes: hash_key({page_bytes}) makes one of "
                             f"{page_bytes + COLO_HASH_KEY_SHIFT}")
        check_apart(m, size, bits, 8 * words, "memory and bitmap")
        check_apart(m, size, h, 8 * hash_words, "memory and hashes")
        check_apart(h, 8 * hash_words, bits, 8 * words, "hashes and bitmap")
        check_apart(secret, key_bytes, h, 8 * hash_words, "key and hashes")
        check_apart(secret, key_bytes, bits, 8 * words, "key and bitmap")
        with nogil:
            dirty = k.scan_hash(m + first_page * page_bytes, h + COLO_HASH_WORDS * first_page, secret, n, page_bytes,
                                bits, first_page)
        return dirty
    finally:
        release(&views)
