"""Ports that are trained: integers forward, gradients straight through them, and a port again."""

import functools

import models
import pytest
import torch
from ports import default, float_model, one_line, quick
from torch import nn

import isospike
from isospike.porting.run import run_of
from isospike.porting.training import _Decoded, _Round, _unit, settled

INPUTS = models.batch("bert", 4, seed=9)


@functools.cache
def few_bits(name="bert", **settings):
    """A port with weights of four bits, which tests leave as it was."""
    return quick(name=name, **{"steps": 6, "weight_bits": 4, **settings})


def distil(learner, model, name="bert", count=8, rate=3e-4):
    """A few steps towards the float model; the losses."""
    moved = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(moved, rate)
    batch, losses = models.batch(name, 32, seed=5), []
    wanted = models.run(model, batch)
    for _ in range(count):
        loss = (models.first(learner(**batch)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


# ------------------------------------------------------------------------- forward


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("bert", {}),
        ("gpt2", {"weight_bits": 8, "ranges": "static", "execution": "stepped"}),
        ("llama", {"weight_bits": 16, "functions": "spiking"}),
    ],
)
def test_a_port_in_training_gives_the_bits_of_its_collapsed_run(name, settings):
    port = few_bits(name, **settings)
    inputs = models.batch(name, 4, seed=9)
    learner = port.trainable()
    got = models.first(learner(**inputs))
    assert got.requires_grad
    assert torch.equal(got.detach(), models.run(port.model, inputs, "collapsed"))
    assert torch.equal(models.run(learner, inputs), got.detach())
    got.square().mean().backward()
    missing = [n for n, p in learner.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in missing if "pooler" not in n]
    assert all(bool(p.grad.isfinite().all()) for p in learner.parameters() if p.grad is not None)


def test_a_port_in_training_leaves_the_port_as_it_was():
    port = few_bits()
    before = {n: t.clone() for n, t in port.model.state_dict().items()}
    distil(port.trainable(), float_model("bert"), count=2)
    assert all(torch.equal(t, before[n]) for n, t in port.model.state_dict().items())
    with pytest.raises(isospike.UnsupportedError, match="passes without a gradient"):
        models.first(port.model(**INPUTS)).sum().backward()


# ------------------------------------------------------------------------- backward


def test_gradients_are_those_of_the_float_model_where_steps_are_many():
    model = float_model("bert")
    port = isospike.port(model, models.batches("bert"), steps=14, ranges="dynamic")
    learner, true = port.trainable(), models.make("bert").requires_grad_(True)
    for each in (learner, true):
        models.first(each(**INPUTS)).square().sum().backward()
    for name, parameter in true.named_parameters():
        if parameter.grad is None or name.endswith("key.bias"):  # softmax does not feel it
            continue
        ours = learner.get_parameter(name).grad
        if "LayerNorm" in name or "bias" in name or "embedding" in name:
            assert models.relative(parameter.grad, ours) < 0.02, name
        else:
            product = learner.get_submodule(name.removesuffix(".weight"))
            site = product.site  # whose offset is in the bias
            scaled = ours * product.by_column(site.amplitude) / _unit(product)
            scaled += product.bias.grad[:, None] * site.offset
            assert models.relative(parameter.grad, scaled) < 0.02, name


def test_the_gradient_of_a_product_by_hand():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x)

    model = models.seeded(Two)
    x = torch.tensor([[1.0, -0.5], [0.25, 0.75], [-1.0, 0.1], [0.6, 0.6]])
    port = isospike.port(model, [{"x": x}, {"x": x.flip(0)}], steps=8)
    learner = port.trainable()
    given = x.clone().requires_grad_(True)
    learner(x=given).sum().backward()
    layer, site = learner.layer, learner.layer.site
    reading = site.read(x)
    integers = reading.gain.times(reading.value)
    torch.testing.assert_close(layer.weight.grad, _unit(layer) * integers.sum(0).expand(2, -1))
    torch.testing.assert_close(layer.bias.grad, torch.full((2,), 4.0))
    slope = (port.model.layer.weight.sum(0) / site.amplitude).expand(4, -1)
    torch.testing.assert_close(given.grad, slope)


def test_what_a_static_range_cuts_off_has_no_gradient():
    site = few_bits(ranges="static").model.encoder.layer[0].intermediate.dense.site
    x = (site.offset + torch.tensor([[-1.5], [-0.5], [0.5], [1.5]]) * site.scale).requires_grad_()
    _Decoded().on_input(site, x).sum().backward()
    inside = x.grad * site.amplitude
    expected = torch.tensor([[0.0], [1.0], [1.0], [0.0]]).expand_as(inside)
    torch.testing.assert_close(inside, expected)


