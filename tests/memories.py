"""Small sparse distributed memories that several files of tests use."""

import torch

from isospike.memory.sdm import SparseDistributedMemory


def draw(seed):
    return torch.Generator().manual_seed(seed)


def small(rule="rank", alpha=0.9, seed=0, **options):
    return SparseDistributedMemory(
        (4, 24), (5, 6, 48), (3, 20), alpha, rule=rule, generator=draw(seed), **options
    )


def tiny(rule, locations=1, data=(2, 3), alpha=0.5, **options):
    """A memory of which every location is active."""
    return SparseDistributedMemory(
        (1, 2), (1, locations, locations), data, alpha, rule=rule, **options
    )
