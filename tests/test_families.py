"""The spiking transformer families: parity with the authors' networks, and what all keep."""

import json
from pathlib import Path

import pytest
import torch
from published import generator, images, weights
from transformers import AutoConfig, AutoModelForImageClassification

from isospike.errors import InputError, RangeError, ShapeError, UnsupportedError
from isospike.models import (
    MaxFormer,
    MaxFormerConfig,
    MSQKFormer,
    MSQKFormerConfig,
    QKFormer,
    QKFormerConfig,
    SpikeDrivenConfig,
    SpikeDrivenTransformer,
    Spikformer,
    SpikformerConfig,
    SpikingResformer,
    SpikingResformerConfig,
    fold,
    max_former,
    qkformer,
    spike_driven,
    spikformer,
    spiking_resformer,
)
from isospike.neurons import LIF, PLIF

FIXTURES = json.loads((Path(__file__).parent / "golden" / "families.json").read_text())
FOUR = {"channels": 64, "depths": (1, 1, 2), "heads": (8, 8, 8), "expansion": 2, "num_labels": 5}
EVENTS = {"channels": 64, "depths": (1, 1), "heads": (16, 16), "expansion": 1, "num_channels": 2}
DRIVEN = {"channels": 32, "num_labels": 5, "expansion": 2}
LARGE = {"form": "imagenet", "depths": (1, 2, 7), "kernels": (7, 5), "heads": (1, 1, 1)}
ALL_POOL = {"expansion": 1, "pools": (True,) * 4}
TWO = {
    "channels": (16, 32), "depths": (1, 2), "heads": (2, 4), "patches": (2, 1), "group": 16,
    "num_labels": 5,
}  # fmt: skip
GESTURE = {"channels": (32, 96, 192), "group": 32, "learned_leak": True}
PUBLISHED = {
    ("qkformer", "cifar"): lambda: QKFormer(QKFormerConfig(**FOUR)),
    ("qkformer", "imagenet"): lambda: QKFormer(
        QKFormerConfig(**{**FOUR, "heads": (4, 4, 4), "depths": (1, 2, 1)}, form="imagenet")
    ),
    ("qkformer", "dvs"): lambda: QKFormer(QKFormerConfig(**EVENTS, form="dvs", num_labels=5)),
    ("qkformer", "leaking"): lambda: QKFormer(QKFormerConfig(**FOUR, published_leak=True)),
    ("spike_driven", "wide"): lambda: SpikeDrivenTransformer(SpikeDrivenConfig(**DRIVEN)),
    ("spike_driven", "narrow"): lambda: SpikeDrivenTransformer(
        SpikeDrivenConfig(**{**DRIVEN, **ALL_POOL})
    ),
}
PUBLISHED |= {
    ("max_former", "max"): lambda: MaxFormer(MaxFormerConfig(**FOUR)),
    ("max_former", "ms-qkformer"): lambda: MSQKFormer(MSQKFormerConfig(**FOUR)),
    ("max_former", "max, imagenet"): lambda: MaxFormer(MaxFormerConfig(**{**FOUR, **LARGE})),
}
PUBLISHED |= {
    ("spiking_resformer", form): lambda extra=extra: SpikingResformer(
        SpikingResformerConfig(**TWO, **extra)
    )
    for form, extra in (
        ("cifar", {}), ("imagenet", {"form": "imagenet"}), ("events", {"learned_leak": True})
    )
}  # fmt: skip
PUBLISHED |= {
    ("spikformer", "cifar"): lambda: Spikformer(
        SpikformerConfig(
            channels=32, heads=2, blocks=2, expansion=2, pools_spikes=True, num_labels=5
        )
    ),
}
FULL = {
    ("qkformer", "cifar"): lambda: QKFormer(QKFormerConfig(num_labels=10)),
    ("qkformer", "imagenet"): lambda: QKFormer(
        QKFormerConfig(form="imagenet", depths=(1, 2, 7), heads=(6, 6, 6), num_labels=1000)
    ),
    ("qkformer", "dvs"): lambda: QKFormer(
        QKFormerConfig(**{**EVENTS, "channels": 256}, form="dvs", num_labels=10)
    ),
    ("spike_driven", "2-512"): lambda: SpikeDrivenTransformer(SpikeDrivenConfig(num_labels=10)),
    ("max_former", "max"): lambda: MaxFormer(MaxFormerConfig(num_labels=10)),
    ("max_former", "ms-qkformer"): lambda: MSQKFormer(MSQKFormerConfig(num_labels=10)),
    ("max_former", "max, imagenet"): lambda: MaxFormer(
        MaxFormerConfig(**{**LARGE, "heads": (6, 6, 6)}, num_labels=10)
    ),
}
FULL |= {
    ("spiking_resformer", form): lambda extra=extra: SpikingResformer(
        SpikingResformerConfig(**extra)
    )
    for form, extra in (
        ("cifar", {"num_labels": 10}),
        ("imagenet", {"form": "imagenet", "num_labels": 1000}),
        ("events", {**GESTURE, "num_labels": 10}),
    )
}
IMPORTERS = {
    "qkformer": qkformer.from_authors,
    "spike_driven": spike_driven.from_authors,
    "spikformer": spikformer.from_authors,
    "max_former": max_former.from_authors,
    "spiking_resformer": spiking_resformer.from_authors,
}
UNUSED = {"spike_driven": (2 * 8**2, 2)}  # parameters and entries that the authors never use
MODELS = [key for key in PUBLISHED if key[1] not in ("leaking", "max, imagenet")]


