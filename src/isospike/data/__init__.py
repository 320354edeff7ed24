"""Data that the package ships, and readers of your files."""

from isospike.data.abc import read_abc, write_abc
from isospike.data.midi import read_midi, write_midi
from isospike.data.readers import passages, read_melodies, read_text
from isospike.data.sequences import read_sequences, split_symbols
from isospike.data.shipped import calibration_texts, chorales, foreign_texts, sachs, shakespeare

__all__ = [
    "calibration_texts",
    "chorales",
    "foreign_texts",
    "passages",
    "read_abc",
    "read_melodies",
    "read_midi",
    "read_sequences",
    "read_text",
    "sachs",
    "shakespeare",
    "split_symbols",
    "write_abc",
    "write_midi",
]
