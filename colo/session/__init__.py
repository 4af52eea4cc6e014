"""Sessions: where memory, stream, protocol, transport and QEMU meet. They own threads, time, policy and statistics."""