def published(family, form):
    """Our model with the weights of the fixture, and the fixture."""
    fixture = FIXTURES[family]["answers"][form]
    model = PUBLISHED[family, form]()
    model.load_state_dict(IMPORTERS[family](weights(fixture["shapes"])))
    return model.eval(), fixture


def count_spikes(model, call):
    """What ``call`` gives, and the spikes of all neurons of ``model`` meanwhile."""
    spikes = []
    hooks = [
        module.register_forward_hook(lambda m, i, s: spikes.append(s.float().sum().item()))
        for module in model.modules()
        if isinstance(module, (LIF, PLIF))
    ]
    with torch.no_grad():
        result = call()
    for hook in hooks:
        hook.remove()
    return result, spikes


@pytest.mark.parametrize(("family", "form"), PUBLISHED)
def test_a_model_says_what_the_authors_network_says(family, form):
    model, fixture = published(family, form)
    x = images(fixture["images"])
    result, spikes = count_spikes(model, lambda: model(x, steps=3))
    torch.testing.assert_close(result.logits, torch.tensor(fixture["logits"]), rtol=0, atol=2e-5)
    if family in ("qkformer", "spiking_resformer"):
        assert sum(spikes) == fixture["spikes"]
    assert sum(s > 0 for s in spikes) > 0.9 * len(spikes), "populations fire"


@pytest.mark.parametrize(("family", "form"), FULL)
def test_a_full_model_has_the_published_number_of_parameters(family, form):
    with torch.device("meta"):
        model = FULL[family, form]()
    parameters, entries = FIXTURES[family]["counts"][form]
    unused = UNUSED.get(family, (0, 0))
    assert sum(p.numel() for p in model.parameters()) == parameters - unused[0]
    assert len(model.state_dict()) == entries - unused[1]


@pytest.mark.parametrize(("family", "form"), [key for key in MODELS if key[0] != "spikformer"])
def test_a_folded_model_has_the_same_spikes(family, form):
    model, fixture = published(family, form)
    x = images([5, *fixture["images"][1:]])
    true, spikes = count_spikes(model, lambda: model(x, steps=3).logits)
    folded = fold(model)
    folded.model.eval()
    logits, fired = count_spikes(folded.model, lambda: folded(x, steps=3))
    torch.testing.assert_close(logits, true, rtol=1e-5, atol=1e-5)
    assert sum(fired) == sum(spikes)


@pytest.mark.parametrize(("family", "form"), MODELS)
def test_images_of_a_batch_do_not_know_of_each_other(family, form):
    model, fixture = published(family, form)
    x = images([4, *fixture["images"][1:]])
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        whole = model(x, steps=3).logits
        alone = torch.cat([model(image[None], steps=3).logits for image in x])
        moved = model(x[order], steps=3).logits
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved, whole[order], rtol=0, atol=1e-5)


def test_the_published_leak_lets_images_of_a_batch_know_of_each_other():
    model, fixture = published("qkformer", "leaking")
    x = images(fixture["images"])
    with torch.no_grad():
        whole, alone = model(x, steps=3).logits, model(x[1:], steps=3).logits
    assert (whole[1:] - alone).abs().max() > 0.01
    with pytest.raises(UnsupportedError, match="got published_leak=True"):
        fold(model)


@pytest.mark.parametrize(("family", "form"), MODELS)
def test_a_model_is_saved_and_loaded_by_transformers(family, form, tmp_path):
    model, fixture = published(family, form)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert type(again) is type(model)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    x = images(fixture["images"])
    with torch.no_grad():
        torch.testing.assert_close(again(x, steps=3).logits, model(x, steps=3).logits)


def test_a_folder_of_another_family_is_refused(tmp_path):
    SpikeDrivenTransformer(SpikeDrivenConfig(channels=16, blocks=1, num_labels=4)).save_pretrained(
        tmp_path
    )
    with pytest.raises(InputError, match="type isospike-qkformer, got isospike-spike-driven. Load"):
        QKFormer.from_pretrained(tmp_path)


@pytest.mark.parametrize(("family", "form"), MODELS)
def test_a_gradient_reaches_every_weight(family, form):
    model, fixture = published(family, form)
    model.train()
    x = images([3, *fixture["images"][1:]])
    model(x, torch.tensor([0, 1, 4]), steps=3).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    ends = ("layers.0.conv.weight", "stem.conv.weight", "stages.0.conv.weight")
    first = next(p for n, p in model.named_parameters() if n.endswith(ends))
    assert first.grad.abs().max() > 0, "a gradient reaches the image"


