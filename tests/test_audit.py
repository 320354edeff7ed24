import math

import models
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import isospike
from isospike.porting.operands import operand_kind
from isospike.porting.trace import count_float_ops, trace_products

ROWS, CHANNELS = 32, 6


def values(seed=0, rows=ROWS, channels=CHANNELS):
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def counts(low, high, rows=ROWS, channels=CHANNELS):
    """Whole numbers, each of them present in every channel."""
    whole = torch.arange(rows)[:, None] * torch.ones(channels) % (high - low + 1) + low
    return whole.float()


def spikes():
    return (values() > 0).float()


def scales(channels=CHANNELS):
    return torch.linspace(0.37, 2.91, channels)


def linear(outputs=5):
    return models.seeded(lambda: nn.Linear(CHANNELS, outputs))


class Two(nn.Module):
    """A product of two activations."""

    def __init__(self, product):
        super().__init__()
        self.product = product

    def forward(self, a, b):
        return self.product(a, b)


# Operands.


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (counts(0, 1), "binary"),
        (counts(0, 1) * scales(), "binary"),
        (counts(0, 1) * -scales(), "binary"),
        (torch.zeros(ROWS, CHANNELS), "binary"),
        (counts(0, 7), "integer"),
        (counts(-1, 1), "integer"),
        (counts(0, 255) - 128, "integer"),
        (counts(-1, 1) * scales(), "graded"),
        (counts(0, 15) * 0.37, "graded"),
        (counts(0, 15) * scales(), "graded"),
        (counts(0, 15) * scales() - 1.7, "graded"),
        (values(), "float"),
        (values().relu(), "float"),
        (torch.where(values() > 0, 1.0, 0.0) * values(1), "float"),
        (torch.full((ROWS, CHANNELS), torch.nan), "float"),
        (torch.full((ROWS, CHANNELS), torch.inf), "float"),
        (counts(0, 3) * 2.0**24, "graded"),
    ],
)
def test_what_enters_a_layer_is_judged_by_its_values(x, kind):
    product = isospike.audit(linear(), x).products[0]
    assert (product.left, product.right) == (kind, "weight")
    assert product.spiking is (kind == "binary")
    assert product.real is (kind == "float")
    assert product.macs == ROWS * CHANNELS * 5
    assert product.contraction == CHANNELS


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (counts(0, 1, rows=7), "binary"),
        (counts(0, 3, rows=7), "integer"),
        (counts(0, 1, rows=7) * scales(), "float"),
        (counts(0, 3, rows=7) * scales(), "float"),
        (counts(0, 1, rows=8) * scales(), "binary"),
        (counts(0, 3, rows=8) * scales(), "graded"),
    ],
)
def test_with_fewer_than_8_rows_a_scale_cannot_be_told_from_real_values(x, kind):
    assert isospike.audit(linear(), x).products[0].left == kind


@given(st.integers(0, 2**31), st.integers(1, 512), st.floats(1e-6, 1e6))
@example(seed=1, levels=512, step=0.3)  # a gap between the largest is rounded by a part in 20,000
def test_every_uniform_grid_is_graded_or_better_whatever_its_step(seed, levels, step):
    whole = torch.randint(0, levels + 1, (64, 3), generator=torch.Generator().manual_seed(seed))
    assert operand_kind(whole.float() * step, -1) in ("binary", "integer", "graded")


@given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_gaussian_values_are_float_whatever_their_scale(seed, scale):
    assert operand_kind(values(seed, rows=64) * scale, -1) == "float"


@given(st.integers(0, 2**31))
def test_one_real_value_among_spikes_makes_them_real(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (ROWS, CHANNELS), generator=generator).float()
    x[:2, 2] = torch.tensor([1, 1 / math.pi])
    assert operand_kind(x, -1) in ("graded", "float")  # three values may lie on a grid
    assert not isospike.audit(linear(), x).spiking


# Products.


def test_a_functional_product_of_two_activations_is_seen():
    model = Two(lambda q, k: q @ k.T)
    found = isospike.audit(model, {"a": values(), "b": counts(0, 1)})
    product = found.products[0]
    assert (product.module, product.op) == ("", "mm")
    assert (product.left, product.right) == ("float", "binary")
    assert product.macs == ROWS * ROWS * CHANNELS
    assert found.first_real == ": mm(float, binary)"
    assert isospike.audit(model, {"a": counts(0, 9), "b": counts(0, 1)}).spiking
    assert not isospike.audit(model, {"a": counts(0, 9), "b": counts(0, 9)}).spiking


