"""Ports as citizens of transformers: it loads, saves and pushes them like its own models."""
