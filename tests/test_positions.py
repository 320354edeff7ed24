import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.positions import (
    FIRE,
    POSITIONS,
    ALiBi,
    CentralPatternGenerator,
    FrequencyCompressed,
    GrayCode,
    LogDistance,
    NoPE,
    Position,
    RandomizedOrdered,
    RankLearned,
    RankSignificance,
    RoPE,
    Sinusoidal,
    SpikeTiming,
    T5Buckets,
    position,
    sinusoid,
)

WIDTH, HEADS, LENGTH = 24, 4, 16
NAMES = sorted(POSITIONS)


def draw(seed):
    return torch.Generator().manual_seed(seed)


def made(name, causal=True):
    encoding = position(name, width=WIDTH, heads=HEADS, length=LENGTH, causal=causal)
    generator = draw(5)
    with torch.no_grad():  # learned parts start at zero or one: give each its own value
        for parameter in encoding.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=generator))
    return encoding.eval()


def scores(position, q, k, at):
    """What softmax sees: [heads, queries, keys]."""
    q, k = position.rotate(q, k, at)
    dots = q @ k.transpose(-1, -2)
    bias = position.bias(at, at)
    return dots if bias is None else dots + bias


# Parity.


def test_rope_is_llamas():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    for head_width, base in ((16, 10000.0), (64, 500000.0)):
        config = LlamaConfig(
            hidden_size=4 * head_width, num_attention_heads=4, num_key_value_heads=4,
            rope_parameters={"rope_type": "default", "rope_theta": base},
        )  # fmt: skip
        q, k = torch.randn(2, 3, 4, 600, head_width, generator=draw(0))
        at = torch.arange(600)
        cos, sin = LlamaRotaryEmbedding(config)(q, at[None].expand(3, -1))
        theirs = apply_rotary_pos_emb(q, k, cos, sin)
        for ours, true in zip(RoPE(head_width, base).rotate(q, k), theirs, strict=True):
            torch.testing.assert_close(ours, true, rtol=0, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 4, 6, 8, 12, 16, 20])
