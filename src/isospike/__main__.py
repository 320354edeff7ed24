"""``python -m isospike``."""

from isospike.cli import main

main()