@pytest.mark.parametrize(
    "product",
    [
        torch.matmul,
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        lambda a, b: torch.baddbmm(torch.zeros(2, 8, 8), a, b),
        lambda a, b: torch.stack([torch.mm(x, y) for x, y in zip(a, b, strict=True)]),
        lambda a, b: torch.stack([torch.addmm(y, x, y) for x, y in zip(a, b, strict=True)]),
        lambda a, b: torch.stack([F.linear(x, y.T) for x, y in zip(a, b, strict=True)]),
        lambda a, b: torch.tensordot(a[0], b[0], 1) + torch.tensordot(a[1], b[1], 1),
    ],
)
def test_every_way_to_multiply_matrices_is_seen(product):
    a, b = values(rows=16, channels=8).view(2, 8, 8), counts(0, 1, 16, 8).view(2, 8, 8)
    found = isospike.audit(Two(product), {"a": a, "b": b})
    assert sum(p.macs for p in found.products) == 2 * 8**3
    assert {(p.left, p.right) for p in found.products} == {("float", "binary")}


def test_products_with_vectors_are_seen():
    a, b = values(rows=8, channels=8), counts(0, 1, 8, 8)
    for product, macs in (
        (lambda a, b: a @ b[0], 64),
        (lambda a, b: a[0] @ b[0], 8),
        (lambda a, b: torch.addmv(b[0], a, b[0]), 64),
    ):
        found = isospike.audit(Two(product), {"a": a, "b": b})
        assert [p.macs for p in found.products] == [macs]
        assert found.first_real is not None


def test_scaled_dot_product_attention_hides_two_products_and_is_real():
    def attend(q, v):
        return F.scaled_dot_product_attention(q, q, v)

    q, v = counts(0, 1, 32, 8).view(1, 2, 16, 8), counts(0, 1, 32, 8).view(1, 2, 16, 8)
    found = isospike.audit(Two(attend), {"a": q, "b": v})
    scores, mixture = found.products
    assert (scores.left, scores.right) == ("binary", "binary")
    assert (mixture.left, mixture.right) == ("float", "binary")
    assert scores.macs == mixture.macs == 2 * 16 * 16 * 8
    assert (scores.contraction, mixture.contraction) == (8, 16)
    assert found.float_ops["softmax"] == 2 * 16 * 16
    assert not found.spiking


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (lambda: nn.Conv1d(4, 5, 3), (2, 4, 10), 2 * 5 * 8 * 12),
        (lambda: nn.Conv2d(4, 5, 3, stride=2, padding=1), (2, 4, 8, 8), 2 * 5 * 16 * 36),
        (lambda: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 8, 8), 2 * 8 * 36 * 18),
    ],
)
def test_convolutions_are_seen(layer, shape, macs):
    model = models.seeded(layer)
    generator = torch.Generator().manual_seed(0)
    real = isospike.audit(model, torch.randn(shape, generator=generator))
    binary = isospike.audit(model, torch.randint(0, 2, shape, generator=generator).float())
    assert [p.macs for p in real.products] == [p.macs for p in binary.products] == [macs]
    assert (real.products[0].left, binary.products[0].left) == ("float", "binary")
    assert binary.spiking


@pytest.mark.parametrize(
    ("layer", "macs"),
    [
        (lambda: nn.LSTM(8, 6, batch_first=True), 18 * (4 * 6 * 8 + 4 * 6 * 6)),
        # Both rows start from a state of zeros, which no input reaches.
        (lambda: nn.GRU(8, 6, batch_first=True), 18 * 3 * 6 * 8 + 16 * 3 * 6 * 6),
        (
            lambda: nn.MultiheadAttention(8, 2, batch_first=True),
            18 * 4 * 8 * 8 + 2 * 2 * 9 * 9 * 8,
        ),
        (
            lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            18 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 9 * 9 * 8,
        ),
        (lambda: nn.Bilinear(8, 8, 3), 18 * 3 * 8 * 8),
    ],
)
def test_products_inside_fused_layers_are_seen(layer, macs):
    model = models.seeded(layer).eval()
    x = values(rows=18, channels=8).view(2, 9, 8)
    inputs = {
        "Bilinear": {"input1": x, "input2": x},
        "MultiheadAttention": {"query": x, "key": x, "value": x},
        "TransformerEncoderLayer": {"src": x},
    }.get(type(model).__name__, {"input": x})
    enabled = torch.backends.mha.get_fastpath_enabled()
    found = isospike.audit(model, inputs)
    assert torch.backends.mha.get_fastpath_enabled() is enabled
    assert sum(p.macs for p in found.products) == macs
    assert found.first_real is not None


