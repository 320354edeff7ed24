"""Spiking transformers, one paper a file."""
