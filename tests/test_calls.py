"""Products that a model calls outside Linear and Conv2d: each has a site, and runs on spikes."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import isospike
from isospike.hf.batches import first_output
from isospike.porting.ported import Ported
from isospike.porting.run import run_of

WIDTH = 16


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Own(nn.Module):
    """``act(x)`` for x [batch, tokens, 16]: whatever the function given does with its weights."""

    def __init__(self, forward, **weights):
        super().__init__()
        self.act = forward
        for name, weight in weights.items():
            setattr(self, name, weight if isinstance(weight, nn.Module) else nn.Parameter(weight))

    def forward(self, x):
        return self.act(self, x)


def square(seed=0):
    return draw(seed, WIDTH, WIDTH) / 4


def linear(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(WIDTH, WIDTH)


def attend_by_hand(m, x):
    q, k, v = (F.linear(x, m.w[i * WIDTH : (i + 1) * WIDTH]).unflatten(-1, (2, 8)).transpose(1, 2)
               for i in range(3))  # fmt: skip
    p = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    return (p @ v).transpose(1, 2).flatten(2)


def route(m, x):
    flat = x.reshape(-1, WIDTH)
    chosen = F.linear(flat, m.gate).argmax(-1)
    y = torch.zeros_like(flat)
    for e in range(len(m.experts)):
        rows = (chosen == e).nonzero()[:, 0]
        y[rows] = F.linear(flat[rows], m.experts[e])
    return y.view_as(x)


def hooked(module):
    module.register_forward_hook(lambda m, args, y: 2 * y)
    return module


def weight_normed(module):
    return torch.nn.utils.parametrizations.weight_norm(module)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def gram(x: torch.Tensor) -> torch.Tensor:
    return x @ x.transpose(1, 2)


MODELS = {
    "a parameter": lambda: Own(lambda m, x: F.linear(x, m.w), w=square()),
    "a parameter on the right": lambda: Own(lambda m, x: x @ m.w, w=square()),
    "a parameter on the left": lambda: Own(
        lambda m, x: (m.w @ x.mT).mT, w=square()
    ),
    "einsum": lambda: Own(
        lambda m, x: torch.einsum("bti,hid->bthd", x, m.w).flatten(2), w=draw(0, 2, WIDTH, 8) / 4
    ),
    "a layer twice": lambda: Own(lambda m, x: m.a(torch.tanh(m.a(x))), a=linear()),
    "a weight that another module reads": lambda: Own(
        lambda m, x: m.a(x) * m.a.weight.norm(), a=linear()
    ),
    "a tied weight": lambda: Own(lambda m, x: F.linear(m.a(x), m.a.weight.t()), a=linear()),
    "attention by hand": lambda: Own(attend_by_hand, w=draw(0, 3 * WIDTH, WIDTH) / 4),
    "attention of torch": lambda: Own(
        lambda m, x: F.scaled_dot_product_attention(x, F.linear(x, m.w), x, is_causal=True),
        w=square(),
    ),
    "experts in one tensor": lambda: Own(
        route, gate=draw(1, 3, WIDTH), experts=draw(2, 3, WIDTH, WIDTH) / 4
    ),
    "a stack of weights": lambda: Own(
        lambda m, x: torch.bmm(x.unflatten(-1, (2, 8)).flatten(0, 1).transpose(0, 1), m.w)
        .transpose(0, 1).reshape(x.shape), w=draw(0, 2, 8, 8) / 3,
    ),
    "a hook": lambda: Own(lambda m, x: m.a(x), a=hooked(linear())),
    "a computed weight": lambda: Own(lambda m, x: m.a(x), a=weight_normed(linear())),
    "a product of two weights": lambda: Own(
        lambda m, x: F.linear(x, m.u @ m.v), u=square(1), v=square(2)
    ),
    "a subclass": lambda: Own(lambda m, x: m.a(x), a=Doubled(WIDTH, WIDTH)),
    "nn.MultiheadAttention": lambda: Own(
        lambda m, x: m.a(x, x, x, need_weights=False)[0], a=nn.MultiheadAttention(WIDTH, 2)
    ),
    "nn.TransformerEncoder": lambda: Own(
        lambda m, x: m.a(x),
        a=nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True), 2),
    ),
    "Conv1d, by groups": lambda: Own(
        lambda m, x: m.a(x.mT).mT, a=nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=4)
    ),
    "Conv1d, mirrored": lambda: Own(
        lambda m, x: m.a(x.mT).mT, a=nn.Conv1d(WIDTH, WIDTH, 3, padding=1, padding_mode="reflect")
    ),
    "Conv2d, by channels": lambda: Own(
        lambda m, x: m.a(x[:, None].expand(-1, 4, -1, -1)).mean(1),
        a=nn.Conv2d(4, 4, 3, padding="same", groups=4),
    ),
    "Conv1d, causal": lambda: Own(
        lambda m, x: m.a(F.pad(x.mT, (2, 0))).mT, a=nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)
    ),
    "a Fourier transform": lambda: Own(lambda m, x: torch.fft.fft2(x, norm="ortho").real),
    "a filter in frequencies": lambda: Own(
        lambda m, x: torch.fft.irfft(
            torch.fft.rfft(x, dim=1) * torch.fft.rfft(F.linear(x, m.w), dim=1).conj(), dim=1
        ), w=square(),
    ),
    "distances": lambda: Own(lambda m, x: torch.cdist(x, m.w.expand(len(x), -1, -1)), w=square()),
    "values at places": lambda: Own(
        lambda m, x: F.grid_sample(
            x.mT[..., None], F.linear(x, m.w)[..., :8].unflatten(-1, (4, 2)), align_corners=False
        ).flatten(2), w=square(),
    ),
    "LSTM": lambda: Own(
        lambda m, x: m.a(x)[0], a=nn.LSTM(WIDTH, 8, bidirectional=True, batch_first=True)
    ),
    "GRU": lambda: Own(lambda m, x: m.a(x)[0], a=nn.GRU(WIDTH, WIDTH, 2, batch_first=True)),
    "ConvTranspose1d": lambda: Own(
        lambda m, x: m.a(x.mT).mT, a=nn.ConvTranspose1d(WIDTH, WIDTH, 4, stride=2, padding=1)
    ),
    "Conv3d": lambda: Own(
        lambda m, x: m.a(x.unflatten(-1, (4, 4))[:, None]).mean(1).flatten(2),
        a=nn.Conv3d(1, 4, 3, padding=1),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(MODELS))
def made(request):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = MODELS[request.param]().eval()
    batches = [{"x": draw(3, 24, 6, WIDTH)}]
    port = isospike.port(model, batches, evaluation=[{"x": draw(4, 8, 6, WIDTH)}])
    return request.param, model, port


def run(port, x, execution="collapsed"):
    with torch.no_grad(), run_of(port.model).switched(execution=execution):
        return port.model(x)


def test_the_port_computes_what_the_model_does(made):
    _, model, port = made
    x = draw(5, 5, 6, WIDTH)
    with torch.no_grad():
        expected = model(x)
    error = (run(port, x) - expected).norm() / expected.norm()
    assert error < 0.03
    assert error == pytest.approx(port.report.error, rel=1, abs=0.002)


def test_stepped_and_collapsed_agree_bit_for_bit(made):
    _, _, port = made
    for rows, tokens in ((3, 6), (2, 9)):
        x = draw(6, rows, tokens, WIDTH)
        assert torch.equal(run(port, x), run(port, x, "stepped"))


def test_every_product_of_matrices_reads_spikes(made):
    _, _, port = made
    with run_of(port.model).switched(execution="stepped"):
        found = isospike.audit(port.model, {"x": draw(7, 12, 6, WIDTH)})
    # Of a short convolution of each channel nothing is summed: a spike meets one weight.
    alone = all(getattr(p, "by_token", False) for p in Ported.of(port.model).products)
    assert found.products or alone
    assert found.spiking


def test_every_site_is_counted(made):
    _, _, port = made
    assert port.report.counts.macs > 0
    assert all(site.spikes > 0 and site.synaptic_ops > 0 for site in port.report.sites)


def sites(name):
    model = MODELS[name]().eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    return port, [site.name for site in port.report.sites]


def test_a_layer_that_runs_twice_has_a_site_and_a_bias_for_each():
    port, names = sites("a layer twice")
    assert names == ["a:weight", "a:weight.use1"]
    one, two = port.model.a.isospike_calls
    assert not torch.equal(one.bias, two.bias)
    assert not torch.equal(one.weight, two.weight)


def test_products_that_begin_at_one_place_are_told_apart():
    model = Own(lambda m, x: (x @ x.mT) @ x, w=square()).eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    assert sum(type(m).__name__ == "SpikingMatmul" for m in port.model.modules()) == 2


def test_an_expert_is_known_by_its_weight_whatever_the_order():
    port, names = sites("experts in one tensor")
    assert set(names) == {":gate", ":experts", ":experts.1", ":experts.2"}
    with torch.no_grad():
        for row in draw(8, 12, 1, 1, WIDTH):  # reaches one expert
            error = (port.model(row) - MODELS["experts in one tensor"]()(row)).norm()
            assert error < 0.05 * row.norm()


def test_an_expert_that_no_token_went_to_is_listed_and_raises():
    model = MODELS["experts in one tensor"]().eval()
    with torch.no_grad():
        model.gate[2].fill_(-1e3)  # never, for positive inputs
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH).abs()}])
    assert port.report.unreached == ("experts",)
    with pytest.raises(isospike.UnsupportedError, match="needs calibration inputs that reach"):
        port.model(-draw(3, 24, 6, WIDTH).abs())


def test_a_product_is_summed_over_tokens_with_a_gain_for_each_token():
    port, _ = sites("attention by hand")
    scores, values = (m for m in port.model.modules() if type(m).__name__ == "SpikingMatmul")
    assert (scores.keyed, values.keyed) == (False, True)


def test_a_token_does_not_depend_on_one_that_its_weights_leave_out():
    def causal(m, x):
        scores = x @ F.linear(x, m.w).mT
        gone = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        return scores.masked_fill(gone, -1e9).softmax(-1) @ x

    model = Own(causal, w=square()).eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    x = draw(9, 2, 6, WIDTH)
    other = x.clone()
    other[:, -1] *= 50
    assert torch.equal(run(port, x)[:, :-1], run(port, other)[:, :-1])


def test_a_causal_convolution_does_not_depend_on_what_comes_later():
    model = MODELS["Conv1d, causal"]().eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    x = draw(9, 2, 6, WIDTH)
    other = x.clone()
    other[:, -1] *= 50
    assert torch.equal(run(port, x)[:, :-1], run(port, other)[:, :-1])


def test_the_steps_of_a_recurrence_share_a_site_and_may_be_more_than_before():
    model = MODELS["LSTM"]().eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    names = [site.name for site in port.report.sites]
    assert [n for n in names if n.startswith("a:weight")] == [
        "a:weight_ih_l0", "a:weight_hh_l0", "a:weight_ih_l0_reverse", "a:weight_hh_l0_reverse",
    ]  # fmt: skip
    x = draw(9, 2, 12, WIDTH)
    expected = model(x).detach()
    assert (run(port, x) - expected).norm() < 0.05 * expected.norm()


def test_weights_stay_what_they_are_where_they_are_read():
    model = MODELS["a weight that another module reads"]().eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    assert torch.equal(port.model.a.weight, model.a.weight)


@pytest.mark.parametrize("ranges", ["static", "dynamic"])
@pytest.mark.parametrize("code", ["phase", "rate", "latency", "half-octave"])
def test_other_codes_and_ranges_agree_too(code, ranges):
    steps = {"rate": 64, "latency": 40}.get(code, 8)
    model = MODELS["attention by hand"]().eval()
    x = draw(3, 24, 6, WIDTH)
    port = isospike.port(model, [{"x": x}], code=code, steps=steps, ranges=ranges)
    assert port.report.error < 0.3
    assert torch.equal(run(port, x[:3]), run(port, x[:3], "stepped"))


def test_a_convolution_whose_kernel_is_computed_is_refused():
    model = Own(lambda m, x: F.conv1d(x.mT, (x[0] @ m.w)[:4, :, None]).mT, w=square())
    with pytest.raises(isospike.UnsupportedError, match="kernels that are weights"):
        isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])


def scripted(thing):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(thing)


class Calling(nn.Module):
    """Calls a function that is not a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@torch.library.custom_op("isospike_tests::gram", mutates_args=())
