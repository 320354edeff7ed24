"""The sequence machine's inner loops."""
