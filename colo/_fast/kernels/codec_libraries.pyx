"""The C libraries that compress pages: opened when first needed, and why one cannot be used.

They are the system's ``liblz4.so.1`` and ``libzstd.so.1``, else the copies inside the ``lz4`` and ``zstandard``
packages (``pip install colo-vm[compress]``), whose wheels export the same C functions. So it needs neither headers
nor a compiler on the user's machine, and runs without the GIL, page after page, which the packages' Python
interfaces cannot. What is missing is not used; :func:`probe` says why.
"""
import importlib.util
from pathlib import Path


cdef extern from "<dlfcn.h>" nogil:
    void *dlopen(const char *name, int flags)
    void *dlsym(void *library, const char *symbol)
    int dlclose(void *library)
    const char *dlerror()
    int RTLD_LAZY, RTLD_LOCAL


cdef dict found = None
METHODS = ("lz4", "zstd", "mask")


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
