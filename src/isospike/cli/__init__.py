"""The command line; commands import what is heavy, so that ``isospike --help`` answers at once."""

from isospike.cli import port, use, analyse, sequence, reproduce  # noqa: I001 - the order of the help
from isospike.cli.app import app, main

__all__ = ["analyse", "app", "main", "port", "reproduce", "sequence", "use"]
