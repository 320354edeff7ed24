"""Weights of few bits, rounded on what the rounded products before them give."""

import copy

import pytest
import torch
from torch import nn

import isospike
from isospike.porting import plan, reround
from isospike.porting.ported import Ported
from isospike.porting.product import SpikingProduct

WIDTH = 24


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Stack(nn.Module):
    """Linear layers with a kink between them; the second and third read the same."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.left, self.right, self.last = (nn.Linear(WIDTH, WIDTH) for _ in "1234")

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.tanh(self.left(h)) * self.right(h).sigmoid())


class Turned(Stack):
    """Runs its last layer first where the input says so."""

    def forward(self, x):
        if x[0, 0, 0] < 0:
            return self.first(torch.tanh(self.last(x)))
        return super().forward(x)


def batches(count, seed=1, sign=None):
    mix = drawn(WIDTH, WIDTH) / WIDTH**0.5
    found = [drawn(6, 10, WIDTH, seed=seed + i) @ mix for i in range(count)]
    for i, x in enumerate(found):
        if sign is not None:
            x[0, 0, 0] = sign(i)
    return [{"x": x} for x in found]


def ported(model, again=True, **settings):
    """A port of four bits, with the second rounding or without it."""
    if again:
        return isospike.port(
            model, batches(8), evaluation=batches(2, 90), weight_bits=4, **settings
        )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(plan, "can_wait", lambda: False)
        return ported(model, **settings)


def products(port):
    found = Ported.of(port.model).products
    return {p.name: p for p in found if isinstance(p, SpikingProduct)}


def test_it_lowers_the_error_on_inputs_it_has_not_seen():
    model = Stack().eval()
    assert ported(model).report.error < 0.95 * ported(model, again=False).report.error


def test_weights_stay_on_their_grid_and_the_model_as_it_was():
    model = Stack().eval()
    before = copy.deepcopy(model.state_dict())
    for product in products(ported(model)).values():
        q = product.weight / product.quantum
        torch.testing.assert_close(q, q.round(), rtol=0, atol=1e-4)
        assert -8 <= q.round().min() <= q.round().max() <= 7
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


def test_the_mean_of_every_product_is_the_models():
    model, inputs = Stack().eval(), batches(8)
    port, seen = ported(model), {}

    def keep(name):
        return lambda module, args, y: seen.setdefault(name, []).append(y)

    for name in ("first", "left", "right", "last"):
        getattr(model, name).register_forward_hook(keep(name))
        products(port)[name].register_forward_hook(keep(f"port {name}"))
    with torch.no_grad():
        for batch in inputs:
            model(**batch)
            port.model(**batch)
    means = {name: torch.cat(ys).flatten(0, -2).mean(0) for name, ys in seen.items()}
    for name in ("first", "left", "right", "last"):
        torch.testing.assert_close(means[f"port {name}"], means[name], rtol=0, atol=2e-3)


def test_the_correction_is_what_a_channel_lost_of_another():
    heard = drawn(4000, 3)
    lost = torch.stack([0.5 * heard[:, 2], torch.zeros(4000), torch.ones(4000)], 1)
    k = reround._correction(lost.double(), heard.double())
    # A ridge as large as the diagonal halves it; what is constant is left to the bias.
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 2] = 0.25
    torch.testing.assert_close(k, expected, rtol=0, atol=0.02)


def test_inputs_that_run_layers_in_another_order_are_rounded_once(monkeypatch):
    model, signs = Turned().eval(), batches(8, sign=lambda i: (-1) ** i)
    found = isospike.port(model, signs, weight_bits=4).model.state_dict()
    monkeypatch.setattr(plan, "can_wait", lambda: False)
    once = isospike.port(model, signs, weight_bits=4).model.state_dict()
    assert all(torch.equal(found[name], x) for name, x in once.items())
