"""The Cython core: bytes, pages, bitmaps and file descriptors. It knows no role, no protocol, no order of messages."""
