"""The entry of the ``isospike`` command, and of ``python -m isospike``."""

import os

import isospike.interrupts as interrupts  # not from: that would ask the package for a name


def main() -> None:
    """Answer Ctrl-C, then load the commands and run the one that was asked for."""
    for number in range(3):  # No file may get the number of a stream that is closed.
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    interrupts.answer()
    from isospike.cli import main as run

    run()


if __name__ == "__main__":
    main()
