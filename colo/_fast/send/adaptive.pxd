# Compression of single pages between two colo ends, as the page encoder uses it.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from colo._fast.send.ramrecords cimport colo_page_codec

cdef enum:
    ADAPTIVE_LZ4 = 0
    ADAPTIVE_ZSTD = 1
    ADAPTIVE_MASK = 2
    ADAPTIVE_METHODS = 3
    ADAPTIVE_CLASSES = 5

ctypedef struct Estimate:
    double saved_bytes          # against the better of XBZRLE and raw; a running average
    double cpu_ns
    uint32_t measured

ctypedef struct CodecConfig:
    double ns_per_byte          # of the link; 0: unknown, nothing pays
    double cpu_weight
    int floor_bytes
    int zstd_level
    int allowed[ADAPTIVE_METHODS]

ctypedef struct CodecState:
    const CodecConfig *config
    uint8_t *work               # old page, new page, output: contiguous, the old page is LZ4's prefix
    void *lz4_stream
    void *zstd_context
    Estimate estimates[ADAPTIVE_CLASSES][ADAPTIVE_METHODS]
    uint32_t asked[ADAPTIVE_CLASSES]
    uint64_t pages[ADAPTIVE_METHODS]
    uint64_t declined
    uint64_t tried
    uint64_t cpu_ns


cdef class AdaptiveCodec:
    cdef CodecConfig config
    cdef CodecState *states
    cdef int nstates
    cdef bint bound
    cdef readonly Py_ssize_t page_bytes

    cdef int bind(self, Py_ssize_t page_bytes, int threads) except -1
    cdef colo_page_codec for_thread(self, int thread) noexcept
