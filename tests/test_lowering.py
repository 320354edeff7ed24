"""Every function of torch that multiplies, computed by its lowering, against torch itself."""

import pytest
import torch
import torch.nn.functional as F

from isospike.porting.calls import LOWERINGS, WRITTEN_IN_PYTHON
from isospike.porting.lowering import Multiplier


class Plain(Multiplier):
    """Computes in float; what it is asked for is counted."""

    def __init__(self, *stored):
        self.places = {x.untyped_storage().data_ptr() for x in stored}
        self.asked = []

    def is_weight(self, x):
        return x.untyped_storage().data_ptr() in self.places

    def linear(self, x, weight):
        self.asked.append("linear")
        return F.linear(x, weight)

    def matmul(self, a, b):
        self.asked.append("matmul")
        return a @ b

    def multiply(self, a, b):
        return NotImplemented

    def convolve(self, x, weight, how):
        self.asked.append("conv")
        return how.apply(x, weight)

    def attend(self, q, k, v, mask, scaling):
        self.asked.append("attention")
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scaling)

    def compute(self, form, x, *others, **how):
        return NotImplemented

    def begin_step(self, first):
        self.asked.append("step")


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


EQUATIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("bid,bjd->bij", (2, 3, 4), (2, 5, 4)),
    ("bhid,bhjd->bhij", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("ibh,hnd->ibnd", (3, 2, 4), (4, 2, 5)),
    ("...i,ij->...j", (2, 3, 4), (4, 5)),
    ("b...i,b...i->b...", (2, 3, 4), (2, 3, 4)),
    ("ij,jk", (3, 4), (4, 5)),
    ("ba,cb", (3, 4), (5, 3)),
    ("ijk,kl->li", (2, 3, 4), (4, 5)),
    ("bnd,dhk,bmk->bhnm", (2, 3, 4), (4, 5, 6), (2, 7, 6)),
    ("bij,bjk->ik", (2, 3, 4), (2, 4, 5)),
    ("i,i->", (4,), (4,)),
    ("bi,i->b", (3, 4), (4,)),
]


@pytest.mark.parametrize(("equation", "shapes"), [(e, s) for e, *s in EQUATIONS])
def test_einsum_is_products_of_matrices(equation, shapes):
    operands = [draw(*shape) for shape in shapes]
    m = Plain()
    got = LOWERINGS[torch.einsum](m, equation, *operands)
    torch.testing.assert_close(got, torch.einsum(equation, *operands))
    assert set(m.asked) == {"matmul"}


@pytest.mark.parametrize("equation", ["ij,ij->ij", "bi,bj->bij", "ii,ij->j"])
def test_an_einsum_that_does_not_add_up_asks_for_no_product(equation):
    m = Plain()
    got = LOWERINGS[torch.einsum](m, equation, draw(3, 3), draw(3, 3) + 1)
    if got is not NotImplemented:
        torch.testing.assert_close(got, torch.einsum(equation, draw(3, 3), draw(3, 3) + 1))
    assert not m.asked


TWO = [
    (torch.matmul, (2, 3, 4), (4, 5)),
    (torch.matmul, (3, 4), (2, 4, 5)),
    (torch.matmul, (4,), (4, 5)),
    (torch.matmul, (2, 3, 4), (4,)),
    (torch.matmul, (4,), (4,)),
    (torch.bmm, (2, 3, 4), (2, 4, 5)),
    (torch.mv, (3, 4), (4,)),
    (torch.inner, (2, 3, 4), (5, 4)),
    (torch.inner, (3, 4), (2, 5, 4)),
    (torch.tensordot, (2, 3, 4, 5), (4, 5, 6)),
    (torch._C._nn.linear, (2, 3, 4), (5, 4)),
]


@pytest.mark.parametrize(("function", "left", "right"), TWO)
@pytest.mark.parametrize("stored", ["neither", "left", "right"])
def test_products_of_two_tensors(function, left, right, stored):
    a, b = draw(*left), draw(*right)
    m = Plain(*{"neither": (), "left": (a,), "right": (b,)}[stored])
    torch.testing.assert_close(LOWERINGS[function](m, a, b), function(a, b))
    assert m.asked


def test_a_stack_of_weights_is_multiplied_one_by_one_by_views_of_it():
    x, weight = draw(6, 3, 4), draw(6, 4, 5)
    m = Plain(weight)
    torch.testing.assert_close(LOWERINGS[torch.bmm](m, x, weight), x @ weight)
    assert m.asked == ["linear"] * 6


