"""Adaptive compression of pages: a codec between two colo ends that agreed on it, **never towards a QEMU**.

Every changed page is XBZRLE-encoded first. Where that gives more than ``floor_bytes``, one of these may be
tried, and the smaller result is sent (``wire.PageEncoding`` has the records):

* bit masks of what changed, then the bytes (``maskdelta.h``): a microsecond, for many short runs of changes;
* LZ4 with the old page as dictionary (``lz4delta.h``): a few microseconds a page;
* zstd with the old page as prefix: slower still, and smaller;
* for a page with no old copy, the latter two by themselves.

Which, if any, is a matter of money: a method pays where ``saved bytes * link ns per byte`` exceeds ``its CPU
ns * cpu_weight``. Both are measured as the codec runs, by how well XBZRLE did on the page (pages that XBZRLE
shrinks little may be shuffled records, where a dictionary helps, or noise, where nothing does); now and then
every method is tried again, since the guest's work changes. The link's rate is the caller's to measure:
:meth:`AdaptiveCodec.set_link`.

The libraries' functions are called without the GIL, page after page (``codec_libraries``). What is missing on
this machine is not used. The receiver's part is :class:`~colo._fast.receive.adaptive_decoder.AdaptiveDecoder`.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from colo._fast.kernels.codec_libraries cimport PAGE_BYTES_MAX, ZSTD_MAGIC_BYTES, lz4, zstd
from colo._fast.send.ramrecords cimport colo_page_codec

from typing import NamedTuple

from colo._fast.kernels.codec_libraries import METHODS, probe, usable_methods
from colo.errors import Unsupported


cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *when)


cdef extern from "lz4delta.h" nogil:
    int colo_lz4_delta(const uint8_t *pages, int size, uint8_t *dst, int room)


cdef extern from "maskdelta.h" nogil:
    int colo_mask_encode(const uint8_t *old_page, const uint8_t *new_page, int page_bytes, uint8_t *dst, int room)


cdef extern from "wire_numbers.h" nogil:
    int WIRE_ENCODING_LZ4_DELTA, WIRE_ENCODING_ZSTD_DELTA, WIRE_ENCODING_LZ4_PAGE, WIRE_ENCODING_ZSTD_PAGE
    int WIRE_ENCODING_MASK_DELTA


cdef enum:
    ZSTD_LEVEL = 100
    ZSTD_CONTENT_SIZE = 200
    ZSTD_CHECKSUM = 201
    ZSTD_DICTIONARY_ID = 202
    ZSTD_RESET_SESSION = 1
    EXPLORE_EVERY = 128
    RUNNING_AVERAGE = 64
    SLACK_BYTES = 64
    NO_OLD_PAGE = 4                 # the last of CLASSES

CLASSES = ("to 1/4 page", "to 1/2 page", "to a page", "overflow", "no old page")


cdef double now_ns() noexcept nogil:
    cdef timespec when
    clock_gettime(CLOCK_MONOTONIC, &when)
    return when.tv_sec * 1e9 + when.tv_nsec


cdef int pick(CodecState *s, int kind) noexcept nogil:
    """The method that pays best for a class of page, or -1."""
    cdef int method, best = -1
    cdef double gain, best_gain = 0
    cdef Estimate *e
    if s.config.ns_per_byte <= 0:
        return -1
    s.asked[kind] += 1
    if s.asked[kind] % EXPLORE_EVERY == 0:
        method = (s.asked[kind] // EXPLORE_EVERY) % ADAPTIVE_METHODS
        if s.config.allowed[method] and not (method == ADAPTIVE_MASK and kind == NO_OLD_PAGE):
            return method
    for method in range(ADAPTIVE_METHODS):
        if not s.config.allowed[method] or method == ADAPTIVE_MASK and kind == NO_OLD_PAGE:
            continue
        e = &s.estimates[kind][method]
        if e.measured < 4:
            return method
        gain = e.saved_bytes * s.config.ns_per_byte - e.cpu_ns * s.config.cpu_weight
        if gain > best_gain:
            best, best_gain = method, gain
    return best


cdef int run_lz4(CodecState *s, const uint8_t *old_page, const uint8_t *new_page, int size,
                 int room) noexcept nogil:
    cdef uint8_t *fresh = s.work + size
    memcpy(fresh, new_page, size)
    if old_page != NULL:
        memcpy(s.work, old_page, size)
        return colo_lz4_delta(s.work, size, fresh + size, room)
    # Loading nothing resets the stream.
    lz4.load_dictionary(s.lz4_stream, <const char *>s.work, 0)
    return lz4.compress(s.lz4_stream, <const char *>fresh, <char *>fresh + size, size, room, 1)


cdef int run_zstd(CodecState *s, const uint8_t *old_page, const uint8_t *new_page, int size,
                  int room) noexcept nogil:
    cdef size_t made
    if old_page != NULL and zstd.is_error(zstd.use_prefix(s.zstd_context, old_page, size)):
        return 0
    # With all the room that it may need: running out of it would leave the context in the middle of a frame.
    made = zstd.compress(s.zstd_context, s.work + 2 * size - ZSTD_MAGIC_BYTES, 2 * size, new_page, size)
    if zstd.is_error(made):
        zstd.reset(s.zstd_context, ZSTD_RESET_SESSION)
        return 0
    return <int>made - ZSTD_MAGIC_BYTES if made <= <size_t>room + ZSTD_MAGIC_BYTES else 0


cdef int compress_page(void *state, const uint8_t *old_page, const uint8_t *new_page, int size,
                       int xbzrle_bytes, uint8_t *dst, int room, int *encoding) noexcept nogil:
    cdef CodecState *s = <CodecState *>state
    cdef int kind, method, made, target
    cdef int baseline = size if xbzrle_bytes < 0 else xbzrle_bytes
    cdef double begun, spent, weight
    cdef Estimate *e
    if old_page == NULL:
        kind = NO_OLD_PAGE
    elif xbzrle_bytes < 0:
        kind = 3
    else:
        kind = 0 if xbzrle_bytes <= size // 4 else 1 if xbzrle_bytes <= size // 2 else 2
    method = pick(s, kind)
    if method < 0:
        s.declined += 1
        return 0
    begun = now_ns()
    target = min(baseline - 1, room)
    if method == ADAPTIVE_LZ4:
        made = run_lz4(s, old_page, new_page, size, target)
    elif method == ADAPTIVE_MASK:
        made = colo_mask_encode(old_page, new_page, size, s.work + 2 * size, target)
    else:
        made = run_zstd(s, old_page, new_page, size, target)
    spent = now_ns() - begun
    s.tried += 1
    s.cpu_ns += <uint64_t>spent
    e = &s.estimates[kind][method]
    e.measured += 1
    weight = 1.0 / min(e.measured, <uint32_t>RUNNING_AVERAGE)
    # One page during which the thread was not running must not decide for the next hundred.
    if e.measured > 8 and spent > 8 * e.cpu_ns:
        spent = 8 * e.cpu_ns
    e.cpu_ns += (spent - e.cpu_ns) * weight
    e.saved_bytes += ((baseline - made if made > 0 else 0) - e.saved_bytes) * weight
    if made <= 0:
        return 0
    s.pages[method] += 1
    memcpy(dst, s.work + 2 * size, made)
    if method == ADAPTIVE_LZ4:
        encoding[0] = WIRE_ENCODING_LZ4_PAGE if old_page == NULL else WIRE_ENCODING_LZ4_DELTA
    elif method == ADAPTIVE_MASK:
        encoding[0] = WIRE_ENCODING_MASK_DELTA
    else:
        encoding[0] = WIRE_ENCODING_ZSTD_PAGE if old_page == NULL else WIRE_ENCODING_ZSTD_DELTA
    return made


class AdaptiveStats(NamedTuple):
    """Counts since the codec was made: ``pages`` sent by each method, ``tried`` pages (some results were no
    smaller and not used),
    ``declined`` pages for which no method was expected to pay, ``cpu_ns`` spent, and ``expected``: for each
    class of page and method the running averages (bytes saved, ns spent), where measured."""

    pages: dict[str, int]
    tried: int
    declined: int
    cpu_ns: int
    expected: dict[str, dict[str, tuple[float, float]]]


cdef class AdaptiveCodec:
    """Chooses and runs the compression of single pages for one PageEncoder (``PageEncoder(codec=...)``).

    ``link_bytes_per_s``: the link's rate; 0: unknown, XBZRLE alone is used. ``cpu_weight``: what a nanosecond
    of CPU is worth against one of the link: 1 when pages are compressed and sent in turn, less when several
    threads share the work or CPU time is idle. ``methods``: those agreed with the peer, which must be usable
    here. ``floor_bytes``: XBZRLE results up to this are sent as they are. ``zstd_level``: 1 to 19.

    Raises Unsupported, with the reason, for a method that is not usable here; ValueError for numbers out of
    range.
    """

    def __cinit__(self, *args, **kwargs):
        self.states = NULL

    def __init__(self, double link_bytes_per_s, *, double cpu_weight=1.0, methods=None, int floor_bytes=256,
                 int zstd_level=1):
        usable = usable_methods()
        for method in usable if methods is None else methods:
            if method not in METHODS:
                raise ValueError(f"no compression method {method!r}: there are {', '.join(METHODS)}")
            if method not in usable:
                raise Unsupported(f"compression by {method} is {probe()[method]}")
            self.config.allowed[METHODS.index(method)] = 1
        if not 1 <= zstd_level <= 19:
            raise ValueError(f"zstd levels are 1 to 19, not {zstd_level}")
        if floor_bytes < 0:
            raise ValueError(f"floor_bytes is not negative: {floor_bytes}")
        self.config.floor_bytes = floor_bytes
        self.config.zstd_level = zstd_level
        self.set_link(link_bytes_per_s, cpu_weight)

    def set_link(self, double link_bytes_per_s, double cpu_weight=1.0):
        """Tell the link's rate as now measured (0: unknown) and the worth of CPU time; pages from now on are
        judged by it."""
        if not 0 <= link_bytes_per_s < float("inf") or not 0 <= cpu_weight < float("inf"):
            raise ValueError(f"rate and weight are finite and not negative: {link_bytes_per_s}, {cpu_weight}")
        self.config.cpu_weight = cpu_weight
        self.config.ns_per_byte = 1e9 / link_bytes_per_s if link_bytes_per_s > 0 else 0

    cdef int bind(self, Py_ssize_t page_bytes, int threads) except -1:
        cdef CodecState *s
        if self.bound:
            raise ValueError("an AdaptiveCodec belongs to one PageEncoder: make another")
        if page_bytes > PAGE_BYTES_MAX:
            raise Unsupported(f"adaptive compression takes pages of up to {PAGE_BYTES_MAX} bytes, "
                              f"not {page_bytes}")
        self.page_bytes = page_bytes
        self.states = <CodecState *>calloc(threads, sizeof(CodecState))
        if self.states == NULL:
            raise MemoryError("no memory for compression")
        self.nstates = threads
        self.bound = True
        for i in range(threads):
            s = &self.states[i]
            s.config = &self.config
            s.work = <uint8_t *>malloc(4 * page_bytes + SLACK_BYTES)
            if self.config.allowed[ADAPTIVE_LZ4]:
                s.lz4_stream = lz4.create()
            if self.config.allowed[ADAPTIVE_ZSTD]:
                s.zstd_context = zstd.create()
            if (s.work == NULL or self.config.allowed[ADAPTIVE_LZ4] and s.lz4_stream == NULL
                    or self.config.allowed[ADAPTIVE_ZSTD] and s.zstd_context == NULL):
                raise MemoryError("no memory for compression")
            if s.zstd_context != NULL:
                for name, value in ((ZSTD_LEVEL, self.config.zstd_level), (ZSTD_CONTENT_SIZE, 0),
                                    (ZSTD_CHECKSUM, 0), (ZSTD_DICTIONARY_ID, 0)):
                    if zstd.is_error(zstd.set_parameter(s.zstd_context, name, value)):
                        raise Unsupported(f"this zstd library refuses parameter {name}={value}")
        return 0

    cdef colo_page_codec for_thread(self, int thread) noexcept:
        cdef colo_page_codec codec
        codec.compress = compress_page
        codec.state = &self.states[thread]
        codec.floor_bytes = self.config.floor_bytes
        return codec

    def __dealloc__(self):
        cdef int i
        for i in range(self.nstates):
            if self.states[i].lz4_stream != NULL:
                lz4.release(self.states[i].lz4_stream)
            if self.states[i].zstd_context != NULL:
                zstd.release(self.states[i].zstd_context)
            free(self.states[i].work)
        free(self.states)

    @property
    def methods(self):
        """The methods in use."""
        return tuple(method for i, method in enumerate(METHODS) if self.config.allowed[i])

    @property
    def stats(self):
        """An :class:`AdaptiveStats`."""
        cdef int i, kind, method
        cdef Estimate *e
        pages = dict.fromkeys(METHODS, 0)
        tried = declined = cpu_ns = 0
        expected = {}
        for i in range(self.nstates):
            tried += self.states[i].tried
            declined += self.states[i].declined
            cpu_ns += self.states[i].cpu_ns
            for method in range(ADAPTIVE_METHODS):
                pages[METHODS[method]] += self.states[i].pages[method]
                for kind in range(ADAPTIVE_CLASSES):
                    e = &self.states[i].estimates[kind][method]
                    if e.measured:
                        expected.setdefault(CLASSES[kind], {})[METHODS[method]] = (e.saved_bytes, e.cpu_ns)
        return AdaptiveStats(pages, tried, declined, cpu_ns, expected)
