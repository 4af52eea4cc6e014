"""Streams and files read for people: as much as can be told, whatever they are and whatever is wrong with them."""
