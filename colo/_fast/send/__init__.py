"""Pages out: what is remembered of the receiver's, records, compression, and the descriptor they leave by."""