def test_an_outer_product_sums_nothing_and_is_left_out():
    model = Two(lambda a, b: a[:, :1] @ b[:, :1].T)
    batch = {"a": values(), "b": values(1)}
    assert isospike.audit(model, batch).products == ()
    assert isospike.audit(model, batch).spiking
    assert [p.contraction for p in trace_products(model, batch)] == [1]


def test_what_the_model_stores_is_a_weight():
    class Stored(nn.Module):
        def __init__(self):
            super().__init__()
            self.parameter = nn.Parameter(values(1, CHANNELS, 4))
            self.register_buffer("buffer", values(2, CHANNELS, 4))
            self.plain = values(3, CHANNELS, 4)

        def forward(self, x):
            return x @ self.parameter + x @ self.buffer + x @ self.plain + x @ self.plain[:, :1]

    found = isospike.audit(Stored(), counts(0, 1))
    assert [(p.left, p.right) for p in found.products] == [("binary", "weight")] * 4
    assert found.spiking


class Scaled(nn.Linear):
    """A weight with a scale, which may depend on the input."""

    def __init__(self, scale):
        super().__init__(CHANNELS, 4, bias=False)
        self.scale = scale

    def forward(self, x):
        return x @ (self.weight * self.scale(x)).T


def test_what_is_made_of_stored_tensors_alone_is_a_weight():
    found = isospike.audit(models.seeded(lambda: Scaled(lambda x: 1.1)), counts(0, 1))
    assert [(p.left, p.right) for p in found.products] == [("binary", "weight")]
    found = isospike.audit(models.seeded(lambda: Scaled(lambda x: 1.1 + x.mean())), counts(0, 1))
    assert found.first_real == ": mm(binary, float)"


def test_a_buffer_that_the_input_is_written_to_is_no_weight():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("state", torch.zeros(ROWS, CHANNELS))

        def forward(self, x, spikes):
            self.state.copy_(x)
            return spikes @ self.state

    batch = {"x": values(), "spikes": counts(0, 1)[:, :ROWS].repeat(1, 9)[:, :ROWS]}
    assert isospike.audit(Remembers(), batch).first_real == ": mm(binary, float)"


# Products that no matrix operator computes.


def scan(x, w):
    state = torch.zeros_like(x[:, 0])
    for step in x.unbind(1):
        state = torch.sigmoid(step) * state + step * step.cos()
    return state


@pytest.mark.parametrize(
    ("function", "op", "operands"),
    [
        (lambda x, w: torch.fft.fft(x).real, "_fft_r2c", ("float", "weight")),
        (lambda x, w: torch.fft.irfft(torch.fft.rfft(x, dim=1), dim=1), "_fft_c2r", None),
        (lambda x, w: torch.cdist(x, w[None]), "_cdist_forward", ("float", "weight")),
        (lambda x, w: torch.cdist(x, w[None], p=1.0), "_cdist_forward", ("float", "weight")),
        (lambda x, w: F.grid_sample(x[:, None], x[:, :, :2][:, None], align_corners=False),
         "grid_sampler_2d", ("float", "float")),
        (lambda x, w: F.interpolate(x, scale_factor=2, mode="linear"),
         "upsample_linear1d", ("float", "weight")),
        (lambda x, w: F.embedding_bag(torch.arange(6).view(2, 3) % 5, w, mode="sum",
                                      per_sample_weights=x[:2, 0, :3].contiguous()),
         "_embedding_bag", ("float", "weight")),
        (lambda x, w: (x[:, :, None] * x[:, None]).sum(-1), "mul+sum", ("float", "float")),
        (lambda x, w: (x[:, :, None] * w).sum(-1), "mul+sum", ("float", "weight")),
        (lambda x, w: (x * x.roll(1, 1)).mean((1, 2)), "mul+sum", ("float", "float")),
        (lambda x, w: (x.exp() * x.sin()).cumsum(1), "mul+sum", ("float", "float")),
        (lambda x, w: torch.addcmul(x, x.sin(), x.cos()).sum(1), "mul+sum", ("float", "float")),
        (scan, "mul+add", ("float", "float")),
    ],
)  # fmt: skip
def test_a_product_outside_matrix_products_is_seen(function, op, operands):
    """Each of them mixes values along an axis, with real factors."""
    x = torch.randn(3, 9, CHANNELS, generator=torch.Generator().manual_seed(0))
    model = Formula(function)
    model.weight = nn.Parameter(
        torch.randn(5, CHANNELS, generator=torch.Generator().manual_seed(1))
    )
    found = isospike.audit(model, {"x": x})
    seen = [p for p in found.products if p.op == op]
    assert seen
    assert not any(p.matrix for p in seen)
    assert operands is None or (seen[0].left, seen[0].right) == operands
    assert found.exceptions == ("",)
    assert found.float_ops["product"] == sum(p.macs for p in found.products)


