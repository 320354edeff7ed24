"""Studies that need data, peers or time: ``python -m benchmarks NAME --preset small``."""
