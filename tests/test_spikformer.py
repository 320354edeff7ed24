"""Spiking attention, and the Spikformer built on it."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import published
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.models import SpikformerConfig
from isospike.models import spikformer as home
from isospike.models.spikformer import Spikformer, fold, from_authors, from_spikingjelly
from isospike.products import spike_attention

SMALL = {"steps": 3, "num_labels": 5, "channels": 32, "heads": 4, "blocks": 2, "expansion": 2}


def made(**settings):
    return Spikformer(SpikformerConfig(**{**SMALL, **settings}))


def draw(seed):
    return torch.Generator().manual_seed(seed)


def firing(**settings):
    """A model whose normalisations fit its input: a fresh one would not fire."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = made(**settings)
    for module in model.modules():
        if hasattr(module, "running_mean"):
            module.momentum = None
            with torch.no_grad():
                module.bias.normal_(0.8, 0.3, generator=draw(1))
    model.train()
    with torch.no_grad():
        model(images(8, 9))
    return model.eval()


def images(count, seed=0):
    return torch.rand(count, 3, 16, 16, generator=draw(seed))


@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    keys=st.integers(1, 300),
    channels=st.integers(1, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.bool]),
)
def test_attention_counts_exactly_in_either_order(seed, tokens, keys, channels, dtype):
    g = draw(seed)
    q, k, v = (torch.rand(2, 3, n, channels, generator=g) < 0.6 for n in (tokens, keys, keys))
    true = q.double() @ k.double().transpose(-1, -2) @ v.double() / 8
    assert torch.equal(spike_attention(q.to(dtype), k.to(dtype), v.to(dtype)).double(), true)


@given(seed=st.integers(0, 2**31), channels=st.integers(1, 140), width=st.integers(1, 70))
def test_attention_of_bytes_is_exact_however_they_lie(seed, channels, width):
    g = draw(seed)
    q = (torch.rand(2, 5, 3, channels, generator=g) < 0.4).transpose(-3, -2)  # heads beside tokens
    k = (torch.rand(2, 9, 3, channels, generator=g) < 0.4).transpose(-3, -2)
    v = (torch.rand(3, 2, width, 9, generator=g) < 0.4).permute(1, 0, 3, 2)
    true = q.double() @ k.double().transpose(-1, -2) @ v.double() / 8
    y = spike_attention(q, k.byte(), v)
    assert torch.equal(y.double(), true)
    assert y.transpose(-3, -2).is_contiguous(), "laid out like q"


def test_attention_of_bytes_counts_beyond_sixteen_bits():
    ones = torch.ones(1, 600, 64, dtype=torch.uint8)
    assert spike_attention(ones, ones, ones, scale=1.0).unique().tolist() == [600 * 64]


def test_attention_of_bytes_refuses_what_is_no_spike():
    spikes = torch.ones(3, 4, dtype=torch.uint8)
    for i in range(3):
        operands = [spikes.clone() for _ in range(3)]
        operands[i][2, 1] = 2
        with pytest.raises(RangeError, match="needs values 0 or 1, got values above 1"):
            spike_attention(*operands)


def test_attention_by_hand():
    # Query 0 meets key 0 in one channel and key 1 in two; the values are those of the keys' rows.
    q = torch.tensor([[1.0, 1.0, 0.0]])
    k = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    v = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert spike_attention(q, k, v, scale=1.0).tolist() == [[3.0, 2.0]]


@pytest.mark.parametrize("tokens", [3, 9])
def test_attention_has_the_gradient_of_its_products(tokens):
    g = draw(0)
    q, k, v = ((torch.rand(tokens, 5, generator=g) < 0.5).double() for _ in range(3))
    single = [x.float().requires_grad_() for x in (q, k, v)]
    wide = [x.requires_grad_() for x in (q, k, v)]
    ours = torch.autograd.grad(spike_attention(*single).square().sum(), single)
    q, k, v = wide
    true = torch.autograd.grad((q @ k.t() @ v / 8).square().sum(), wide)
    for a, b in zip(ours, true, strict=True):
        torch.testing.assert_close(a.double(), b)


def test_attention_refuses_operands_that_do_not_fit():
    with pytest.raises(ShapeError, match=r"got \(2, 3\), \(2, 4\) and \(2, 4\)"):
        spike_attention(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(ShapeError, match=r"got \(2, 3\), \(5, 3\) and \(4, 3\)"):
        spike_attention(torch.ones(2, 3), torch.ones(5, 3), torch.ones(4, 3))
    with pytest.raises(RangeError, match="got torch.int64"):
        spike_attention(*[torch.ones(2, 3, dtype=torch.int64)] * 3)


def test_the_model_fires_and_learns():
    model = firing()
    x = images(4)
    rates = []
    for module in model.modules():
        if isinstance(module, home.LIF):
            module.register_forward_hook(lambda m, i, s: rates.append(s.mean().item()))
    scores = model(x).logits
    assert scores.shape == (4, 5)
    assert len(rates) == 5 + 2 * 5
    assert all(0.001 < rate < 0.9 for rate in rates), [f"{r:.4f}" for r in rates]
    model.train()
    model(x).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    first = model.stages[0].conv.weight.grad
    assert first.abs().max() > 0, "a gradient reaches the image"


def test_a_folded_model_gives_the_same_scores():
    model = firing()
    x = images(5)
    with torch.no_grad():
        true = model(x).logits
    torch.testing.assert_close(fold(model)(x), true, rtol=1e-5, atol=1e-5)


def test_a_folded_model_without_an_eight_bit_unit_gives_the_same_scores(monkeypatch):
    monkeypatch.setattr(home, "can_pack", lambda weight, planes: False)
    model = firing()
    x = images(2)
    with torch.no_grad():
        true = model(x).logits
    torch.testing.assert_close(fold(model)(x), true, rtol=1e-5, atol=1e-5)


def test_fast_layers_agree_in_nearly_every_spike():
    model = firing(channels=64)
    exact, fast = fold(model), fold(model, "fast")
    x = (torch.rand(3, 4, 4, 4, 64, generator=draw(0)) < 0.2).to(torch.uint8)
    a = home._spikes(x.to(exact.dtype), exact.position).float()
    b = home._spikes(x.to(fast.dtype), fast.position).float()
    assert a.mean() > 0.02
    assert (a == b).float().mean() > 0.995
    assert fast(images(2)).isfinite().all()


def test_images_are_independent_however_many_are_taken_at_once(monkeypatch):
    folded = fold(firing())
    x = images(5)
    whole = folded(x)
    monkeypatch.setattr(home, "AT_ONCE", 2)
    assert torch.equal(folded(x), whole)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(folded(x[order]), whole[order])


def test_patches_are_those_of_a_convolution():
    x = torch.randint(0, 2, (2, 5, 6, 3), generator=draw(0)).float()
    weight = torch.randint(-3, 4, (4, 3, 3, 3), generator=draw(1)).float()
    rows = home._patches(x, 3) @ weight.permute(0, 2, 3, 1).flatten(1).t()
    true = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)
    assert torch.equal(rows.view(2, 5, 6, 4), true.permute(0, 2, 3, 1))


