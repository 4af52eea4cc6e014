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

The C libraries are opened when first needed: the system's ``liblz4.so.1`` and ``libzstd.so.1``, else the
copies inside the ``lz4`` and ``zstandard`` packages (``pip install colo-vm[compress]``), whose wheels export
the same C functions. So it needs neither headers nor a compiler on the user's machine, and runs without the
GIL, page after page, which the packages' Python interfaces cannot. What is missing is not used; :func:`probe`
says why.
"""
from typing import NamedTuple

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

import importlib.util
from pathlib import Path

from colo import wire
from colo.errors import StreamError, Truncated, Unsupported

from .kernels cimport active
from .pageencoder cimport colo_page_codec


cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *name, int flags)
    void *dlsym(void *library, const char *symbol)
    int dlclose(void *library)
    const char *dlerror()
    int RTLD_LAZY, RTLD_LOCAL


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
    int colo_mask_decode(const uint8_t *src, int length, uint8_t *page, int page_bytes)


cdef extern from "wire_numbers.h" nogil:
    uint64_t WIRE_RAM_ZERO, WIRE_RAM_PAGE, WIRE_RAM_EOS, WIRE_RAM_CONTINUE, WIRE_RAM_XBZRLE
    int WIRE_ENCODING_XBZRLE, WIRE_ENCODING_LZ4_DELTA, WIRE_ENCODING_ZSTD_DELTA, WIRE_ENCODING_LZ4_PAGE
    int WIRE_ENCODING_ZSTD_PAGE, WIRE_ENCODING_MASK_DELTA


# The prototypes, from the libraries' documented, stable interfaces (LZ4 since 1.9.0, zstd since 1.4.0).
ctypedef struct Lz4:
    int (*version)() noexcept nogil
    void *(*create)() noexcept nogil
    int (*release)(void *) noexcept nogil
    int (*load_dictionary)(void *, const char *, int) noexcept nogil
    int (*compress)(void *, const char *, char *, int, int, int) noexcept nogil
    int (*decompress)(const char *, char *, int, int, const char *, int) noexcept nogil

ctypedef struct Zstd:
    unsigned (*version)() noexcept nogil
    void *(*create)() noexcept nogil
    size_t (*release)(void *) noexcept nogil
    size_t (*set_parameter)(void *, int, int) noexcept nogil
    size_t (*use_prefix)(void *, const void *, size_t) noexcept nogil
    size_t (*compress)(void *, void *, size_t, const void *, size_t) noexcept nogil
    size_t (*reset)(void *, int) noexcept nogil
    unsigned (*is_error)(size_t) noexcept nogil
    void *(*create_decoder)() noexcept nogil
    size_t (*release_decoder)(void *) noexcept nogil
    size_t (*use_decoder_prefix)(void *, const void *, size_t) noexcept nogil
    size_t (*decompress)(void *, void *, size_t, const void *, size_t) noexcept nogil

cdef enum:
    ZSTD_LEVEL = 100
    ZSTD_CONTENT_SIZE = 200
    ZSTD_CHECKSUM = 201
    ZSTD_DICTIONARY_ID = 202
    ZSTD_MAGIC_BYTES = 4
    ZSTD_RESET_SESSION = 1
    PAGE_BYTES_MAX = 16384          # LZ4 reaches 64 KiB back: old and new page must lie within
    EXPLORE_EVERY = 128
    RUNNING_AVERAGE = 64
    SLACK_BYTES = 64
    RECORD_SHORT = -10
    RECORD_FLAGS = -11
    RECORD_OUTSIDE = -12
    NO_OLD_PAGE = 4                 # the last of CLASSES

cdef uint8_t ZSTD_MAGIC[4]
ZSTD_MAGIC[0], ZSTD_MAGIC[1], ZSTD_MAGIC[2], ZSTD_MAGIC[3] = 0x28, 0xB5, 0x2F, 0xFD
cdef Lz4 lz4
cdef Zstd zstd
cdef dict found = None
METHODS = ("lz4", "zstd", "mask")
CLASSES = ("to 1/4 page", "to 1/2 page", "to a page", "overflow", "no old page")


cdef object open_library(str package, tuple patterns, str soname, tuple symbols, list pointers, int oldest):
    """Fill ``pointers`` with the addresses of ``symbols``; returns (library file, version) or the reason why
    not."""
    cdef void *library
    cdef void *address
    candidates = [soname]
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        for pattern in patterns:
            candidates += sorted(str(path) for path in Path(place).glob(pattern))
    reasons = []
    for name in candidates:
        encoded = name.encode()
        library = dlopen(encoded, RTLD_LAZY | RTLD_LOCAL)
        if library == NULL:
            reasons.append((<bytes>dlerror()).decode(errors="replace"))
            continue
        del pointers[:]
        for symbol in symbols:
            address = dlsym(library, (<bytes>symbol))
            if address == NULL:
                reasons.append(f"{name} does not export {symbol.decode()}")
                break
            pointers.append(<size_t>address)
        else:
            version = (<unsigned (*)() noexcept nogil><void *><size_t>pointers[0])()
            if version >= oldest:
                return name, version
            reasons.append(f"{name} is version {version}, older than {oldest}")
        dlclose(library)
    if spec is None:
        reasons.append(f"the package {package} is not installed (pip install colo-vm[compress])")
    return "; ".join(reasons)


cdef dict libraries():
    """Open both libraries once; method -> (file, version) or the reason why not."""
    global found
    cdef list at = []
    cdef size_t *to
    cdef Py_ssize_t i
    if found is not None:
        return found
    made = {}
    made["lz4"] = open_library(
        "lz4", ("_version*.so", "block/_block*.so"), "liblz4.so.1",
        (b"LZ4_versionNumber", b"LZ4_createStream", b"LZ4_freeStream", b"LZ4_loadDict",
         b"LZ4_compress_fast_continue", b"LZ4_decompress_safe_usingDict"), at, 10900)
    if isinstance(made["lz4"], tuple):
        to = <size_t *>&lz4
        for i in range(len(at)):
            to[i] = at[i]
    made["zstd"] = open_library(
        "zstandard", ("_cffi*.so", "backend_c*.so"), "libzstd.so.1",
        (b"ZSTD_versionNumber", b"ZSTD_createCCtx", b"ZSTD_freeCCtx", b"ZSTD_CCtx_setParameter",
         b"ZSTD_CCtx_refPrefix", b"ZSTD_compress2", b"ZSTD_CCtx_reset", b"ZSTD_isError", b"ZSTD_createDCtx",
         b"ZSTD_freeDCtx", b"ZSTD_DCtx_refPrefix", b"ZSTD_decompressDCtx"), at, 10400)
    if isinstance(made["zstd"], tuple):
        to = <size_t *>&zstd
        for i in range(len(at)):
            to[i] = at[i]
    made["mask"] = ("built in", 0)
    found = made
    return made


def probe():
    """What compression works here: ``{"lz4": text, "zstd": text, "mask": text}``, the text being the library and its
    version, or, beginning with "not usable: ", the reasons why it cannot be used."""
    said = {}
    for method, got in libraries().items():
        if isinstance(got, tuple):
            name, version = got
            said[method] = name if not version else f"{name} {version // 10000}.{version // 100 % 100}.{version % 100}"
        else:
            said[method] = f"not usable: {got}"
    return said


def usable_methods():
    """The methods that work here, of ``("lz4", "zstd", "mask")``: what an end may offer its peer."""
    return tuple(method for method, got in libraries().items() if isinstance(got, tuple))


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
