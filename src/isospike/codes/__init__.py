"""Spike codes and firing orders."""