def test_weights_of_spikingjelly_give_its_scores():
    if find_spec("spikingjelly") is None:
        pytest.skip("spikingjelly is not installed")
    from spikingjelly.activation_based import functional
    from spikingjelly.activation_based.model.spikformer import Spikformer as Theirs

    theirs = Theirs(
        T=3, img_size_h=16, img_size_w=16, patch_size=4, num_classes=5, embed_dims=32, num_heads=4,
        mlp_ratio=2.0, depths=2,
    ).eval()  # fmt: skip
    x, ours = images(4), firing()
    names = {own: name for name, own in ((n, *from_spikingjelly({n: t})) for n, t in
                                         theirs.state_dict().items())}  # fmt: skip
    state = theirs.state_dict()
    theirs.load_state_dict(
        {n: ours.state_dict()[own].view_as(state[n]) for own, n in names.items()}
    )
    back = made().eval()
    back.load_state_dict(from_spikingjelly(theirs.state_dict()))
    functional.reset_net(theirs)
    with torch.no_grad():
        true = theirs(x).mean(0)
        torch.testing.assert_close(back(x).logits, true, rtol=1e-5, atol=1e-5)
    assert true.abs().max() > 1e-3
    torch.testing.assert_close(fold(back)(x), true, rtol=1e-5, atol=1e-5)


def test_foreign_weights_are_refused():
    for name in ("norm.weight", "blocks.0.attn.q_conv.0.weight"):
        with pytest.raises(UnsupportedError, match=f"got '{name}'"):
            from_spikingjelly({name: torch.zeros(1)})


@pytest.mark.parametrize(
    "shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 16, 18), (0, 3, 16, 16), (4, 1, 1, 16, 16)]
)
def test_what_is_no_batch_of_images_is_refused(shape):
    for model in (made(), fold(made())):
        with pytest.raises(ShapeError, match=rf"sides divisible by 4, got \({shape[0]}"):
            model(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"channels": 36}, {"heads": 5}])
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(RangeError, match="SpikformerConfig needs (steps >= 1|channels a multiple)"):
        made(**wrong)


def test_fold_refuses_what_it_cannot():
    with pytest.raises(
        UnsupportedError, match="known precision, got 'half'. Use one of exact, fast"
    ):
        fold(made(), "half")
    model = made()
    model.position.norm = torch.nn.BatchNorm2d(32, track_running_stats=False)
    with pytest.raises(UnsupportedError, match="batch normalisation with running statistics"):
        fold(model)


def test_four_blocks_of_384_have_the_published_number_of_parameters():
    # 9.31 million with the normalisations' weights, as in SpikingJelly's and the authors' network.
    count = sum(p.numel() for p in Spikformer(SpikformerConfig(num_labels=10)).parameters())
    assert math.isclose(count, 9.31e6, rel_tol=2e-3)


def authors(pools_spikes=True):
    """A network with the authors' weights, and what theirs says."""
    fixture = json.loads((Path(__file__).parent / "golden" / "families.json").read_text())
    found = fixture["spikformer"]["answers"]["cifar"]
    model = made(heads=2, pools_spikes=pools_spikes)
    model.load_state_dict(from_authors(published.weights(found["shapes"])))
    return model.eval(), published.images(found["images"]), torch.tensor(found["logits"])


def test_old_weights_of_the_authors_say_what_their_network_says():
    model, x, logits = authors()
    with torch.no_grad():
        torch.testing.assert_close(model(x).logits, logits, rtol=0, atol=2e-5)
        torch.testing.assert_close(fold(model)(x), logits, rtol=0, atol=2e-5)
        assert (authors(pools_spikes=False)[0](x).logits - logits).abs().max() > 1e-3


def test_weights_of_something_else_are_refused_in_one_sentence():
    with pytest.raises(UnsupportedError, match="weights of Spikformer, got 'conv1.weight' among 1"):
        from_authors({"conv1.weight": torch.zeros(1)})
    half = {"block.0.attn.q_linear.weight": torch.zeros(4, 4)}
    with pytest.raises(UnsupportedError, match="all weights of Spikformer, got none for 'blocks.0"):
        from_authors(half)
