"""Which pages changed: against a shadow copy, or against keyed hashes. See scan.pyi."""
import os

from libc.stdint cimport uint8_t, uint64_t

from colo._fast.kernels cimport (
    COLO_HASH_KEY_SHIFT,
    COLO_HASH_WORDS,
    check_apart,
    check_page_bytes,
    colo_kernels,
    for_level,
    whole_pages,
)


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


def scan_shadow(const uint8_t[::1] memory, const uint8_t[::1] shadow, uint64_t[::1] bitmap,
                Py_ssize_t page_bytes=4096, *, Py_ssize_t first_page=0, pages=None, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Py_ssize_t size = memory.shape[0]
    if shadow.shape[0] != size:
        raise ValueError(f"memory and shadow differ in size: {size} and {shadow.shape[0]} bytes")
    cdef Py_ssize_t n = _range(whole_pages(size, page_bytes, "memory"), first_page, pages, bitmap.shape[0])
    if not n:
        return 0
    cdef const uint8_t *m = &memory[0]
    cdef const uint8_t *s = &shadow[0]
    cdef uint64_t *bits = &bitmap[0]
    check_apart(m, size, bits, 8 * bitmap.shape[0], "memory and bitmap")
    check_apart(s, size, bits, 8 * bitmap.shape[0], "shadow and bitmap")
    cdef size_t dirty
    with nogil:
        dirty = k.scan(m + first_page * page_bytes, s + first_page * page_bytes, n, page_bytes, bits, first_page)
    return dirty


def hash_key(Py_ssize_t page_bytes=4096):
    check_page_bytes(page_bytes)
    return os.urandom(page_bytes + COLO_HASH_KEY_SHIFT)


def scan_hashes(const uint8_t[::1] memory, uint64_t[::1] hashes, const uint8_t[::1] key, uint64_t[::1] bitmap,
                Py_ssize_t page_bytes=4096, *, Py_ssize_t first_page=0, pages=None, level=None):
    cdef const colo_kernels *k = for_level(level)
    check_page_bytes(page_bytes)
    cdef Py_ssize_t size = memory.shape[0], block = whole_pages(size, page_bytes, "memory")
    cdef Py_ssize_t n = _range(block, first_page, pages, bitmap.shape[0])
    if hashes.shape[0] != COLO_HASH_WORDS * block:
        raise ValueError(f"hashes has {hashes.shape[0]} words: {block} pages take {COLO_HASH_WORDS * block}")
    if key.shape[0] != page_bytes + COLO_HASH_KEY_SHIFT:
        raise ValueError(f"key has {key.shape[0]} bytes: hash_key({page_bytes}) makes one of "
                         f"{page_bytes + COLO_HASH_KEY_SHIFT}")
    if not n:
        return 0
    cdef const uint8_t *m = &memory[0]
    cdef uint64_t *h = &hashes[0]
    cdef const uint8_t *secret = &key[0]
    cdef uint64_t *bits = &bitmap[0]
    check_apart(m, size, bits, 8 * bitmap.shape[0], "memory and bitmap")
    check_apart(m, size, h, 8 * hashes.shape[0], "memory and hashes")
    check_apart(h, 8 * hashes.shape[0], bits, 8 * bitmap.shape[0], "hashes and bitmap")
    check_apart(secret, key.shape[0], h, 8 * hashes.shape[0], "key and hashes")
    check_apart(secret, key.shape[0], bits, 8 * bitmap.shape[0], "key and bitmap")
    cdef size_t dirty
    with nogil:
        dirty = k.scan_hash(m + first_page * page_bytes, h + COLO_HASH_WORDS * first_page, secret, n, page_bytes,
                            bits, first_page)
    return dirty