def test_a_weight_is_rounded_to_its_grid_and_has_a_gradient_inside():
    master = torch.tensor([[0.24, -0.9, 3.6, -4.0, -4.1]], requires_grad=True)
    quantum = torch.full((1, 5), 0.5)
    rounded = _Round.apply(master, quantum, (-8, 7))
    assert rounded.tolist() == [[0.0, -1.0, 3.5, -4.0, -4.0]]
    rounded.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert master.grad.tolist() == [[1.0, 2.0, 0.0, 4.0, 0.0]]


# ------------------------------------------------------------------------- and a port again


def test_a_trained_port_is_a_port(tmp_path):
    port, model = few_bits(), float_model("bert")
    learner = port.trainable()
    losses = distil(learner, model, count=10)
    assert losses[-1] < 0.9 * losses[0]
    trained = port.trained(learner)
    got = models.run(trained.model, INPUTS)
    assert torch.equal(got, models.run(learner, INPUTS))
    assert not torch.equal(got, models.run(port.model, INPUTS))
    assert torch.equal(models.run(trained.model, INPUTS, "stepped"), got)
    assert trained.report.error < 1.1 * port.report.error  # calibration left little, on 32 rows
    assert trained.report.provenance.parameters["trained"]
    with run_of(trained.model).switched(execution="stepped"):
        assert isospike.audit(trained.model, INPUTS).exceptions == ()
    product = trained.model.encoder.layer[0].attention.self.query
    whole = product.weight / product.quantum
    assert torch.equal(whole, whole.round())
    assert -8 <= whole.min() <= whole.max() <= 7
    folder = trained.save(tmp_path / "port")
    assert torch.equal(models.run(isospike.load(folder), INPUTS), got)
    assert "trained further as a port" in (folder / "README.md").read_text()
    with pytest.raises(isospike.UnsupportedError, match="passes without a gradient"):
        models.first(trained.model(**INPUTS)).sum().backward()


def test_evaluation_and_saving_leave_the_masters(tmp_path):
    learner = few_bits().trainable()
    distil(learner, float_model("bert"), count=2)
    weight = learner.encoder.layer[1].output.dense.weight
    before = weight.detach().clone()
    expected = models.run(learner.eval(), INPUTS)
    learner.save_pretrained(tmp_path / "port")
    assert torch.equal(weight, before)
    product = learner.encoder.layer[1].output.dense
    assert not torch.equal(
        settled(learner).encoder.layer[1].output.dense.weight / _unit(product), before
    )
    loaded = isospike.load(tmp_path / "port")
    assert torch.equal(models.run(loaded, INPUTS), expected)
    assert run_of(loaded).learning is None
    assert "Trained further since" in (tmp_path / "port" / "README.md").read_text()


def test_only_what_is_trained_can_be_settled():
    with pytest.raises(isospike.UnsupportedError, match="needs a model that Port.trainable") as e:
        default().trained(default().model)
    one_line(e)


# ------------------------------------------------------------------------- other libraries


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters_of_peft_are_rounded_with_the_weights_they_change(tmp_path):
    peft = pytest.importorskip("peft")
    port, model = few_bits(), float_model("bert")
    learner = port.trainable()
    config = peft.LoraConfig(
        r=4, target_modules=[], target_parameters=["query.weight", "output.dense.weight"]
    )
    adapted = peft.get_peft_model(learner, config)
    moved = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert moved
    assert all("lora_" in n for n in moved)
    losses = distil(adapted, model, count=6, rate=3e-3)
    assert losses[-1] < losses[0]
    during = models.run(adapted, INPUTS)
    merged = adapted.merge_and_unload()
    trained = port.trained(merged)
    assert torch.equal(models.run(trained.model, INPUTS), during)
    assert torch.equal(models.run(trained.model, INPUTS, "stepped"), during)


def test_the_trainer_of_transformers_trains_a_port(tmp_path):
    pytest.importorskip("accelerate")
    import transformers

    model = models.make("vit")
    images = models.batch("vit", 32, seed=3)["pixel_values"]
    labels = models.run(model, {"pixel_values": images}).argmax(-1)
    port = quick(model, "vit", steps=4, weight_bits=4)
    learner = port.trainable()
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "out"), num_train_epochs=3, per_device_train_batch_size=16,
        learning_rate=3e-3, save_strategy="epoch", save_total_limit=1, report_to=[], use_cpu=True,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(learner, arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    trainer.save_model(str(tmp_path / "last"))
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "last")
    inputs = {"pixel_values": images[:4]}
    assert torch.equal(models.run(loaded, inputs), models.run(learner.eval(), inputs))
