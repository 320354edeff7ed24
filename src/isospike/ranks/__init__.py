"""Which representations of a transformer collapse, where, and which heads can be told apart."""
