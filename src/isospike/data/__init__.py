"""Data that the package ships, and readers of your files."""

from isospike.data.readers import passages, read_melodies, read_text
from isospike.data.shipped import chorales, sachs, shakespeare

__all__ = ["chorales", "passages", "read_melodies", "read_text", "sachs", "shakespeare"]
