import inspect
import json

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from isospike.errors import IsospikeError, RangeError, ShapeError, UnsupportedError
from isospike.models.training import IGNORE, train
from isospike.models.transformer import Transformer
from isospike.positions import (
    POSITIONS,
    NoPE,
    RandomizedOrdered,
    RankLearned,
    RoPE,
    Sinusoidal,
    position,
)

VOCABULARY, LENGTH = 11, 12
NAMES = sorted(POSITIONS)


def draw(seed):
    return torch.Generator().manual_seed(seed)


def made(name="none", causal=True, **settings):
    encoding = position(name, width=16, heads=2, length=LENGTH, causal=causal)
    model = Transformer(VOCABULARY, 16, 2, 2, encoding, causal=causal, **settings)
    generator = draw(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def some(seed=0, batch=2, length=LENGTH):
    return torch.randint(VOCABULARY, (batch, length), generator=draw(seed))


# Parity.


def by_hand(model, tokens):
    """The equations of the module's head, one head at a time, for NoPE."""
    p = dict(model.named_parameters())
    x = p["tokens.weight"][tokens]
    norm = lambda x, name: nn.functional.layer_norm(  # noqa: E731
        x, (16,), p[f"{name}.weight"], p[f"{name}.bias"]
    )
    for i in range(2):
        qkv = norm(x, f"blocks.{i}.norm") @ p[f"blocks.{i}.qkv.weight"].T
        heads = []
        for h in range(2):
            q, k, v = (qkv[..., 16 * j + 8 * h : 16 * j + 8 * h + 8] for j in range(3))
            scores = q @ k.transpose(-1, -2) / 8**0.5
            if model.causal:
                later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -torch.inf)
            heads.append(scores.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ p[f"blocks.{i}.join.weight"].T
        up = norm(x, f"blocks.{i}.norm_hidden") @ p[f"blocks.{i}.up.weight"].T
        x = x + nn.functional.gelu(up) @ p[f"blocks.{i}.down.weight"].T
    return norm(x, "norm") @ p["out.weight"].T


@pytest.mark.parametrize("causal", [True, False])
def test_forward_is_its_equations(causal):
    model = made(causal=causal)
    torch.testing.assert_close(model(some()), by_hand(model, some()), rtol=1e-4, atol=1e-5)


def test_two_llama_layers_give_the_same_attention():
    """Our RoPE in place of transformers' own: the same logits, ported to spikes or not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = LlamaForCausalLM(config).eval()
    batches = [{"input_ids": some(seed, 4)} for seed in range(3)]
    import isospike

    ported = isospike.port(llama, batches, steps=6).model
    for model in (llama, ported):
        with torch.no_grad():
            before = model(**batches[2]).logits
            theirs = model.model.rotary_emb
            model.model.rotary_emb = Angles(8)
            after = model(**batches[2]).logits
            model.model.rotary_emb = theirs
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


class Angles(nn.Module):
    """RoPE as transformers asks for it: cosines and sines, read off rotated unit vectors."""

    def __init__(self, head_width):
        super().__init__()
        self.rope = RoPE(head_width)

    def forward(self, x, position_ids):
        half = self.rope.head_width // 2
        unit = torch.zeros(len(position_ids[0]), 2 * half)
        unit[:, :half] = 1
        cos, sin = self.rope.rotate(unit, unit, position_ids[0])[0].chunk(2, -1)
        count = len(position_ids)
        return tuple(torch.cat([t, t], -1)[None].expand(count, -1, -1) for t in (cos, sin))


# Contracts.


@pytest.mark.parametrize("name", NAMES)
def test_a_causal_transformer_does_not_look_ahead(name):
    model, tokens = made(name), some()
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"randomized"}))
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_tokens_may_be_cut_anywhere_with_a_cache(name, cut):
    model, tokens = made(name), some()
    with torch.no_grad():
        whole = model(tokens)
        head, cache = model.extend(tokens[:, :cut])
        assert cache.length == cut
        kept = cache.keys[0].clone()
        parts = [head]
        for part in (tokens[:, cut : cut + 1], tokens[:, cut + 1 :]):
            if part.shape[1]:
                logits, cache_after = model.extend(part, cache)
                assert torch.equal(cache.keys[0], kept), "the state that went in is left alone"
                cache, kept = cache_after, cache_after.keys[0].clone()
                parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    assert cache.length == LENGTH
    assert [k.shape for k in cache.keys] == [(2, 2, LENGTH, 8)] * 2


@pytest.mark.parametrize("name", NAMES)
def test_only_a_model_without_positions_and_mask_is_permutation_equivariant(name):
    model, tokens = made(name, causal=False), some(1)
    order = torch.randperm(LENGTH, generator=draw(2))
    with torch.no_grad():
        same = torch.allclose(model(tokens)[:, order], model(tokens[:, order]), atol=1e-4)
    assert same == (name == "none")


def test_a_causal_mask_betrays_the_position():
    model = made()
    tokens = torch.tensor([[3, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        out = model(tokens)[0]
    assert (out[1:].diff(dim=0).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(name, causal):
    model, tokens = made(name, causal), some(4)
    if name == "randomized":  # its positions depend on the length
        return
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, 8:] = False
    other = tokens.clone()
    other[0, 8:] = 0
    with torch.no_grad():
        padded = model(tokens, mask)
        torch.testing.assert_close(padded[0, :8], model(other, mask)[0, :8])
        torch.testing.assert_close(padded[0, :8], model(tokens[:1, :8])[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(padded[1], model(tokens)[1], rtol=1e-4, atol=1e-5)
    assert padded.isfinite().all()


def test_padding_in_front_leaves_no_nan():
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[0, :3] = False
    assert made()(some(), mask).isfinite().all()


def test_without_attention_tokens_never_meet_and_size_stays():
    model, tokens = made(attention=False), some()
    with torch.no_grad():
        for i in range(LENGTH):
            torch.testing.assert_close(model(tokens)[:, i], model(tokens[:, i : i + 1])[:, 0])
    count = lambda m: sum(p.numel() for p in m.parameters() if p.dim() > 1)  # noqa: E731
    assert count(model) == count(made())
    logits, cache = model.extend(tokens)
    assert model.extend(tokens, cache)[1].length == 2 * LENGTH
    assert logits.shape == (2, LENGTH, VOCABULARY)


def test_scale_is_that_of_the_embeddings():
    model, doubled = made(), made(scale=2.0)
    with torch.no_grad():
        model.tokens.weight.mul_(2)
    torch.testing.assert_close(model(some()), doubled(some()))


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_gets_a_gradient(name):
    model = made(name)
    cross_entropy(model(some()).flatten(0, 1), some(9).flatten()).backward()
    for where, parameter in model.named_parameters():
        assert parameter.grad is not None, where
        assert parameter.grad.isfinite().all(), where
    assert model.blocks[0].qkv.weight.grad.abs().max() > 0


# Errors.


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"heads": 0}, "heads >= 1, got 0"),
        ({"vocabulary": 0}, "vocabulary >= 1, got 0"),
        ({"layers": -1}, "layers >= 1, got -1"),
        ({"width": 10, "heads": 4}, "a width that 4 heads divide, got 10"),
        ({"hidden": 0}, "hidden >= 1, got 0"),
    ],
)
def test_sizes_are_checked(settings, text):
    with pytest.raises(RangeError, match=f"^Transformer needs {text}"):
        Transformer(**{"vocabulary": 5, "width": 8, "heads": 2, **settings})


def test_gates_without_attention_are_refused():
    with pytest.raises(UnsupportedError, match="needs attention for its gates, got gated=True"):
        Transformer(5, 8, 2, gated=True, attention=False)


@pytest.mark.parametrize("shape", [(2, 5), (1, LENGTH), (2, LENGTH, 1), (LENGTH,)])
def test_a_mask_of_a_wrong_shape_is_refused(shape):
    mask = torch.ones(shape, dtype=torch.bool)
    x = torch.zeros(2, LENGTH, 16)
    attend = inspect.unwrap(Transformer.attend)
    with pytest.raises(ShapeError, match=r"a mask of shape \(2, 12\), got"):
        attend(made(), x, torch.arange(LENGTH), None, mask)


def test_tokens_are_checked():
    model = made()
    with pytest.raises(RangeError, match=r"tokens in \[0, 11\), got 0 to 11"):
        model(torch.tensor([[0, 11]]))
    with pytest.raises(RangeError, match=r"got -1 to 3"):
        model(torch.tensor([[3, -1]]))
    with pytest.raises(ShapeError, match=r"tokens \[batch, length\], got \(4,\)"):
        inspect.unwrap(Transformer.embed)(model, torch.tensor([1, 2, 3, 4]))
    assert model(torch.empty(2, 0, dtype=torch.int64)).shape == (2, 0, VOCABULARY)
    assert model(torch.empty(0, 3, dtype=torch.int64)).shape == (0, 3, VOCABULARY)


def test_more_tokens_than_positions_are_refused():
    model = Transformer(5, 8, 2, 1, RankLearned(8, 6))
    with pytest.raises(RangeError, match="RankLearned needs at most 6 positions, got 7"):
        model(torch.zeros(1, 7, dtype=torch.int64))
    _, cache = model.extend(torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(RangeError, match="at most 6 positions, got 7"):
        model.extend(torch.zeros(1, 1, dtype=torch.int64), cache)


def test_a_cache_needs_a_causal_model_and_no_padding():
    with pytest.raises(UnsupportedError, match="extend needs a causal transformer"):
        made(causal=False).extend(some())
    model = made("rope")
    x, at = model.embed(some())
    cache = model.attend(x, at)[1]
    with pytest.raises(UnsupportedError, match="unpadded tokens to extend a cache"):
        model.attend(x, at, cache, torch.ones(2, LENGTH, dtype=torch.bool))


# Training.


def learner(name="rope"):
    return made(name).train()


def batches(generator):
    x = torch.randint(VOCABULARY, (4, LENGTH), generator=generator)
    y = torch.full_like(x, IGNORE)
    y[:, 1:] = x[:, :-1]
    return x, y


def test_training_learns_the_previous_token():
    history = train(learner(), batches, 120, 0.01, generator=draw(0))
    assert history.bits[0] > 3
    assert sum(history.bits[-10:]) / 10 < 1
    assert history.watched == []


def test_targets_to_ignore_are_not_scored():
    model = learner()
    history = train(model, batches, 1, 1e-9, generator=draw(0))
    x, y = batches(draw(0))
    with torch.no_grad():
        each = -made("rope")(x).log_softmax(-1).gather(-1, y.clamp(0)[..., None])[..., 0]
    assert history.bits[0] == pytest.approx(each[:, 1:].mean().item() / 0.6931472, rel=1e-5)


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(tmp_path):
    def run(path=None, stop=None):
        generator = draw(0)
        base = RandomizedOrdered(Sinusoidal(16), 50, generator)  # it draws from the same source
        model = learner()
        model.position = base
        looks = []

        def watch(model):
            looks.append(len(looks))
            if stop is not None and len(looks) == stop:
                raise KeyboardInterrupt
            assert not model.training
            return sum(p.sum().item() for p in model.parameters())

        try:
            history = train(
                model, batches, 30, 0.01, generator=generator, watch=watch, every=5,
                checkpoint=path, save_every=10,
            )  # fmt: skip
        except KeyboardInterrupt:
            return None
        return history, model.state_dict()

    path = tmp_path / "run.safetensors"
    assert run(path, stop=5) is None  # at step 25, saved at 20
    history, state = run(path)
    whole, true = run()
    assert history == whole
    assert [step for step, _ in history.watched] == [5, 10, 15, 20, 25, 30]
    assert all(torch.equal(state[name], true[name]) for name in true)
    again, state = run(path)  # done: nothing left to train
    assert again == whole
    assert all(torch.equal(state[name], true[name]) for name in true)


@pytest.mark.parametrize("damage", ["cut", "text", "model", "steps", "about"])
def test_a_checkpoint_of_something_else_is_refused(damage, tmp_path):
    path = tmp_path / "run.safetensors"
    train(learner(), batches, 2, 0.01, generator=draw(0), checkpoint=path)
    model, steps = learner(), 2
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "text":
        path.write_text("hello")
    elif damage == "about":
        path.write_bytes(path.read_bytes().replace(b"isospike", b"isospoke", 1))
    elif damage == "model":
        model = Transformer(VOCABULARY, 8, 2)
    else:
        steps = 3
    with pytest.raises(IsospikeError, match=r"^train needs a checkpoint of .* Remove it, or name"):
        train(model, batches, steps, 0.01, generator=draw(0), checkpoint=path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "steps >= 1, got 0"),
        ({"every": 0}, "every >= 1, got 0"),
        ({"save_every": -2}, "save_every >= 1, got -2"),
        ({"rate": 0.0}, "a rate above 0, got 0"),
        ({"rate": float("nan")}, "a rate above 0, got nan"),
    ],
)
def test_training_settings_are_checked(settings, text):
    with pytest.raises(RangeError, match=f"^train needs {text}"):
        train(learner(), batches, **{"steps": 3, "rate": 0.1, "generator": draw(0), **settings})


def test_a_loss_that_is_no_number_stops_the_run():
    model = learner()
    with torch.no_grad():
        model.out.weight.fill_(torch.inf)
    with pytest.raises(RangeError, match="train needs a finite loss, got nan at step 0. Lower"):
        train(model, batches, 3, 0.01, generator=draw(0))


def test_checkpoints_are_safetensors_with_the_history_beside(tmp_path):
    from safetensors import safe_open

    path = tmp_path / "deep" / "run.safetensors"
    history = train(learner(), batches, 4, 0.01, generator=draw(0), checkpoint=path)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["isospike"])
        assert "exp_avg.out.weight" in file.keys()  # noqa: SIM118
    assert about["bits"] == history.bits
    assert NoPE().relative
