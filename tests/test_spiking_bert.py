"""SpikingBERT: parity with BERT and with the authors' network, and the limit of many steps."""

import json
from pathlib import Path

import pytest
import torch
from published import weights
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
)

from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.models import SpikingBert, SpikingBertConfig
from isospike.models.spiking_bert import NEURONS, Clamp, from_authors, from_bert
from isospike.neurons import NeuronState, run
from isospike.train import distil, spiking_student

FIXTURE = json.loads((Path(__file__).parent / "golden" / "families.json").read_text())[
    "spiking_bert"
]
SIZES = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 12, "num_labels": 3,
}  # fmt: skip
PUBLISHED = SpikingBertConfig(**SIZES, published_currents=True)
TOKENS = torch.tensor([[1, 5, 7, 2, 0, 0], [1, 9, 33, 12, 6, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


def drawn(config):
    """A model whose neurons fire, with the weights of the fixture."""
    model = SpikingBert(config)
    model.load_state_dict(from_authors(weights(FIXTURE["shapes"])))
    return model.eval()


def call(model, **more):
    with torch.no_grad():
        return model(TOKENS, MASK, **more)


def test_the_published_run_says_what_the_authors_network_says():
    found = call(drawn(PUBLISHED), steps=FIXTURE["steps"])
    torch.testing.assert_close(found.logits, torch.tensor(FIXTURE["logits"]), rtol=0, atol=2e-5)
    rates = [rate.mean().item() for rate in found.hidden_states]
    assert rates == pytest.approx(FIXTURE["rates"], abs=1e-6)
    assert min(rates) > 0.05


def test_the_clamped_run_says_what_the_authors_network_says_in_training():
    found = call(drawn(PUBLISHED))
    torch.testing.assert_close(found.logits, torch.tensor(FIXTURE["clamped"]), rtol=0, atol=2e-5)


def test_the_spiking_run_approaches_the_clamped_run_as_one_over_the_steps():
    model = drawn(SpikingBertConfig(**SIZES))
    true = call(model)
    error = {}
    for steps in (8, 32, 128):
        found = call(model, steps=steps)
        pairs = zip(found.hidden_states, true.hidden_states, strict=True)
        error[steps] = max((a - b).abs().mean().item() for a, b in pairs)
    assert error[8] > 2.5 * error[32] > 2.5**2 * error[128]
    assert error[128] < 0.02


def test_the_published_run_has_another_limit():
    model = drawn(PUBLISHED)
    true = call(model).hidden_states[-1]
    far, farther = ((call(model, steps=s).hidden_states[-1] - true).abs().mean() for s in (32, 128))
    assert farther > 0.5 * far > 0.01, "an error of 1 / T would be a quarter"


def test_rates_of_the_first_population_are_those_of_the_clamp_to_one_spike():
    model = drawn(SpikingBertConfig(**SIZES))
    rate, true = (call(model, steps=s).hidden_states[0] for s in (32, None))
    assert (rate - true).abs().max() <= 1 / 64 + 1e-5


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_in_turns_a_neuron_fires_what_it_summed_up_in_silence(steps):
    # u = 1/2 + T y, then T steps without current, a spike and a soft reset wherever u >= 1: at
    # T = 4, y = .3 begins with 1.7, fires once, and ends at .7.
    torch.manual_seed(0)
    y = torch.cat([torch.tensor([0.3, 0.125, -0.4, 0.0, 1.0, 7.0]), torch.randn(200)])
    silence = torch.zeros(steps, len(y))
    spikes, state = run(silence, NeuronState(0.5 + steps * y), NEURONS)
    turn = Clamp(steps)(y)
    assert torch.equal(spikes.sum(0), (turn * steps).round())
    assert torch.equal(turn * steps, (turn * steps).round()), "whole spikes"
    inside = (y > 0) & (y < 1)
    assert ((turn - y).abs()[inside] <= 0.5 / steps + 1e-6).all()
    if steps == 4:
        assert turn[:6].tolist() == [0.25, 0.25, 0.0, 0.0, 1.0, 1.0]
        assert state.v[0].item() == pytest.approx(0.7)


def test_a_run_in_turns_is_the_run_that_levels_train():
    model = drawn(SpikingBertConfig(**SIZES, turns=True, levels=7))
    trained, found = call(model), call(model, steps=7)
    assert torch.equal(found.logits, trained.logits)
    assert trained.spikes is None
    fired = [(rate * 7).round()[MASK == 1] for rate in found.hidden_states]
    assert sum(f.sum() for f in fired) < found.spikes.sum() <= 7 * (32 + 4 * 208) * MASK.sum()
    for steps in (4, 64):
        apart = [a - b for a, b in zip(call(model, steps=steps).hidden_states,
                                       call(drawn(SpikingBertConfig(**SIZES))).hidden_states,
                                       strict=True)]  # fmt: skip
        assert max(a.abs().mean().item() for a in apart) < 1 / steps


def test_in_turns_no_population_fires_too_much():
    clamped = call(model := drawn(SpikingBertConfig(**SIZES))).hidden_states[-1]
    for steps in (8, 32):
        model.config.turns = False
        at_once = call(model, steps=steps).hidden_states[-1] - clamped
        model.config.turns = True
        in_turns = call(model, steps=steps).hidden_states[-1] - clamped
        assert in_turns.abs().mean() < 0.8 * at_once.abs().mean()


def test_levels_have_the_gradient_of_the_clamp():
    y = torch.tensor([-0.3, 0.1, 0.5, 0.93, 1.2], requires_grad=True)
    a = Clamp(10)(y)
    assert a.tolist() == pytest.approx([0.0, 0.1, 0.5, 0.9, 1.0])
    (a * torch.arange(1.0, 6.0)).sum().backward()
    assert y.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_shortcuts_have_weights_where_asked(tmp_path):
    torch.manual_seed(0)
    bert = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    plain, weighted = from_bert(bert), from_bert(bert, shortcut_weights=True)
    more = weighted.state_dict().keys() - plain.state_dict().keys()
    assert len(more) == 8
    assert all(torch.equal(weighted.state_dict()[name], torch.ones(32)) for name in more)
    assert torch.equal(call(weighted).logits, call(plain).logits)
    bert.save_pretrained(tmp_path / "bert")
    read = SpikingBert.from_pretrained(tmp_path / "bert", shortcut_weights=True).eval()
    torch.testing.assert_close(call(read).logits, call(plain).logits)
    # A shortcut of no weight leaves the product alone.
    with torch.no_grad():
        for weight in weighted.shortcuts:
            weight.zero_()
    assert not torch.allclose(call(weighted).logits, call(plain).logits)
    weighted.train()(TOKENS, MASK).logits.sum().backward()
    assert all(weighted.get_parameter(name).grad.abs().max() > 0 for name in more)
    weighted.eval().save_pretrained(tmp_path / "own")
    again = SpikingBert.from_pretrained(tmp_path / "own").eval()
    assert torch.equal(call(again).logits, call(weighted).logits)


def test_steps_may_be_cut_anywhere():
    model = drawn(SpikingBertConfig(**SIZES))
    whole = call(model, steps=11)
    import isospike.models.spiking_bert as module

    before, module.AT_ONCE = module.AT_ONCE, 3
    try:
        cut = call(model, steps=11)
    finally:
        module.AT_ONCE = before
    torch.testing.assert_close(cut.logits, whole.logits, rtol=0, atol=1e-5)
    assert torch.equal(cut.spikes, whole.spikes)


@pytest.mark.parametrize("steps", [None, 6])
@pytest.mark.parametrize("more", [{}, {"published_currents": True}, {"turns": True}])
def test_sequences_of_a_batch_and_padding_do_not_know_of_each_other(more, steps):
    model = drawn(SpikingBertConfig(**SIZES, **more))
    whole = call(model, steps=steps)
    with torch.no_grad():
        short = model(TOKENS[:1, :4], steps=steps)
        long = model(TOKENS[1:], steps=steps)
    torch.testing.assert_close(whole.logits, torch.cat([short.logits, long.logits]))
    if steps is not None:
        assert torch.equal(whole.spikes, torch.cat([short.spikes, long.spikes]))


def test_a_bert_of_four_layers_is_read_one_to_one(tmp_path):
    torch.manual_seed(0)
    bert = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    model = from_bert(bert)
    own = {n: t for n, t in bert.state_dict().items() if ".pooler." not in n}
    assert own.keys() == model.state_dict().keys()
    assert all(torch.equal(t, own[name]) for name, t in model.state_dict().items())
    assert model.config.num_labels == 3
    bert.save_pretrained(tmp_path)
    again = SpikingBert.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(call(again).logits, call(model).logits)


def test_without_clamps_it_is_the_bert(monkeypatch):
    bert = BertModel(BertConfig(**SIZES), add_pooling_layer=False).eval()
    model = from_bert(bert, num_labels=3)
    monkeypatch.setattr(Clamp, "__call__", lambda self, y: y)
    with torch.no_grad():
        true = bert(TOKENS, MASK, output_hidden_states=True).hidden_states
    for ours, theirs in zip(call(model).hidden_states, true, strict=True):
        torch.testing.assert_close(ours[MASK == 1], theirs[MASK == 1], rtol=1e-4, atol=1e-4)


def test_it_is_saved_and_loaded_by_transformers(tmp_path):
    model = drawn(SpikingBertConfig(**SIZES, steps=3))
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(again) is SpikingBert
    assert torch.equal(call(again).logits, call(model, steps=3).logits)


def test_the_clamped_run_trains_every_weight():
    model = drawn(SpikingBertConfig(**SIZES, hidden_dropout_prob=0.0)).train()
    model(TOKENS, MASK, labels=torch.tensor([0, 2])).loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().max() > 0


def test_spikes_are_those_of_all_populations():
    model = drawn(SpikingBertConfig(**SIZES))
    found = call(model, steps=1)
    assert (found.spikes % 1 == 0).all()
    neurons = 32 + 4 * (5 * 32 + 48)
    assert (found.spikes <= neurons * MASK.sum(1)).all()
    assert (found.spikes > sum(r[MASK == 1].sum() for r in found.hidden_states) / 2).all()


def test_what_does_not_fit_is_refused():
    model = drawn(SpikingBertConfig(**SIZES))
    with pytest.raises(RangeError, match="SpikingBert needs steps >= 1, got 0"):
        model(TOKENS, steps=0)
    with pytest.raises(ShapeError, match=r"of 1 to 12 tokens, got \(1, 13\)"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"attention_mask of the shape of input_ids, got \(2, 5\)"):
        model(TOKENS, MASK[:, 1:])
    with pytest.raises(RangeError, match="tokens from 0 to 39, got 0 to 40"):
        model(torch.tensor([[0, 40]]))
    with pytest.raises(RangeError, match="SpikingBert needs labels from 0 to 2, got 0 to 3"):
        model(TOKENS, labels=torch.tensor([0, 3]))
    for wrong in ({"num_attention_heads": 5}, {"steps": 0}):
        with pytest.raises(RangeError, match="SpikingBertConfig needs a hidden_size that"):
            SpikingBert(SpikingBertConfig(**{**SIZES, **wrong}))
    with pytest.raises(RangeError, match="needs levels >= 1 or None, got 0"):
        SpikingBert(SpikingBertConfig(**SIZES, levels=0))
    with pytest.raises(InputError, match="needs turns or published_currents, got both"):
        SpikingBert(SpikingBertConfig(**SIZES, turns=True, published_currents=True))
    with pytest.raises(InputError, match="an encoder of transformers' type bert, got GPT2Model"):
        from_bert(GPT2Model(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))
    with pytest.raises(UnsupportedError, match="got 'head.bias' among 1 names"):
        from_authors({"head.bias": torch.zeros(1)})


def test_the_full_model_has_the_authors_weights():
    with torch.device("meta"):
        model = SpikingBert(SpikingBertConfig(num_labels=2))
    unused, entries = FIXTURE["unused"], FIXTURE["entries"]
    assert sum(p.numel() for p in model.parameters()) == FIXTURE["parameters"] - unused
    assert entries == 356


def test_distilling_reads_every_third_layer_of_a_teacher_and_no_padding():
    student = [torch.full((2, 6, 2), float(i)) for i in range(3)]
    teacher = [torch.full((2, 6, 4), float(i)) for i in range(5)]
    student[0][MASK == 0] = 100.0
    project = torch.nn.Linear(2, 4)
    torch.nn.init.constant_(project.weight, 0.5)
    torch.nn.init.zeros_(project.bias)
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]], requires_grad=True)
    answers = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    found = distil((logits, student), (answers, teacher), project, mask=MASK, temperature=2.0)
    assert found.hidden.item() == pytest.approx((0 + 1 + 4) / 3), "layers 0, 2 and 4"
    p = torch.tensor([1.0, 0.0]).softmax(0)
    true = 4 * (0.5 * (0.5 / p).log()).sum().item() / 2
    assert found.logits.item() == pytest.approx(true, rel=1e-5)
    found.loss.backward()
    assert logits.grad.abs().max() > 0
    assert project.weight.grad.abs().max() > 0


