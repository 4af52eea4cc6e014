# The functions of the LZ4 and zstd libraries. Until usable_methods() or probe() was called, and where a library is not
# usable, they are NULL.

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
    ZSTD_MAGIC_BYTES = 4
    PAGE_BYTES_MAX = 16384          # LZ4 reaches 64 KiB back: old and new page must lie within

cdef Lz4 lz4
cdef Zstd zstd
