"""Decodes what :class:`~colo._fast.send.adaptive.AdaptiveCodec` and XBZRLE made of pages, from a peer that is not trusted.

A page is written only when its whole record is right: what does not decode is found before anything is touched.
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from colo._fast.kernels.codec_libraries cimport PAGE_BYTES_MAX, ZSTD_MAGIC_BYTES, lz4, zstd
from colo._fast.kernels.kernels cimport active

from colo import wire
from colo._fast.kernels.codec_libraries import probe, usable_methods
from colo.errors import StreamError, Truncated, Unsupported


cdef extern from "maskdelta.h" nogil:
    int colo_mask_decode(const uint8_t *src, int length, uint8_t *page, int page_bytes)


cdef extern from "wire_numbers.h" nogil:
    uint64_t WIRE_RAM_ZERO, WIRE_RAM_PAGE, WIRE_RAM_EOS, WIRE_RAM_CONTINUE, WIRE_RAM_XBZRLE
    int WIRE_ENCODING_XBZRLE, WIRE_ENCODING_LZ4_DELTA, WIRE_ENCODING_ZSTD_DELTA, WIRE_ENCODING_LZ4_PAGE
    int WIRE_ENCODING_ZSTD_PAGE, WIRE_ENCODING_MASK_DELTA


cdef enum:
    SLACK_BYTES = 64
    RECORD_SHORT = -10
    RECORD_FLAGS = -11
    RECORD_OUTSIDE = -12

cdef uint8_t ZSTD_MAGIC[4]
ZSTD_MAGIC[0], ZSTD_MAGIC[1], ZSTD_MAGIC[2], ZSTD_MAGIC[3] = 0x28, 0xB5, 0x2F, 0xFD


cdef class AdaptiveDecoder:
    """Decodes what :class:`AdaptiveCodec` and XBZRLE made. Safe on any input; a page is written only when its
    whole record is right.

    ``page_bytes``: a power of two of 1024 to 16384, else ValueError. Methods that are not usable here are
    refused when a record asks for them.
    """

    def __init__(self, Py_ssize_t page_bytes=4096):
        if self.work != NULL:
            raise TypeError("an AdaptiveDecoder is made once")
        if page_bytes < 1024 or page_bytes > PAGE_BYTES_MAX or page_bytes & (page_bytes - 1):
            raise ValueError(f"a page has 1024 to {PAGE_BYTES_MAX} bytes, a power of two, not {page_bytes}")
        self.page_bytes = page_bytes
        # One page to decode into, and room for the longest frame with its magic number put back.
        self.work = <uint8_t *>malloc(page_bytes + 65536 + SLACK_BYTES)
        if self.work == NULL:
            raise MemoryError("no memory for decompression")
        if "zstd" in usable_methods():
            self.zstd_context = zstd.create_decoder()
            if self.zstd_context == NULL:
                raise MemoryError("no memory for decompression")

    def __dealloc__(self):
        if self.zstd_context != NULL:
            zstd.release_decoder(self.zstd_context)
        free(self.work)

    cdef int decode(self, int encoding, const uint8_t *src, int length, const uint8_t *old_page,
                    uint8_t *new_page) noexcept nogil:
        """Decode one record's payload of ``length`` <= 65535 bytes. ``new_page`` may be ``old_page``. Returns
        DECODED, or the reason why not with ``new_page`` untouched."""
        cdef int size = <int>self.page_bytes
        cdef bint delta = encoding == WIRE_ENCODING_LZ4_DELTA or encoding == WIRE_ENCODING_ZSTD_DELTA
        cdef uint8_t *frame = self.work + size
        cdef size_t made
        if length < 0 or length > size:  # an empty XBZRLE changes nothing, as in QEMU
            return DECODE_MALFORMED
        if encoding == WIRE_ENCODING_XBZRLE:
            if active().xbzrle_check(src, length, size) < 0:
                return DECODE_MALFORMED
            if new_page != old_page:
                memcpy(new_page, old_page, size)
            active().xbzrle_decode(src, length, new_page, size)
            return DECODED
        if encoding == WIRE_ENCODING_MASK_DELTA:
            if new_page != old_page:
                memcpy(self.work, old_page, size)
                if colo_mask_decode(src, length, self.work, size) < 0:
                    return DECODE_MALFORMED
                memcpy(new_page, self.work, size)
                return DECODED
            return DECODED if colo_mask_decode(src, length, new_page, size) == 0 else DECODE_MALFORMED
        if encoding == WIRE_ENCODING_LZ4_DELTA or encoding == WIRE_ENCODING_LZ4_PAGE:
            if lz4.decompress == NULL:
                return DECODE_MISSING
            if lz4.decompress(<const char *>src, <char *>self.work, length, size, <const char *>old_page,
                              size if delta else 0) != size:
                return DECODE_MALFORMED
        elif encoding == WIRE_ENCODING_ZSTD_DELTA or encoding == WIRE_ENCODING_ZSTD_PAGE:
            if self.zstd_context == NULL:
                return DECODE_MISSING
            memcpy(frame, ZSTD_MAGIC, ZSTD_MAGIC_BYTES)
            memcpy(frame + ZSTD_MAGIC_BYTES, src, length)
            # A prefix serves one frame; without one, what an earlier bad frame left unused is dropped.
            made = zstd.use_decoder_prefix(self.zstd_context, old_page if delta else NULL,
                                           size if delta else 0)
            if zstd.is_error(made):
                return DECODE_MALFORMED
            made = zstd.decompress(self.zstd_context, self.work, size, frame, length + ZSTD_MAGIC_BYTES)
            if zstd.is_error(made) or made != <size_t>size:
                return DECODE_MALFORMED
        else:
            return DECODE_UNKNOWN
        memcpy(new_page, self.work, size)
        return DECODED

    cdef int apply_all(self, const uint8_t *src, size_t length, uint8_t *memory, size_t memory_bytes,
                       size_t *at, uint64_t *pages) noexcept nogil:
        """Apply records up to EOS or the end. *at: where the record begins that could not be, or the end."""
        cdef uint64_t word, offset, flags
        cdef size_t p = 0, size = self.page_bytes
        cdef int i, encoding, n, status
        cdef bint named
        while p < length:
            at[0] = p
            if length - p < 8:
                return RECORD_SHORT
            word = 0
            for i in range(8):
                word = word << 8 | src[p + i]
            p += 8
            offset = word & ~<uint64_t>(size - 1)
            flags = word & (size - 1)
            if flags == WIRE_RAM_EOS:
                at[0] = p
                return DECODED
            named = not flags & WIRE_RAM_CONTINUE
            flags &= ~WIRE_RAM_CONTINUE
            if flags != WIRE_RAM_ZERO and flags != WIRE_RAM_PAGE and flags != WIRE_RAM_XBZRLE:
                return RECORD_FLAGS
            if offset >= memory_bytes or memory_bytes - offset < size:
                return RECORD_OUTSIDE
            if named:
                if length - p < 1 or length - p < 1 + <size_t>src[p]:
                    return RECORD_SHORT
                p += 1 + <size_t>src[p]
            if flags == WIRE_RAM_ZERO:
                if length - p < 1:
                    return RECORD_SHORT
                memset(memory + offset, src[p], size)
                p += 1
            elif flags == WIRE_RAM_PAGE:
                if length - p < size:
                    return RECORD_SHORT
                memcpy(memory + offset, src + p, size)
                p += size
            else:
                if length - p < 3:
                    return RECORD_SHORT
                encoding = src[p]
                n = <int>src[p + 1] << 8 | src[p + 2]
                if length - p - 3 < <size_t>n:
                    return RECORD_SHORT
                status = self.decode(encoding, src + p + 3, n, memory + offset, memory + offset)
                if status != DECODED:
                    return status
                p += 3 + n
            pages[0] += 1
        at[0] = p
        return DECODED

    def apply(self, const uint8_t[::1] records not None, object memory):
        """Apply a run of RAM records, of one block whatever its name, to ``memory`` (a writable buffer of
        whole pages), up to EOS or the end. Returns (bytes used, pages). Raises Truncated, StreamError, or
        Unsupported (a codec that is missing here); pages before the bad record are then applied. This is the
        receiver's part for tests, benchmarks and stored checkpoints; a session stages pages instead.
        """
        cdef Py_buffer view
        cdef size_t at = 0
        cdef uint64_t pages = 0
        cdef int status
        PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE | PyBUF_ND | PyBUF_FORMAT)
        try:
            if view.itemsize != 1 or view.len % self.page_bytes:
                raise ValueError(f"{view.len} bytes in items of {view.itemsize} are no whole number of pages "
                                 f"of {self.page_bytes}")
            if records.shape[0] == 0:
                return 0, 0
            with nogil:
                status = self.apply_all(&records[0], records.shape[0], <uint8_t *>view.buf, view.len, &at,
                                        &pages)
        finally:
            PyBuffer_Release(&view)
        if status != DECODED:
            raise record_error(status, records, at)
        return at, pages


cdef object record_error(int status, const uint8_t[::1] records, size_t at):
    word = int.from_bytes(bytes(records[at:at + 8]), "big")
    where = "RAM record"
    if status == RECORD_SHORT:
        return Truncated("the record is cut short", where=where, offset=at, value=word)
    if status == RECORD_FLAGS:
        return StreamError(f"flags that no page record has ({word & 0xfff:#x})", where=where, offset=at,
                           value=word)
    if status == RECORD_OUTSIDE:
        return StreamError(f"page offset {word & ~0x3ff:#x} lies outside the RAM block", where=where,
                           offset=at, value=word)
    start = at + 8 + (0 if word & WIRE_RAM_CONTINUE else 1 + records[at + 8])
    encoding = records[start]
    if status == DECODE_UNKNOWN or encoding not in wire.PageEncoding.__members__.values():
        return StreamError(f"unknown page encoding {encoding:#x}: was the codec agreed with this peer?",
                           where=where, offset=at, value=encoding)
    name = wire.PageEncoding(encoding).name
    if status == DECODE_MISSING:
        method = name.split("_")[0].lower()
        return Unsupported(f"a {name} record at byte {at}: compression by {method} is {probe()[method]}; "
                           "do not offer it")
    return StreamError(f"the {name} encoding does not decode to a page", where=where, offset=at,
                       value=encoding)