def own_gram(x: torch.Tensor) -> torch.Tensor:
    return x @ x.mT


HIDDEN = {
    "a scripted function": (
        lambda: Calling((lambda function: lambda x: function(x))(scripted(gram))),
        "got bmm in 1",
    ),
    "an operator of another library": (
        lambda: Calling(lambda x: own_gram(x)),
        "got isospike_tests::gram in 1",
    ),
    "what cannot be copied": (lambda: Calling(scripted(gram)), "a model that can be copied, got a"),
    "a solver": (
        lambda: Calling(lambda x: torch.linalg.solve(gram(x) + torch.eye(6), x)),
        "got _linalg_solve_ex in 1",
    ),
    "a scripted module": (lambda: scripted(linear()), "got a scripted module in 1"),
    "a compiled module": (
        lambda: torch.compile(linear(), backend="eager"),
        r"got a compiled module in 1 \(OptimizedModule\). Port the model, then compile the port",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_product_that_python_does_not_see_is_refused_by_name(name):
    make, message = HIDDEN[name]
    model = nn.Sequential(linear(), make()).eval()
    with pytest.raises(isospike.UnsupportedError, match=message) as caught:
        isospike.port(model, [{"input": draw(3, 24, 6, WIDTH)}])
    assert "\n" not in str(caught.value)
    assert ":isospike" not in str(model)


def test_of_a_compiled_model_what_was_compiled_is_ported():
    model = linear().eval()
    port = isospike.port(torch.compile(model, backend="eager"), [{"input": draw(3, 24, 6, WIDTH)}])
    assert (type(port.model), port.report.model) == (nn.Linear, "Linear")
    assert port.report.error < 0.05


def test_a_branch_that_only_a_few_rows_take_is_calibrated_on_them():
    model = Own(lambda m, x: m.a(x) if len(x) > 3 else m.b(x), a=linear(1), b=linear(2)).eval()
    port = isospike.port(model, [{"x": draw(3, 24, 6, WIDTH)}])
    for rows in (2, 8):
        x = draw(4, rows, 6, WIDTH)
        expected = model(x).detach()
        assert (run(port, x) - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("how", ["export", "jit"])
@pytest.mark.filterwarnings("ignore")
def test_a_port_that_computes_products_where_they_are_called_is_not_traced(how):
    port = isospike.port(MODELS["a parameter"]().eval(), [{"x": draw(3, 24, 6, WIDTH)}]).model
    traced = {"export": lambda: torch.export.export(port, (draw(4, 2, 6, WIDTH),)),
              "jit": lambda: torch.jit.trace(port, (draw(4, 2, 6, WIDTH),))}  # fmt: skip
    with pytest.raises(
        isospike.UnsupportedError, match="needs a port whose matrix products are all"
    ):
        traced[how]()


SMALL = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def text(rows, seed):
    ids = torch.randint(5, 100, (rows, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[::2, 8:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def albert():
    return transformers.AlbertModel(transformers.AlbertConfig(embedding_size=16, **SMALL))


def deberta():
    return transformers.DebertaV2Model(
        transformers.DebertaV2Config(
            relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8,
            share_att_key=True, norm_rel_ebd="layer_norm", **SMALL,
        )
    )  # fmt: skip


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(num_local_experts=4, num_key_value_heads=2, **SMALL)
    )


def bloom():
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=100, hidden_size=32, n_layer=2, n_head=4)
    )


@pytest.mark.parametrize("make", [albert, deberta, mixtral, bloom])
def test_a_model_of_transformers_is_ported_saved_and_loaded(make, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn(p.shape))
    port = isospike.port(model, [text(16, 0)], evaluation=[text(6, 1)])
    assert port.report.error < 0.05
    batch = text(3, 2)
    with torch.no_grad():
        expected = first_output(port.model(**batch))
        with run_of(port.model).switched(execution="stepped"):
            assert torch.equal(first_output(port.model(**batch)), expected)
        loaded = isospike.load(port.save(tmp_path / "port"))
        assert torch.equal(first_output(loaded(**batch)), expected)
