"""Every model of the zoo: importing this registers them."""

from benchmarks.zoo import decoders, text  # noqa: F401
