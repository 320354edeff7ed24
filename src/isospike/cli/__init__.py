"""The command line; handlers import what is heavy, so that ``isospike --help`` answers at once."""

from isospike.cli import dimension, machine, order, port, rank, reproduce
from isospike.cli.app import app, main

__all__ = ["app", "dimension", "machine", "main", "order", "port", "rank", "reproduce"]
