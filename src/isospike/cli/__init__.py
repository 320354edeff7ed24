"""The command line; commands import what is heavy, so that ``isospike --help`` answers at once."""

from isospike.cli import demo, reports, port, deploy, use, analyse, sequence, reproduce, train  # noqa: I001 - the order of the help
from isospike.cli.app import app, main

__all__ = [
    "analyse", "app", "demo", "deploy", "main", "port", "reports", "reproduce", "sequence", "train",
    "use",
]  # fmt: skip
