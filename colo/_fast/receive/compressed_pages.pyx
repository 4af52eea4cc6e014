# link: z
"""Pages made of compressed records: QEMU's COMPRESS_PAGE (zlib), and the encodings that two colo ends agreed on.

A page is made when its record comes, from the committed page where the record is a delta: so what does not decode is
refused before anything is committed.
"""
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from colo._fast.kernels.ramblock cimport RamBlock, ram_block, test_bit
from colo._fast.receive.adaptive_decoder cimport DECODE_MISSING, DECODED, AdaptiveDecoder
from colo._fast.receive.ram_refusals cimport BAD_COMPRESSED, BAD_ENCODED, BAD_METHOD, BAD_TWICE, BAD_XBZRLE_BASE
from colo._fast.receive.staging cimport Staging

cdef extern from "wire_numbers.h":
    const uint64_t WIRE_PAGE_BYTES
    const int WIRE_PAGE_BITS
    const int WIRE_ENCODING_LZ4_DELTA
    const int WIRE_ENCODING_ZSTD_DELTA
    const int WIRE_ENCODING_MASK_DELTA

cdef extern from "zlib.h":
    int uncompress(uint8_t *dest, unsigned long *dest_len, const uint8_t *source, unsigned long source_len) noexcept nogil


cdef class CompressedPages:
    """Makes the pages of one :class:`~colo._fast.receive.pagedecoder.PageDecoder`'s compressed records."""

    def __dealloc__(self):
        free(self.touched)
        free(self.first_word)

    cdef int watch(self, list blocks, AdaptiveDecoder codec) except -1:
        """Begin a checkpoint in which ``codec``'s encodings come: its pages are noted, so that no delta meets a page of it."""
        cdef RamBlock block
        cdef size_t n = 0, i
        cdef void *p = realloc(self.first_word, max(1, len(blocks)) * sizeof(size_t))
        if p == NULL:
            raise MemoryError("no memory for the list of RAM blocks")
        self.first_word = <size_t *>p
        for i, block in enumerate(blocks):
            self.first_word[i] = n
            n += ((block.c.used_length >> WIRE_PAGE_BITS) + 63) // 64
        p = realloc(self.touched, max(1, n) * 8)
        if p == NULL:
            raise MemoryError("no memory for the bitmap of a checkpoint's pages")
        self.touched = <uint64_t *>p
        memset(self.touched, 0, n * 8)
        self.codec = codec
        return 0

    cdef int decompress(self, Staging s, int block, uint64_t offset, int encoding, const uint8_t *source, int n) noexcept nogil:
        """Stage a record of the agreed codec as its page. It is made now, from the committed page where it is a delta: so
        what does not decode is refused before anything is committed."""
        cdef ram_block *b = s.blocks[block]
        cdef uint64_t page = offset >> WIRE_PAGE_BITS
        cdef uint8_t *room
        cdef int code
        if (encoding == WIRE_ENCODING_LZ4_DELTA or encoding == WIRE_ENCODING_ZSTD_DELTA
                or encoding == WIRE_ENCODING_MASK_DELTA):
            if not test_bit(b.received, page):
                return BAD_XBZRLE_BASE
            if test_bit(self.touched + self.first_word[block], page):
                return BAD_TWICE
        if b.memory == NULL:
            return 0
        code = s.room_for_page(&room)
        if code:
            return code
        code = self.codec.decode(encoding, source, n, b.memory + offset, room)
        if code == DECODE_MISSING:
            return BAD_METHOD
        if code != DECODED:
            return BAD_ENCODED
        return s.add_made_page(block, offset)

    cdef int inflate(self, Staging s, int block, uint64_t offset, const uint8_t *source, size_t n) noexcept nogil:
        """Stage a COMPRESS_PAGE record as its page: what does not inflate to exactly one page is refused now."""
        cdef unsigned long size = WIRE_PAGE_BYTES
        cdef uint8_t *room
        cdef int code = s.room_for_page(&room)
        if code:
            return code
        if uncompress(room, &size, source, n) != 0 or size != WIRE_PAGE_BYTES:
            return BAD_COMPRESSED
        return s.add_made_page(block, offset)
