"""Distances and sortabilities beside packages that we did not write, on many random graphs."""

import numpy as np
import pytest
import torch

from isospike.causal.guards import sortability
from isospike.causal.metrics import structural_hamming_distance, structural_intervention_distance
from isospike.causal.simulate import MECHANISMS, random_dag, simulate


def pair_of_graphs(seed):
    """Two graphs of 2 to 12 variables, from nearly empty to nearly full."""
    draw = np.random.default_rng(seed)
    d = int(draw.integers(2, 13))
    most = (d - 1) / 2
    return tuple(
        random_dag(
            d, float(draw.uniform(0, most)), "er", torch.Generator().manual_seed(9 * seed + k)
        )
        for k in range(2)
    )


@pytest.mark.parametrize("start", range(0, 60, 10))
def test_distances_are_those_of_gadjid_on_any_two_graphs(start):
    gadjid = pytest.importorskip("gadjid")
    for seed in range(start, start + 10):
        truth, guess = pair_of_graphs(seed)
        as_bytes = truth.astype(np.int8), guess.astype(np.int8)
        _, sid = gadjid.sid(*as_bytes, edge_direction="from row to column")
        _, shd = gadjid.shd(*as_bytes)
        assert structural_intervention_distance(guess, truth) == sid
        assert structural_hamming_distance(guess, truth) == shd


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_sortabilities_are_those_of_causaldisco_for_every_mechanism(mechanism):
    analytics = pytest.importorskip("CausalDisco.analytics")
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        truth = random_dag(3 + 2 * seed, 1.0, "er", draw)
        if not truth.any():
            continue
        x = simulate(truth, 300, mechanism, generator=draw).data
        found = sortability(x, truth)
        assert found.var == pytest.approx(float(analytics.var_sortability(x, truth)), abs=1e-12)
        assert found.r2 == pytest.approx(float(analytics.r2_sortability(x, truth)), abs=1e-12)