@pytest.mark.parametrize(("family", "form"), MODELS)
def test_steps_belong_to_the_call(family, form):
    model, fixture = published(family, form)
    x = images([2, *fixture["images"][-3:]])
    frames = x[:, None].expand(-1, 2, -1, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(model(frames).logits, model(x, steps=2).logits)
        assert not torch.equal(model(x, steps=1).logits, model(x, steps=7).logits)
        counts = torch.randint(0, 3, frames.shape, generator=generator("events"))
        assert torch.equal(model(counts).logits, model(counts.float()).logits), "events count"


def test_the_names_of_another_network_are_refused():
    for load in IMPORTERS.values():
        with pytest.raises(UnsupportedError, match="got 'blocks.0.attn.qkv.weight' among 1 names"):
            load({"blocks.0.attn.qkv.weight": torch.zeros(1)})
    names = ("stage1.0.mlp.mlp1_conv.bias", "stage1.0.mlp.fc1_conv.bias")
    with pytest.raises(UnsupportedError, match="got two tensors for stages.0.blocks.0.up.conv"):
        qkformer.from_authors({name: torch.zeros(1) for name in names})


def test_the_names_of_parallel_training_are_understood():
    assert list(qkformer.from_authors({"module.head.bias": torch.zeros(1)})) == ["head.bias"]


def test_images_of_another_size_are_refused():
    model = PUBLISHED["qkformer", "cifar"]()
    for shape in ((1, 1, 16, 16), (1, 3, 16, 18), (3, 16, 16), (0, 3, 16, 16), (1, 0, 3, 16, 16)):
        with pytest.raises(ShapeError, match=r"QKFormer needs images \[batch, 3, height, width\]"):
            model(torch.zeros(shape))
    with pytest.raises(RangeError, match="needs steps >= 1, got 0"):
        model(torch.zeros(1, 3, 16, 16), steps=0)
    with pytest.raises(ShapeError, match="a frame for each of 3 steps, got 2 frames"):
        model(torch.zeros(1, 2, 3, 16, 16), steps=3)


def test_labels_that_are_no_classes_are_refused():
    model = PUBLISHED["spike_driven", "wide"]()
    x = torch.zeros(2, 3, 16, 16)
    with pytest.raises(RangeError, match="needs labels from 0 to 4, got 0 to 5"):
        model(x, torch.tensor([0, 5]))
    with pytest.raises(ShapeError, match=r"one label for each of 2 images, got \(3,\)"):
        model(x, torch.tensor([0, 1, 2]))
    with pytest.raises(RangeError, match="labels in whole numbers, got torch.float32"):
        model(x, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize(
    "wrong",
    [{"channels": 60}, {"heads": (8, 8)}, {"heads": (3, 8, 8)}, {"depths": ()}, {"steps": 0}],
)
def test_sizes_that_do_not_fit_are_refused(wrong):
    with pytest.raises(RangeError, match="QKFormerConfig needs"):
        QKFormer(QKFormerConfig(**{**FOUR, **wrong}))


def test_settings_that_are_unknown_are_refused():
    with pytest.raises(
        InputError, match="known form, got 'mnist'. Use one of cifar, imagenet, dvs"
    ):
        QKFormer(QKFormerConfig(form="mnist"))
    with pytest.raises(RangeError, match="a multiple of 8 and four pools, got channels=12"):
        SpikeDrivenTransformer(SpikeDrivenConfig(channels=12))
    with pytest.raises(UnsupportedError, match="got a Linear and 'exact'"):
        fold(torch.nn.Linear(1, 1))
    with pytest.raises(UnsupportedError, match="got a QKFormer and 'fast'"):
        fold(PUBLISHED["qkformer", "cifar"](), "fast")


def test_resformer_sizes_that_do_not_fit_are_refused():
    for wrong in ({"heads": (3, 4)}, {"group": 24}, {"patches": (1,)}, {"depths": (0, 1)}):
        with pytest.raises(RangeError, match="SpikingResformerConfig needs channels, depths"):
            SpikingResformer(SpikingResformerConfig(**{**TWO, **wrong}))
    with pytest.raises(InputError, match="known form, got 'dvs'. Use one of cifar, imagenet"):
        SpikingResformer(SpikingResformerConfig(form="dvs"))
    model = SpikingResformer(SpikingResformerConfig(**TWO))
    with pytest.raises(ShapeError, match="sides divisible by 2"):
        model(torch.zeros(1, 3, 15, 15))


def test_a_head_of_spiking_resformer_scales_by_its_mean_rate():
    rate = spiking_resformer.Rate(2)
    quiet = torch.zeros(1, 1, 2, 4, 4)
    quiet[:, :, 0, :, :1] = 1.0  # a rate of 1/4 in the first head, 0 in the second
    assert rate.eval()(quiet, 4).flatten().tolist() == [0.5, 0.5], "unknown rates count as one"
    assert rate.train()(quiet, 4).flatten().tolist() == [1.0, 0.5], "the first batch sets them"
    busy = torch.ones(1, 1, 2, 4, 4)
    assert rate(busy, 4).flatten()[0].item() ** -2 == pytest.approx(4 * (0.25 + 0.75e-3), 1e-4)
    assert rate.eval()(quiet, 4)[0, 0, 1].item() == pytest.approx((4 * 1e-3) ** -0.5, 1e-4)
