"""Data that the package ships, and readers of your files."""

from isospike.data.readers import passages, read_melodies, read_text
from isospike.data.sequences import read_sequences, split_symbols
from isospike.data.shipped import chorales, sachs, shakespeare

__all__ = [
    "chorales",
    "passages",
    "read_melodies",
    "read_sequences",
    "read_text",
    "sachs",
    "shakespeare",
    "split_symbols",
]