def test_alibi_slopes_are_blooms(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    # Theirs is slope * key, which softmax cannot tell from -slope * distance.
    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(ALiBi(heads).slopes), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("causal", "buckets", "furthest"),
    [(True, 32, 128), (False, 32, 128), (True, 8, 20), (False, 12, 40)],
)
def test_buckets_are_t5s(causal, buckets, furthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    at = torch.arange(300)
    theirs = T5Attention._relative_position_bucket(
        at - at[:, None], bidirectional=not causal, num_buckets=buckets, max_distance=furthest
    )
    assert torch.equal(T5Buckets(4, causal, buckets, furthest).bucket(at, at), theirs)


def test_sinusoid_is_its_closed_form():
    table = Sinusoidal(64).table(torch.arange(2000))
    for p in (0, 1, 17, 1999):
        for i in (0, 1, 9, 31):
            angle = p * 10000 ** (-2 * i / 64)
            assert table[p, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-7)
            assert table[p, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-7)
    torch.testing.assert_close(table.square().sum(-1), torch.full((2000,), 32.0))


# Hand traces.


def test_spike_timing_is_a_weaker_sinusoid_and_compression_is_not():
    at = torch.arange(40)
    plain = Sinusoidal(32).table(at)
    torch.testing.assert_close(SpikeTiming(32, 20).table(at), plain / 20)
    torch.testing.assert_close(SpikeTiming(32, 20, cycle=20.0).table(at), plain)
    torch.testing.assert_close(FrequencyCompressed(32, 20).table(at), sinusoid(at / 20, 32))
    assert FrequencyCompressed(32, 40).table(at)[:, 0].asin().max() <= 1


def test_gray_codes_by_hand():
    code = GrayCode(1, bits=3)
    assert code.spikes(torch.arange(8)).int().tolist() == [
        [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 1], [0, 0, 1],
    ]  # fmt: skip
    assert code.bias(torch.tensor([0]), torch.arange(8))[0, 0].tolist() == [3, 2, 1, 2, 1, 0, 1, 2]


@given(st.integers(0, 9), st.integers(0, 400))
def test_gray_codes_a_power_of_two_apart_differ_in_two_bits(power, p):
    code = GrayCode(1)
    bits = code.spikes(torch.tensor([p, p + 2**power]))
    assert (bits[0] != bits[1]).sum() == (1 if power == 0 else 2)


def test_log_distance_by_hand():
    at = torch.tensor([9])
    keys = torch.tensor([9, 8, 7, 6, 5, 2, 1, 0])
    assert LogDistance(1).bias(at, keys)[0, 0].tolist() == [0, -1, -2, -2, -3, -3, -4, -4]


def test_pattern_generator_spikes_where_its_oscillators_are_high():
    cpg = CentralPatternGenerator(8, pairs=3, threshold=0.5)
    at = torch.arange(200)
    high = torch.stack([(at / 10000 ** (1 / 3)).sin(), (at / 10000 ** (1 / 3)).cos()], -1) > 0.5
    assert torch.equal(cpg.spikes(at)[:, 2:4], high.float())
    added = cpg.add(torch.zeros(200, 8))
    torch.testing.assert_close(added, cpg.spikes(at) @ cpg.project.weight.T)


def test_rank_significance_is_an_order_for_each_position():
    code = RankSignificance(64, 30, spikes=5, alpha=0.5)
    table = code.table(torch.arange(30))
    assert ((table > 0).sum(-1) == 5).all()
    top = table.sort(-1, descending=True).values[:, :5]
    torch.testing.assert_close(top[:, 1:] / top[:, :-1], torch.full((30, 4), 0.5))
    torch.testing.assert_close(table.square().sum(-1), torch.full((30,), 32.0))
    assert torch.equal(table, RankSignificance(64, 30, 5, 0.5).table(torch.arange(30)))
    assert not torch.equal(
        table, RankSignificance(64, 30, 5, 0.5, generator=draw(1)).table(torch.arange(30))
    )


def test_fire_is_a_function_of_the_share_of_the_way():
    fire = FIRE(2, threshold=8.0)
    at = torch.arange(20)
    bias = fire.bias(at, at)
    for p, q in ((3, 1), (15, 4), (4, 15), (7, 7)):
        c = 0.1
        share = math.log(1 + c * abs(p - q)) / math.log(1 + c * max(8, p, q))
        x = torch.tensor([math.copysign(share, p - q)])
        torch.testing.assert_close(
            bias[:, p, q], fire.down(fire.up(x).relu()), rtol=1e-5, atol=1e-6
        )


def test_t5_has_each_direction_or_only_the_past():
    at = torch.arange(5)
    both, past = T5Buckets(1, causal=False), T5Buckets(1, causal=True)
    assert both.bucket(at, at)[2].tolist() == [2, 1, 0, 17, 18]
    assert past.bucket(at, at)[2].tolist() == [2, 1, 0, 0, 0]


# Contracts, for every encoding.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shift", [1, 7, 100])
def test_scores_of_relative_encodings_depend_on_distances_only(name, shift):
    position = made(name)
    q, k = torch.randn(2, HEADS, LENGTH, WIDTH // HEADS, generator=draw(1))
    x = torch.randn(LENGTH, WIDTH, generator=draw(2))
    at = torch.arange(LENGTH)
    if position.max_length is not None and LENGTH + shift > position.max_length:
        assert not position.relative
        return
    here, there = ((scores(position, q, k, a), position.add(x, a)) for a in (at, at + shift))
    same = all(torch.allclose(a, b, atol=1e-4) for a, b in zip(here, there, strict=True))
    # FIRE is relative up to its threshold, and the pattern generator hardly changes in a step.
    assert same == position.relative or (shift < 100 and not position.relative)


@pytest.mark.parametrize("name", NAMES)
def test_hooks_keep_shape_type_and_input(name):
    position = made(name)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(3, 2, LENGTH, WIDTH, generator=draw(0)).to(dtype)
        q, k = torch.randn(2, 2, HEADS, LENGTH, WIDTH // HEADS, generator=draw(1)).to(dtype)
        before = [t.clone() for t in (x, q, k)]
        out = (position.add(x), *position.rotate(q, k))
        assert [(t.shape, t.dtype) for t in out] == [(t.shape, dtype) for t in before]
        assert all(map(torch.equal, (x, q, k), before)), "inputs are not written to"
    bias = position.bias(torch.arange(3), torch.arange(LENGTH))
    assert bias is None or bias.shape == (HEADS, 3, LENGTH)
    assert bias is None or bias.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_token_may_be_placed_alone(name):
    position = made(name)
    x = torch.randn(2, LENGTH, WIDTH, generator=draw(0))
    q = torch.randn(2, LENGTH, WIDTH // HEADS, generator=draw(1))
    at = position.index(LENGTH)
    one = slice(6, 7)
    torch.testing.assert_close(position.add(x, at)[:, one], position.add(x[:, one], at[one]))
    torch.testing.assert_close(
        position.rotate(q, q, at)[0][:, one], position.rotate(q[:, one], q[:, one], at[one])[0]
    )
    if position.bias(at, at) is not None:
        torch.testing.assert_close(position.bias(at, at)[:, one], position.bias(at[one], at))


@pytest.mark.parametrize("name", NAMES)
def test_something_in_an_encoding_tells_positions_apart(name):
    position = made(name)
    x = torch.zeros(LENGTH, WIDTH)
    q = torch.ones(HEADS, LENGTH, WIDTH // HEADS)
    at = position.index(LENGTH)
    told = bool((position.add(x, at) != position.add(x, at)[0]).any())
    told |= bool((scores(position, q, q, at)[0].diff() != 0).any())
    assert told == (name != "none")


@pytest.mark.parametrize("name", NAMES)
def test_learned_parts_get_a_gradient(name):
    position = made(name)
    at = position.index(LENGTH)
    x = torch.randn(LENGTH, WIDTH, generator=draw(0))
    bias = position.bias(at, at)
    probability = None if bias is None else bias.softmax(-1)[:, :, 0]
    loss = position.add(x).square().sum() + (0 if probability is None else probability.sum())
    if not list(position.parameters()):
        assert not loss.requires_grad
        return
    loss.backward()
    for parameter in position.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    # A constant added to all scores has no effect, hence FIRE's last bias no gradient.
    assert any(p.grad.abs().max() > 1e-6 for p in position.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_past_max_length_is_a_clear_error(name):
    position = made(name)
    if position.max_length is None:
        assert position.index(5, 100_000).tolist() == list(range(100_000, 100_005))
        return
    limit = position.max_length
    match = rf"needs at most {limit} positions, got {limit + 1}\. Make it with a larger max_length"
    with pytest.raises(RangeError, match=match):
        position.index(limit + 1)
    for past in (limit, -1):
        at = torch.tensor([past])
        use = (
            partial(position.bias, at)
            if name == "gray-code"
            else partial(position.add, torch.zeros(1, WIDTH))
        )
        with pytest.raises(RangeError, match=rf"positions in \[0, {limit}\), got {past} to {past}"):
            use(at)


@pytest.mark.parametrize("name", NAMES)
def test_works_on_spikes(name):
    spikes = torch.randint(2, (5, 2, LENGTH, WIDTH), generator=draw(0)).float()
    position = made(name)
    q, k = position.rotate(spikes[..., :6], spikes[..., 6:12])
    assert q.shape == k.shape == (5, 2, LENGTH, 6)
    # Time is axis 0, and every step is encoded alike.
    torch.testing.assert_close(position.add(spikes)[3], position.add(spikes[3]))
    torch.testing.assert_close(q[3], position.rotate(spikes[3, ..., :6], spikes[3, ..., 6:12])[0])


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_randomized_positions_are_ordered_and_below_the_limit(length, seed):
    position = RandomizedOrdered(Sinusoidal(8), 40, draw(seed))
    at = position.index(length)
    assert (at.diff() > 0).all()
    assert (at.min(), at.max()) >= (0, length - 1)
    assert at.max() < 40
    assert torch.equal(at, RandomizedOrdered(Sinusoidal(8), 40, draw(seed)).index(length))
    still = position.eval().index(length)
    assert torch.equal(still, position.index(length))
    assert (still.diff() > 0).all()
    assert still.max() < 40


def test_randomized_positions_rest_at_their_mean():
    position = RandomizedOrdered(RoPE(8), 30, draw(0))
    drawn = torch.stack([position.index(9) for _ in range(4000)]).double().mean(0)
    assert (drawn - position.eval().index(9)).abs().max() < 0.75  # half of it is the rounding


def test_randomized_needs_the_whole_sequence():
    position = RandomizedOrdered(Sinusoidal(8), 30)
    with pytest.raises(UnsupportedError, match="whole sequence at once, got tokens that follow 3"):
        position.index(1, 3)
    with pytest.raises(RangeError, match="a base for 30 positions, got one for 20"):
        RandomizedOrdered(RankLearned(8, 20), 30)


def test_randomized_passes_on_what_its_base_does():
    x, at = torch.randn(5, 8, generator=draw(0)), torch.tensor([1, 4, 6, 7, 20])
    for base in (Sinusoidal(8), RoPE(8), ALiBi(2)):
        position = RandomizedOrdered(base, 30)
        assert torch.equal(position.add(x, at), base.add(x, at))
        assert torch.equal(position.rotate(x, x, at)[1], base.rotate(x, x, at)[1])
        ours, true = position.bias(at, at), base.bias(at, at)
        assert (ours is None and true is None) or torch.equal(ours, true)


# Errors.


def test_an_unknown_encoding_is_answered_with_those_known():
    with pytest.raises(InputError, match=r"got 'rotary'. Use one of none, sinusoidal, .*\."):
        position("rotary", width=8, heads=2, length=4)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: RoPE(7), "RoPE needs an even head_width, .*, got 7"),
        (lambda: RoPE(8, 0.0), "RoPE needs a base above 0, got 0"),
        (lambda: Sinusoidal(3), "Sinusoidal needs an even width, .* got 3"),
        (lambda: sinusoid(torch.arange(3), 0), "sinusoid needs an even width, .* got 0"),
        (lambda: SpikeTiming(4, 0), "SpikeTiming needs length >= 1, got 0"),
        (lambda: SpikeTiming(4, 2, -1.0), "SpikeTiming needs a cycle above 0, got -1"),
        (lambda: FrequencyCompressed(4, 0), "FrequencyCompressed needs length >= 1, got 0"),
        (lambda: RankLearned(4, 0), "RankLearned needs max_length >= 1, got 0"),
        (lambda: RankSignificance(4, 9, 5), "1 <= spikes <= width, got 5 of 4"),
        (lambda: CentralPatternGenerator(4, 0), "needs pairs >= 1, got 0"),
        (lambda: CentralPatternGenerator(4, threshold=1.0), "threshold in .*, got 1"),
        (lambda: ALiBi(0), "ALiBi needs heads >= 1, got 0"),
        (lambda: T5Buckets(0), "T5Buckets needs heads >= 1, got 0"),
        (lambda: T5Buckets(2, buckets=6), "a multiple of 4 buckets, got 6"),
        (lambda: T5Buckets(2, max_distance=32), "max_distance above the 32 buckets, got 32"),
        (lambda: FIRE(2, 0.0), "FIRE needs a threshold above 0, got 0"),
        (lambda: GrayCode(2, 63), "GrayCode needs 1 to 62 bits, got 63"),
        (lambda: LogDistance(-1), "LogDistance needs heads >= 1, got -1"),
        (lambda: position("rope", width=12, heads=0, length=8), "position needs heads >= 1"),
        (
            lambda: position("rope", width=12, heads=4, length=8),
            "RoPE needs an even head_width, .*, got 3",
        ),
        (
            lambda: position("alibi", width=10, heads=4, length=8),
            "a width that 4 heads divide, got 10",
        ),
        (lambda: position("alibi", width=8, heads=4, length=0), "needs length >= 1, got 0"),
        (lambda: NoPE().index(-1), "index needs length and start >= 0, got -1"),
    ],
)
def test_mistakes_are_named(make, text):
    with pytest.raises(RangeError, match=text):
        make()


def test_shapes_are_checked():
    # beartype would refuse some first; users run without it.
    with pytest.raises(ShapeError, match=r"RoPE needs .* head_width 8, got \(3, 6\)"):
        RoPE(8).rotate(torch.ones(3, 6), torch.ones(3, 6))
    rotate, add = inspect.unwrap(RoPE.rotate), inspect.unwrap(Sinusoidal.add)
    with pytest.raises(ShapeError, match=r"of the same tokens .*, got \(3, 8\) and \(1, 8\)"):
        rotate(RoPE(8), torch.ones(3, 8), torch.ones(1, 8))
    with pytest.raises(ShapeError, match=r"a position for each of 3 tokens, got \(1,\)"):
        add(Sinusoidal(8), torch.ones(3, 8), torch.tensor([4]))
    with pytest.raises(ShapeError, match=r"input of width 8, got \(3, 6\)"):
        Sinusoidal(8).add(torch.ones(3, 6))
    with pytest.raises(ShapeError, match=r"tensors \[..., length, width\], got \(8,\)"):
        inspect.unwrap(Sinusoidal.add)(Sinusoidal(8), torch.ones(8))


def test_a_position_of_ones_own_needs_no_hook():
    with pytest.raises(TypeError, match="abstract"):
        Position()


def differing(bias):
    """How many of the values in a row differ from the one before."""
    return int((bias.diff(dim=-1) != 0).sum())


@pytest.mark.parametrize("name", ["alibi", "fire"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_bias_of_distances_is_float32_whatever_the_type_of_the_module(name, dtype):
    encoding = position(name, width=8, heads=2, length=64)
    query, keys = torch.tensor([3000]), torch.arange(3001)
    true = encoding.bias(query, keys)
    ours = encoding.to(dtype).bias(query, keys)
    assert ours.dtype == true.dtype == torch.float32
    if name == "alibi":
        assert torch.equal(ours, true)
        assert ours[0, 0].tolist() == [-(3000 - key) / 16 for key in range(3001)]
    else:  # its weights are rounded, its distances are not
        torch.testing.assert_close(ours, true, rtol=0, atol=0.02)
        assert differing(ours[0, 0]) > 2900


def test_autocast_does_not_round_the_distances_of_a_bias():
    for name in NAMES:
        encoding = position(name, width=8, heads=2, length=1024)
        if not isinstance(encoding, RandomizedOrdered):
            at = torch.arange(600)
            true = encoding.bias(at[-1:], at)
            with torch.autocast("cpu", torch.bfloat16):
                ours = encoding.bias(at[-1:], at)
            assert true is None if ours is None else torch.equal(ours, true)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_module_of_any_type_gives_its_encoding(name, dtype):
    encoding = position(name, width=8, heads=2, length=16).eval()
    x = torch.randn(2, 16, 4 if name == "rope" else 8, generator=torch.Generator().manual_seed(0))
    true, turned = encoding.add(x), encoding.rotate(x, x)[0]
    encoding.to(dtype)
    torch.testing.assert_close(encoding.add(x.to(dtype)).float(), true, rtol=0.02, atol=0.05)
    torch.testing.assert_close(encoding.rotate(x, x)[0], turned)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (0, 3, 8)])
def test_no_tokens_stay_none(name, shape):
    encoding = position(name, width=8, heads=1, length=16).eval()
    x = torch.ones(shape)
    assert encoding.add(x).shape == shape
    assert encoding.rotate(x, x)[0].shape == shape
    bias = encoding.bias(torch.arange(0), torch.arange(3))
    assert bias is None or bias.shape == (1, 0, 3)
