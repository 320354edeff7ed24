"""``python -m isospike.cli``."""

from isospike.cli import main

main()
