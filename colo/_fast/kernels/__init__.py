"""Bytes, pages and bitmaps: what the other quarters stand on."""
