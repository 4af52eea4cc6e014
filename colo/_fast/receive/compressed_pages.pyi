"""Pages made of compressed records: QEMU's COMPRESS_PAGE (zlib), and the encodings that two colo ends agreed on."""

class CompressedPages:
    """Makes the pages of one PageDecoder's compressed records. For the core's own use: nothing is callable from
    Python."""