def test_a_student_learns_what_its_teacher_says():
    torch.manual_seed(0)
    sizes = {**SIZES, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    teacher = BertForSequenceClassification(BertConfig(**sizes)).eval()
    torch.nn.init.normal_(teacher.classifier.weight, std=1.0)
    model = from_bert(teacher, num_hidden_layers=2).train()  # the first two of four
    project = torch.nn.Linear(32, 32)
    optimiser = torch.optim.Adam([*model.parameters(), *project.parameters()], lr=2e-3)
    with torch.no_grad():
        said = teacher(TOKENS, MASK, output_hidden_states=True)
    losses = []
    for _ in range(60):
        found = model(TOKENS, MASK)
        parts = distil(
            (found.logits, found.hidden_states), (said.logits, said.hidden_states), project,
            mask=MASK,
        )  # fmt: skip
        optimiser.zero_grad()
        parts.loss.backward()
        optimiser.step()
        losses.append((parts.hidden.item(), parts.logits.item()))
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.1 * losses[0][1]
    spiking = call(model.eval(), steps=64).logits.softmax(-1)
    torch.testing.assert_close(spiking, said.logits.softmax(-1), rtol=0, atol=0.15)


def teacher_of(layers=3, **more):
    """A random teacher of which every part has something to say."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {**SIZES, "num_hidden_layers": layers, "initializer_range": 0.3, **more}
        return BertForSequenceClassification(BertConfig(**sizes)).eval()


@pytest.mark.parametrize("weighted", [False, True])
def test_a_student_with_all_layers_begins_with_its_teachers_states(weighted):
    # GELU alone is not affine: what it gives below 0 is lost, so that it is replaced here.
    teacher = teacher_of(hidden_act="relu")
    text = [{"input_ids": TOKENS, "attention_mask": MASK}]
    student, maps = spiking_student(teacher, text, (0, 1, 2), share=1.0, shortcut_weights=weighted)
    with torch.no_grad():
        said = teacher(**text[0], output_hidden_states=True)
        found = student(**text[0])
        kept = MASK != 0
        for ours, theirs, layer in zip(found.hidden_states, said.hidden_states, maps, strict=True):
            torch.testing.assert_close(layer(ours)[kept], theirs[kept], rtol=0, atol=2e-4)
            assert ours[kept].min() > -1e-5
            assert ours[kept].max() < 1 + 1e-5
        linear = teacher.bert.pooler.dense(said.hidden_states[-1][:, 0])
        wanted = teacher.classifier(linear)
    torch.testing.assert_close(found.logits, wanted, rtol=0, atol=1e-3)
    assert wanted.std() > 0.1
    spiking = call(student, steps=800).logits
    assert (spiking - wanted).abs().max() < 0.2 * wanted.std()


def test_a_shortcut_with_weights_is_not_squeezed_by_its_widest_channel():
    teacher = teacher_of(hidden_act="relu")
    with torch.no_grad():
        for layer in (teacher.bert.embeddings, *(m.output for m in teacher.bert.encoder.layer)):
            layer.LayerNorm.weight[3] = 10.0
    text = {"input_ids": TOKENS, "attention_mask": MASK}
    with torch.no_grad():
        said = teacher(**text, output_hidden_states=True).hidden_states[-1][MASK == 1]
    error = {}
    for weighted in (False, True):
        student, maps = spiking_student(
            teacher, [text], (0, 1, 2), share=1.0, shortcut_weights=weighted, turns=True
        )
        with torch.no_grad():
            got = maps[-1](call(student, steps=32).hidden_states[-1])[MASK == 1]
        error[weighted] = ((got - said).abs().mean(0) / said.std(0)).median().item()
    assert error[True] < 0.5 * error[False]


def test_a_student_may_leave_layers_out_and_is_distilled_by_its_own_maps():
    teacher = teacher_of(4)
    text = {"input_ids": TOKENS, "attention_mask": MASK}
    student, maps = spiking_student(teacher, [text], (1, 3))
    assert student.config.num_hidden_layers == 2
    assert len(maps) == 3
    with torch.no_grad():
        said = teacher(**text, output_hidden_states=True)
    states = [said.hidden_states[i] for i in (0, 2, 4)]
    found = student(**text)
    parts = distil((found.logits, found.hidden_states), (said.logits, states), maps, mask=MASK)
    parts.loss.backward()
    assert all(p.grad is not None for p in maps.parameters())
    with pytest.raises(RangeError, match="project for each of 3 hidden states, got 2"):
        distil((found.logits, found.hidden_states), (said.logits, states), maps[:2], mask=MASK)


def test_a_student_of_nothing_is_refused():
    teacher, text = teacher_of(), [{"input_ids": TOKENS}]
    for layers in ((), (1, 0), (0, 3), (0, 0)):
        with pytest.raises(RangeError, match="layers from 0 to 2 in order"):
            spiking_student(teacher, text, layers)
    with pytest.raises(RangeError, match=r"share in \(1/2, 1\], got 0.5"):
        spiking_student(teacher, text, (0,), share=0.5)
    with pytest.raises(InputError, match="got no batches"):
        spiking_student(teacher, [], (0,))
    with pytest.raises(InputError, match="a classifier of transformers' type bert, got BertModel"):
        spiking_student(teacher.bert, text, (0,))
    with pytest.raises(InputError, match="input_ids as a torch.Tensor, got NoneType"):
        spiking_student(teacher, [{"attention_mask": MASK}], (0,))


def test_what_cannot_be_distilled_is_refused():
    states, logits = [torch.zeros(2, 6, 4)] * 3, torch.zeros(2, 2)
    same = {"mask": MASK}
    with pytest.raises(RangeError, match="a multiple of the student's 2 layers, got 1"):
        distil((logits, states), (logits, states[:2]), torch.nn.Identity(), **same)
    with pytest.raises(
        RangeError, match="a temperature above 0 and a weight of at least 0, got 0.0"
    ):
        distil((logits, states), (logits, states), torch.nn.Identity(), temperature=0.0, **same)
    with pytest.raises(ShapeError, match=r"the same classes of both, got logits \(2, 2\) and \(2,"):
        distil((logits, states), (logits[:, :1], states), torch.nn.Identity(), **same)
    with pytest.raises(ShapeError, match=r"the teacher's \(2, 6, 4\) and a mask of its tokens"):
        distil((logits, states), (logits, states), torch.nn.Linear(4, 3), **same)