@pytest.mark.parametrize("function", [torch.addmm, torch.baddbmm, torch.addbmm])
def test_products_that_are_added_to_something(function):
    three = function is not torch.addmm
    a, b = (draw(2, 3, 4), draw(2, 4, 5)) if three else (draw(3, 4), draw(4, 5))
    c = draw(3, 5)
    c = c.expand(2, 3, 5) if function is torch.baddbmm else c
    got = LOWERINGS[function](Plain(), c, a, b, beta=0.5, alpha=2.0)
    torch.testing.assert_close(got, function(c, a, b, beta=0.5, alpha=2.0))


def test_matrices_in_a_row_and_a_bilinear_form():
    a, b, c = draw(3, 4), draw(4, 5), draw(5, 2)
    torch.testing.assert_close(
        LOWERINGS[torch.linalg.multi_dot](Plain(), [a, b, c]), torch.linalg.multi_dot([a, b, c])
    )
    x, y, weight, bias = draw(6, 3), draw(6, 4), draw(5, 3, 4), draw(5)
    torch.testing.assert_close(
        LOWERINGS[torch.bilinear](Plain(weight), x, y, weight, bias), F.bilinear(x, y, weight, bias)
    )


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "padding": "valid"},
    ],
)
def test_convolutions(dims, settings):
    x, weight = draw(2, 4, *[7] * dims), draw(6, 4 // settings.get("groups", 1), *[3] * dims)
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    for given in (x, x[0]):
        got = LOWERINGS[function](Plain(weight), given, weight, draw(6), **settings)
        torch.testing.assert_close(got, function(given, weight, draw(6), **settings))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "groups": 2, "dilation": 2},
        {"padding": 2},
    ],
)
def test_transposed_convolutions(dims, settings):
    x, weight = draw(2, 4, *[5] * dims), draw(4, 6 // settings.get("groups", 1), *[3] * dims)
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    got = LOWERINGS[function](Plain(weight), x, weight, draw(6), **settings)
    torch.testing.assert_close(got, function(x, weight, draw(6), **settings))


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "added"])
def test_attention(mask):
    q, k, v = draw(2, 3, 5, 4), draw(2, 3, 5, 4) + 1, draw(2, 3, 5, 6)
    settings = {
        "none": {},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": draw(5, 5) > -0.5},
        "added": {"attn_mask": draw(1, 1, 5, 5), "scale": 0.3},
    }[mask]
    function = F.scaled_dot_product_attention
    got = LOWERINGS[torch._C._nn.scaled_dot_product_attention](Plain(), q, k, v, **settings)
    torch.testing.assert_close(got, function(q, k, v, **settings))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", [(10, 4), (6, 6), (3, 12)])
def test_interpolation_is_two_products_with_constants(mode, corners, size):
    x = draw(2, 3, 6, 5)
    m = Plain()
    function = getattr(torch._C._nn, f"upsample_{mode}2d")
    got = LOWERINGS[function](m, x, list(size), corners)
    expected = F.interpolate(x, size, mode=mode, align_corners=corners)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(WRITTEN_IN_PYTHON[F.interpolate](x, size, mode=mode,
                               align_corners=corners), expected)  # fmt: skip
    assert m.asked == ["matmul"] * 2


def test_what_sums_one_product_or_whole_numbers_is_left_to_torch():
    matmul, m = LOWERINGS[torch.matmul], Plain()
    assert matmul(m, draw(3, 1), draw(1, 4)) is NotImplemented
    assert matmul(m, torch.ones(3, 2, dtype=int), torch.ones(2, 4, dtype=int)) is NotImplemented
    assert not m.asked