def test_the_multiplications_of_an_elementwise_contraction_are_those_of_the_matrix_product():
    x = torch.randn(3, 9, CHANNELS, generator=torch.Generator().manual_seed(0))
    parts = [lambda x, w: (x[:, :, None] * x[:, None]).sum(-1), lambda x, w: x @ x.mT]
    elementwise, matrix = (isospike.audit(Formula(f), {"x": x}).products[0] for f in parts)
    assert (elementwise.macs, elementwise.contraction) == (matrix.macs, matrix.contraction)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: (x * (x[..., :1] > 0)).sum(1),  # a mean over unpadded tokens
        lambda x, w: x * x.pow(2).mean(-1, keepdim=True).rsqrt() * w,  # RMSNorm
        lambda x, w: (x * x).mean(-1),  # a mean square
        lambda x, w: x * angles(x) + x.flip(-1) * angles(x).sin(),  # rotary positions
        lambda x, w: x + x * w,  # a layer's scale
        lambda x, w: (x * x.mean(1, keepdim=True)).mean(1),  # one gate for what is added up
        lambda x, w: F.embedding_bag(torch.arange(6).view(2, 3), w[:, None].expand(-1, 3)),
        lambda x, w: F.interpolate(x, scale_factor=2),  # the nearest
    ],
)
def test_sums_without_two_factors_that_vary_are_no_products(function):
    x = torch.randn(3, 9, CHANNELS, generator=torch.Generator().manual_seed(0))
    assert isospike.audit(Formula(function), {"x": x}).spiking


@pytest.mark.parametrize("steps", [8, 9, 12])
def test_a_port_has_no_exception_whatever_its_steps(steps):
    """Past 255 levels its weights are on no grid, and are weights all the same."""
    report = isospike.port(models.make("bert"), models.batches("bert"), steps=steps).report
    assert report.exceptions == ()


def test_filters_of_very_different_norms_are_weights():
    model = models.make("vit")
    filters = model.vit.embeddings.patch_embeddings.projection.weight
    with torch.no_grad():
        filters *= torch.logspace(-1.5, 1.5, len(filters))[:, None, None, None]
    assert isospike.port(model, models.batches("vit")).report.exceptions == ()


# Naming and tidiness.


def test_products_are_named_by_their_innermost_module_in_order():
    inner = nn.Sequential(linear(CHANNELS), nn.ReLU())
    model = nn.Sequential(inner, linear(3))
    found = isospike.audit(model, spikes())
    assert [(p.module, p.left) for p in found.products] == [("0.0", "binary"), ("1", "float")]
    assert found.first_real == "1: addmm(float, weight)"
    assert found.exceptions == ("1",)
    assert found.float_ops == {"activation": ROWS * CHANNELS}


def test_a_module_with_two_bad_products_is_named_once():
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(x) + super().forward(x * 2)

    model = nn.Sequential(models.seeded(lambda: Twice(CHANNELS, 3)))
    assert isospike.audit(model, values()).exceptions == ("0",)


class Breaks(nn.Module):
    def forward(self, x):
        raise RuntimeError("broken inside")


def test_a_model_that_raises_leaves_no_hook_and_no_mode_behind():
    model = nn.Sequential(linear(), nn.Sequential(Breaks()))
    with pytest.raises(RuntimeError, match="broken inside"):
        isospike.audit(model, values())
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()
    assert isospike.audit(model[0], values()).products[0].module == ""


def test_the_audit_changes_neither_model_nor_input():
    model, x = linear(), values()
    expected, before = model(x), x.clone()
    isospike.audit(model, x)
    assert torch.equal(model(x), expected)
    assert torch.equal(x, before)
    assert model.training
    assert not model._forward_hooks


