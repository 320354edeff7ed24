"""The command line; handlers import what is heavy, so that ``isospike --help`` answers at once."""

from isospike.cli import machine, order, port
from isospike.cli.app import app, main

__all__ = ["app", "machine", "main", "order", "port"]
