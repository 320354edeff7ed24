"""The command line; commands import what is heavy, so that ``isospike --help`` answers at once."""

from isospike.cli import demo, reports, port, deploy, use, analyse  # noqa: I001 - the order of the help
from isospike.cli import sequence, watch, reproduce, train
from isospike.cli.app import app, main

__all__ = [
    "analyse", "app", "demo", "deploy", "main", "port", "reports", "reproduce", "sequence", "train",
    "use", "watch",
]  # fmt: skip