def test_float_operations_are_counted_by_kind():
    model = nn.Sequential(nn.LayerNorm(CHANNELS), nn.GELU(), linear(), nn.Softmax(-1))
    operations = count_float_ops(model, values())
    assert operations == {
        "normalisation": ROWS * CHANNELS,
        "activation": ROWS * CHANNELS,
        "softmax": ROWS * 5,
    }


def test_rotary_angles_are_an_outer_product_and_left_out():
    found = isospike.audit(models.make("llama"), models.batch("llama"))
    assert not any("rotary" in p.module for p in found.products)


# A converter of the usual kind: rate-coded layers whose attention multiplies real values.


def test_a_port_of_linear_layers_alone_fails_at_its_attention():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.value = linear(CHANNELS), linear(CHANNELS)

        def forward(self, spikes):
            q, v = self.query(spikes), self.value(spikes)
            return torch.softmax(q @ q.T, -1) @ v

    found = isospike.audit(models.seeded(Block), spikes())
    assert [p.spiking for p in found.products] == [True, True, False, False]
    assert found.first_real == ": mm(float, float)"


class Formula(nn.Module):
    """A function of x, with a weight and positions at hand."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(CHANNELS))

    def forward(self, x):
        return self.function(x, self.weight)


def angles(x):
    return torch.cos(torch.arange(CHANNELS) / 7.0)


@pytest.mark.parametrize(
    ("function", "kinds"),
    [
        (lambda x, w: 0.5 * x * w + x.mean(-1, keepdim=True), set()),  # gains and sums
        (lambda x, w: x * angles(x) * w, set()),  # positions do not depend on the input
        (lambda x, w: torch.where(x > 0.3, x, 0.0).relu(), set()),  # a gate, a threshold
        (lambda x, w: (x > 0).float() * x, set()),  # a spike opens a gate
        (lambda x, w: (8 * x).round() / 8 * x, set()),  # spikes, counted
        (lambda x, w: x * x.roll(1, 0), {"product"}),
        (lambda x, w: x**2, {"product"}),
        (lambda x, w: x / x.sum(-1, keepdim=True), {"product"}),
        (lambda x, w: x.exp() + w.exp(), {"softmax"}),
        (lambda x, w: F.silu(x), {"activation"}),
        (lambda x, w: x.var(-1), {"normalisation"}),
        (lambda x, w: torch.zeros_like(x).add_(x).tanh(), {"activation"}),  # written in place
    ],
)
def test_what_is_more_than_to_add_to_compare_and_to_reset_is_counted(function, kinds):
    x = torch.rand(ROWS, CHANNELS, generator=torch.Generator().manual_seed(0))
    found = isospike.audit(Formula(function), {"x": x}).nonlinear_ops
    assert set(found) == kinds
    assert all(n <= ROWS * CHANNELS for n in found.values())


# The report.


def test_the_report_names_the_first_product_without_spikes():
    report = isospike.audit(linear(), values(), name="<b>mine</b>")
    assert report.verdict() == (
        f"No matrix product of <b>mine</b> (1) reads spikes. The first is {report.first_real}."
    )
    assert type(report).from_json(report.to_json()) == report
    assert "<b>mine" not in report.html()
    assert list(report.tables()) == ["products", "operands", "functions"]
    assert report.tables()["operands"].rows[0][-1] == "no"


def test_the_report_says_that_every_product_reads_spikes():
    report = isospike.audit(linear(), counts(0, 1))
    assert "Every matrix product of Linear (1) reads spikes" in repr(report)
    assert report.tables()["operands"].rows[0][-1] == "yes"


def test_the_report_says_how_much_is_not_on_spikes():
    model = models.seeded(lambda: nn.Sequential(nn.Linear(CHANNELS, 5), nn.Linear(5, 2)))
    report = isospike.audit(model, counts(0, 1))
    assert report.verdict().startswith(
        "1 of the 2 matrix products of Sequential do not read spikes, "
    )


def test_weights_that_wrap_others_are_weights():
    from torch.testing._internal.two_tensor import TwoTensor

    layer = nn.Linear(4, 3).eval()
    whole = layer.weight.detach()
    layer.weight = nn.Parameter(TwoTensor(whole, whole.clone()), requires_grad=False)
    found = isospike.audit(layer, {"input": torch.randn(2, 4)})
    assert [(p.left, p.right) for p in found.products] == [("float", "weight")]
