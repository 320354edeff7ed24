"""The gated output projection: starts plain, gates heads, identifies what it can and no more."""

import pytest
import torch
from torch import nn

import isospike
from isospike.errors import InputError, RangeError, ShapeError
from isospike.experiments import gated_output
from isospike.experiments.study import CORRECTED, FAILS, HOLDS, Context, find_study
from isospike.models.gated_output import GatedOutputProjection


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gated(*sizes, seed=0, **options):
    layer = GatedOutputProjection(*sizes, **options)
    draw = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=draw)
    return layer


def test_it_starts_as_the_plain_projection():
    layer = GatedOutputProjection(12, 3)
    y, x = normal(0, 2, 5, 12), normal(1, 2, 5, 12)
    torch.testing.assert_close(layer(y, x), nn.functional.linear(y, layer.weight, layer.bias))


def test_the_sum_of_gated_heads_by_hand():
    layer = gated(6, 2, 4)
    y, x = normal(2, 5, 8), normal(3, 5, 6)
    gates = 2 * torch.sigmoid(x @ layer.gate.weight.T + layer.gate.bias)
    blocks = layer.weight.T.view(2, 4, 6)
    summed = sum(gates[:, h, None] * y.view(5, 2, 4)[:, h] @ blocks[h] for h in range(2))
    torch.testing.assert_close(layer(y, x), summed + layer.bias)


@pytest.mark.parametrize(
    ("sizes", "percent"),
    [((768, 12), 1.5625), ((1024, 16), 1.5625), ((384, 12), 3.125), ((64, 8), 12.5)],
)
def test_the_overhead_is_one_over_the_head_width(sizes, percent):
    # (d + 1) H over (d + 1) d: below 1.6 % where heads have 64 channels, not where fewer.
    assert GatedOutputProjection(*sizes).overhead == pytest.approx(percent / 100)
    without = GatedOutputProjection(*sizes, bias=False).overhead
    assert percent / 100 < without < 1.02 * percent / 100


def test_gates_get_gradients_and_a_model_with_them_trains_like_one_without():
    model = isospike.models.Transformer(9, 16, 4, 2, gated=True)
    model(torch.randint(9, (2, 6), generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(b.join.gate.weight.grad.abs().sum() > 0 for b in model.blocks)
    plain = isospike.models.Transformer(9, 16, 4, 2)
    more = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert more == 2 * (16 * 4 + 4)
    # As it starts, it computes what the plain model with its weights computes.
    state = {k: v for k, v in model.state_dict().items() if "gate" not in k}
    plain.load_state_dict(state)
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(model(tokens), plain(tokens))


def test_extending_a_cache_agrees_with_one_pass():
    model = isospike.models.Transformer(9, 16, 4, 2, gated=True)
    for block in model.blocks:
        nn.init.normal_(block.join.gate.weight, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(6)[None]
    head, cache = model.extend(tokens[:, :4])
    tail, _ = model.extend(tokens[:, 4:], cache)
    torch.testing.assert_close(torch.cat([head, tail], 1), model(tokens), atol=1e-5, rtol=1e-5)


def test_gates_leave_the_kernel_and_the_gauge_and_tell_equal_maps_apart():
    assert gated_output.kernels() == {"kernel, plain": 20, "kernel, gated": 20}
    assert gated_output.null_spaces() == {
        "null, plain": 12, "null, gated": 12,  # H d_k^2
        "null, equal maps, plain": 36, "null, equal maps, gated": 12,  # (H d_k)^2, H d_k^2
    }  # fmt: skip


def test_a_short_run_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(gated_output, "LOOKS", 2)  # a look is a rank report
    preset, context = gated_output.Preset(6, 2, 4), Context(tmp_path)
    found = gated_output.train_gated(preset, context)
    assert len(list(tmp_path.iterdir())) == 8
    assert gated_output.decide(found.numbers) == CORRECTED
    assert found.numbers["sort gated gate"] > 0
    assert found.numbers["sort plain gate"] == 0
    assert found.tables[1].head == ("steps", "0", "3", "6")
    assert gated_output.train_gated(preset, context).numbers == found.numbers
    assert find_study("gated-output").function is gated_output.train_gated
    file = sorted(tmp_path.iterdir())[0]
    for damaged in (b"", b"{", b"[1]", b'{"bits": 1}', b"\xff"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"needs whole result files, got .* Remove it"):
            gated_output.train_gated(preset, context)


def test_verdicts_follow_the_numbers():
    base = {
        "overhead BERT-base, GPT-2": 0.0156, "kernel, plain": 4, "kernel, gated": 4,
        "null, plain": 3, "null, gated": 3, "null, equal maps, plain": 9,
        "null, equal maps, gated": 3,
    }  # fmt: skip
    cases = (
        ({}, CORRECTED),
        ({"overhead BERT-base, GPT-2": 0.02}, FAILS),
        ({"null, equal maps, gated": 9}, FAILS),
        ({"kernel, gated": 0}, HOLDS),
    )
    for change, verdict in cases:
        assert gated_output.decide(base | change) == verdict


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: GatedOutputProjection(10, 3), RangeError, "a width that 3 heads divide, got 10"),
        (lambda: GatedOutputProjection(10, 0), RangeError, "sizes >= 1, got width 10, heads 0"),
        (lambda: gated(8, 2)(torch.ones(3, 8), torch.ones(3, 6)), ShapeError, r"\[3, 6\]"),
        (lambda: gated(8, 2)(torch.ones(3, 6), torch.ones(3, 8)), ShapeError, r"\[3, 6\]"),
    ],
)
def test_mistakes_are_named(call, error, text):
    with pytest.raises(error, match=f"GatedOutputProjection needs .*{text}"):
        call()