def test_functions_written_in_python_are_still_those_of_torch():
    function = F.multi_head_attention_forward
    attention = torch.nn.MultiheadAttention(8, 2).eval()
    x, names = draw(5, 3, 8), attention
    arguments = (x, x, x, 8, 2, names.in_proj_weight, names.in_proj_bias, None, None, False, 0.0,
                 names.out_proj.weight, names.out_proj.bias, False)  # fmt: skip
    with torch.no_grad():
        for a, b in zip(WRITTEN_IN_PYTHON[function](*arguments), function(*arguments), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("settings", [{"groups": 4}, {"groups": 4, "stride": 2, "dilation": 3}])
def test_short_convolutions_of_each_channel_multiply_position_by_position(settings):
    x, weight = draw(2, 4, 15), draw(8, 1, 3)
    m = Plain(weight)
    got = LOWERINGS[torch.conv1d](m, x, weight, draw(8), **settings)
    torch.testing.assert_close(got, F.conv1d(x, weight, draw(8), **settings))
    assert m.asked == ["conv"]


FOURIER = [torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.irfft]
FOURIER_2 = [torch.fft.fft2, torch.fft.ifft2, torch.fft.rfft2, torch.fft.irfft2]
FOURIER_N = [torch.fft.fftn, torch.fft.ifftn, torch.fft.rfftn, torch.fft.irfftn]


@pytest.mark.parametrize("function", [*FOURIER, *FOURIER_2, *FOURIER_N])
@pytest.mark.parametrize("norm", [None, "ortho", "forward"])
@pytest.mark.parametrize("longer", [-1, 0, 2])
def test_fourier_transforms_are_products_with_constants(function, norm, longer):
    x, sizes = draw(3, 6, 7), (6 + longer, 7 + longer)
    given = {"dim": (1, 2), "s": sizes} if function not in FOURIER else {"dim": 1, "n": sizes[0]}
    inverse = function.__name__.startswith("fft_i")
    for each in (x, torch.complex(x, draw(3, 6, 7) + 1)):
        if each.is_complex() and function.__name__.startswith("fft_r"):
            continue
        m = Plain()
        got = LOWERINGS[function](m, each, norm=norm, **given)
        torch.testing.assert_close(got, function(each, norm=norm, **given), rtol=1e-4, atol=1e-5)
        assert set(m.asked) == {"matmul"}
        if longer == 0 and not inverse:
            torch.testing.assert_close(LOWERINGS[function](m, each), function(each))


def test_a_product_of_complex_numbers_is_four_of_real_ones():
    class Counting(Plain):
        def multiply(self, a, b):
            if a.is_complex():
                return NotImplemented
            self.asked.append("multiply")
            return a * b

    m, a, b = Counting(), torch.complex(draw(3, 4), draw(4, 3).t()), torch.complex(*draw(2, 3, 4))
    torch.testing.assert_close(LOWERINGS[torch.mul](m, a, b.conj()), a * b.conj())
    assert m.asked == ["multiply"] * 4


def test_distances():
    a, b = draw(2, 3, 4), draw(5, 4)
    stored = b.expand(2, 5, 4)
    for m, kind in ((Plain(b), "linear"), (Plain(), "matmul")):
        got = LOWERINGS[torch.cdist](m, a, stored)
        torch.testing.assert_close(got, torch.cdist(a, stored))
        assert m.asked == [kind]  # once for all rows
    assert LOWERINGS[torch.cdist](Plain(), a, b, p=1.0) is NotImplemented


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("align", [False, True])
def test_sampling_at_places_is_a_product_with_the_weights_of_four_neighbours(padding, align):
    x, grid = draw(2, 3, 5, 6), draw(2, 4, 7, 2) * 0.8
    settings = {"padding_mode": padding, "align_corners": align}
    m = Plain()
    got = LOWERINGS[torch.grid_sampler](m, x, grid, 0, int(padding == "border"), align)
    torch.testing.assert_close(got, F.grid_sample(x, grid, **settings), rtol=1e-4, atol=1e-5)
    assert m.asked == ["matmul"]
    assert LOWERINGS[torch.grid_sampler](m, x, grid, 1, 0, align) is NotImplemented


RECURRENT = {
    "LSTM": lambda: torch.nn.LSTM(4, 6, 2, bidirectional=True),
    "LSTM with a projection": lambda: torch.nn.LSTM(4, 6, proj_size=3, batch_first=True),
    "GRU": lambda: torch.nn.GRU(4, 6, 2, bias=False, batch_first=True),
    "RNN": lambda: torch.nn.RNN(4, 6, bidirectional=True),
    "RNN with ReLU": lambda: torch.nn.RNN(4, 6, nonlinearity="relu"),
    "LSTMCell": lambda: torch.nn.LSTMCell(4, 6),
    "GRUCell": lambda: torch.nn.GRUCell(4, 6),
    "RNNCell": lambda: torch.nn.RNNCell(4, 6),
}


class Lowered(torch.overrides.TorchFunctionMode):
    """Calls the lowering of what has one."""

    def __init__(self, m):
        self.m = m

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in LOWERINGS:
            return LOWERINGS[function](self.m, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_products_step_by_step(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = RECURRENT[name]()
    x = draw(5, 4) if "Cell" in name else draw(5, 3, 4)
    m = Plain(*layer.parameters())
    with Lowered(m):
        got = layer(x)
    torch.testing.assert_close(got, layer(x))
    assert set(m.asked) - {"step"} == {"linear"}


def test_a_packed_sequence_is_not_lowered():
    layer = torch.nn.GRU(4, 6)
    packed = torch.nn.utils.rnn.pack_padded_sequence(draw(5, 2, 4), [5, 3])
    h, more = torch.zeros(1, 2, 6), (layer._flat_weights, True, 1, 0.0, False, False)
    for function, state in ((torch.gru, h), (torch.lstm, (h, h))):
        given = packed.data, packed.batch_sizes, state, *more
        assert LOWERINGS[function](Plain(), *given) is NotImplemented
