# Why a record of a ram section is refused. What ended the decoding without a fault, and RedoLog's NO_ROOM
# and NO_MEMORY, have lower numbers.
from libc.stdint cimport uint64_t

cdef enum:
    BAD_FLAGS = 3
    BAD_NO_BLOCK = 4
    BAD_EMPTY_NAME = 5
    BAD_UNKNOWN_BLOCK = 6
    BAD_OFFSET = 7
    BAD_FILL = 8
    BAD_XBZRLE_HEADER = 9
    BAD_XBZRLE_LENGTH = 10
    BAD_XBZRLE = 11
    BAD_XBZRLE_BASE = 12
    BAD_COMPRESSED_LENGTH = 13
    BAD_COMPRESSED = 14
    OUT_OF_RECORDS = 15
    OUT_OF_MEMORY = 16
    BAD_MARK = 17
    BAD_ENCODED = 18
    BAD_TWICE = 19
    BAD_METHOD = 20
    OUT_OF_STORAGE = 21         # its error is Staging.storage_error()
    # compressBound(4096) of zlib: a sender's buffer for one page is no larger.
    COMPRESSED_MAX = 4096 + 13 + 1


# The error of one of these codes. value: what was refused; offset: of the record in the stream, bytes.
cdef object refusal(int code, uint64_t value, str where, uint64_t offset, size_t staged_records)
