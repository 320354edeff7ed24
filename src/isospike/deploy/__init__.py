"""Off this machine: files that other libraries and chips read, and what fits on a chip."""
