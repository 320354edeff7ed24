"""Circuits of spikes that a port runs in place of float functions."""
