"""Run the authors' networks on drawn weights, and write what they say to families.json.

    python tests/golden/make_families.py FOLDER

FOLDER holds checkouts of the repositories below, at these commits. Nothing of them is kept but
names, shapes and numbers. SpikingJelly and timm are replaced by what of them is used: neurons,
layers that read several steps, and decorators.
"""

import importlib.util
import json
import sys
import tempfile
import types
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from published import images, weights

SOURCES = {
    "qkformer": "zhouchenlin2096/QKFormer@c2a00e8e54538e76f5954614a60c1d53824bbee9",
    "spike_driven": "BICLab/Spike-Driven-Transformer@3faa82272eb499e4d56ea77707d4536e7c69a54b",
    "max_former": "bic-L/MaxFormer@6ddd4ccde2cc9c4b965059403868e57803b9b6b0",
    "spiking_resformer": "xyshi2000/SpikingResformer@3f751275dedfda8b0a4ed0bf50e85e02a4335f3e",
    "spikformer": "ZK-Zhou/spikformer@621268981827af47aa666c1b5f774de4281d90ad",
    "spiking_bert": "NeuroCompLab-psu/SpikingBERT@765e39b982d5edc8adb6772fde7e8d59bff78e6b",
}


class Neuron(nn.Module):
    """SpikingJelly's multi-step LIF neuron: ``v += (x - v) / tau``, reset to 0."""

    def __init__(self, tau=2.0, v_threshold=1.0, **ignored):
        super().__init__()
        self.tau, self.threshold, self.spikes = tau, v_threshold, 0

    def forward(self, x):
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            v = v + (current - v) / self.tau
            spikes.append((v >= self.threshold).to(x.dtype))
            v = v * (1 - spikes[-1])
        y = torch.stack(spikes)
        self.spikes = int(y.sum())
        return y


class LearnedNeuron(Neuron):
    """SpikingJelly's neuron with a learned leak: ``1 / tau = sigmoid(w)``."""

    def __init__(self, **ignored):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        self.tau = 1 / self.w.sigmoid()
        return super().forward(x)


def over_steps(layer):
    """A layer of torch that reads several steps at once, as SpikingJelly's."""

    class OverSteps(layer):
        def __init__(self, *args, step_mode, **settings):
            super().__init__(*args, **settings)

        def forward(self, x):
            return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    return OverSteps


def several_steps():
    """The layers and neurons of ``spikingjelly.activation_based``."""
    layers = {
        name: over_steps(getattr(nn, name))
        for name in ("Conv2d", "Linear", "MaxPool2d", "AdaptiveAvgPool2d")
    }
    layer, functional = types.SimpleNamespace(**layers), types.SimpleNamespace()
    functional.seq_to_ann_forward = lambda x, f: f(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return {
        "layer": layer,
        "functional": functional,
        "surrogate": types.SimpleNamespace(ATan=lambda: None),
        "neuron": types.SimpleNamespace(
            IFNode=Neuron, LIFNode=Neuron, ParametricLIFNode=LearnedNeuron
        ),
    }


def pretend():
    """Put what the authors import in the place of the packages."""
    parts = {
        "spikingjelly": {},
        "spikingjelly.activation_based": several_steps(),
        "spikingjelly.clock_driven": {"layer": None},
        "spikingjelly.clock_driven.neuron": {
            "MultiStepLIFNode": Neuron, "MultiStepParametricLIFNode": Neuron,
        },
        "pydevd": {},
        "termcolor": {"colored": None},
        "einops": {},
        "einops.layers": {},
        "einops.layers.torch": {"Rearrange": None},
        "timm": {},
        "timm.models": {"create_model": None},
        "timm.models.layers": {
            "to_2tuple": lambda x: (x, x), "DropPath": nn.Identity, "trunc_normal_":
            nn.init.trunc_normal_,
        },
        "timm.models.registry": {"register_model": lambda f: f},
        "timm.models.vision_transformer": {"_cfg": dict},
    }  # fmt: skip
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def load(folder, path, *beside):
    """A module of a checkout; ``beside`` are the names of its neighbours, loaded afresh."""
    sys.path.insert(0, str((folder / path).parent if not beside else folder))
    for name in ("mixer_hub", "embedding_hub", "module", "module.sps", "module.ms_conv"):
        sys.modules.pop(name, None)
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), folder / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.pop(0)
    return module


def answer(network, shape):
    """What a network says to drawn weights and images; its own rule for time has 3 steps."""
    network = network.eval()
    shapes = {name: list(t.shape) for name, t in network.state_dict().items()}
    network.load_state_dict(weights(shapes))
    with torch.no_grad():
        logits = network(images(shape))
    logits = logits[0] if isinstance(logits, tuple) else logits
    spikes = sum(m.spikes for m in network.modules() if isinstance(m, Neuron))
    return {"shapes": shapes, "images": shape, "logits": logits.tolist(), "spikes": spikes}


def count(network):
    """Parameters and entries of the state."""
    return [sum(p.numel() for p in network.parameters()), len(network.state_dict())]


def qkformer(folder):
    cifar = load(folder, "cifar10/model.py").spiking_transformer
    imagenet = load(folder, "imagenet/qkformer.py").hierarchical_spiking_transformer
    dvs = load(folder, "cifar10-dvs/model.py").vit_snn
    small = {
        "img_size_h": 16,
        "img_size_w": 16,
        "patch_size": 4,
        "T": 3,
        "num_classes": 5,
        "depths": 4,
        "embed_dims": 64,
    }
    at = {
        "cifar": cifar(mlp_ratios=2, in_channels=3, **small),
        "imagenet": imagenet(num_heads=4, mlp_ratios=2, in_channels=3, **small),
        "dvs": dvs(mlp_ratios=1, in_channels=2, **small),
    }  # fmt: skip
    shapes = {"cifar": [1, 3, 16, 16], "imagenet": [1, 3, 32, 32], "dvs": [1, 3, 2, 32, 32]}
    answers = {form: answer(network, shapes[form]) for form, network in at.items()}
    answers["leaking"] = answer(at["cifar"], [3, 3, 16, 16])
    full = {
        "cifar": cifar(embed_dims=384, mlp_ratios=4, in_channels=3, num_classes=10, depths=4),
        "imagenet": imagenet(embed_dims=384, num_heads=6, mlp_ratios=4, in_channels=3,
                             num_classes=1000, depths=10),
        "dvs": dvs(embed_dims=256, mlp_ratios=1, in_channels=2, num_classes=10, depths=4),
    }  # fmt: skip
    return answers, {form: count(network) for form, network in full.items()}


def spike_driven(folder):
    network = load(folder, "model/spikeformer.py", "module").SpikeDrivenTransformer
    small = {
        "in_channels": 3,
        "num_heads": 2,
        "num_classes": 5,
        "depths": 2,
        "T": 3,
        "patch_size": 4,
    }
    answers = {
        "wide": answer(network(embed_dims=32, mlp_ratios=2, pooling_stat="0011", **small),
                       [1, 3, 16, 16]),
        "narrow": answer(network(embed_dims=32, mlp_ratios=1, pooling_stat="1111", **small),
                         [1, 3, 32, 32]),
    }  # fmt: skip
    full = network(embed_dims=512, in_channels=3, num_classes=10, depths=2, pooling_stat="0011")
    return answers, {"2-512": count(full)}


def max_former(folder):
    small = {"in_channels": 3, "num_classes": 5, "T": 3, "embed_dims": 64, "mlp_ratios": 2}
    full = {"in_channels": 3, "num_classes": 10, "embed_dims": 384, "mlp_ratios": 4}
    answers, counts = {}, {}
    for name, path, shape in (
        ("max", "cifar10-100/max_former.py", [1, 3, 16, 16]),
        ("ms-qkformer", "cifar10-100/ms_qkformer.py", [1, 3, 16, 16]),
        ("max, imagenet", "imagenet/max_former.py", [1, 3, 32, 32]),
    ):
        module = load(folder, path)
        network = module.MS_QKformer if name.startswith("ms") else module.Max_Former
        answers[name] = answer(network(**small), shape)
        counts[name] = count(network(**full))
    return answers, counts


def spiking_resformer(folder):
    sys.path.insert(0, str(folder))
    module = importlib.import_module("models.spikingresformer")
    sys.path.pop(0)
    pair = ["DSSA", "GWFFN"]
    sizes = [[pair, 2 * pair], [16, 32], [2, 4], [2, 1]]
    small = {"T": 3, "num_classes": 5, "group_size": 16}

    def stem(channels):
        return nn.Sequential(
            module.layer.Conv2d(3, channels, 3, 1, 1, bias=False, step_mode="m"),
            module.BN(channels),
        )

    cifar = module.SpikingResformer(*sizes, img_size=16, prologue=stem(16), **small)
    large = module.SpikingResformer(*sizes, img_size=32, **small)
    events = module.SpikingResformer(
        *sizes, img_size=16, prologue=stem(16), activation=module.PLIF, **small
    )
    answers = {
        "cifar": mean_answer(cifar, [1, 3, 16, 16]),
        "imagenet": mean_answer(large, [1, 3, 32, 32]),
        "events": mean_answer(events, [1, 3, 3, 16, 16]),
    }
    counts = {
        "cifar": count(module.spikingresformer_cifar(img_size=32, num_classes=10)),
        "imagenet": count(module.spikingresformer_ti()),
        "events": count(module.spikingresformer_dvsg(img_size=64, num_classes=10)),
    }
    return answers, counts


def spikformer(folder):
    network = load(folder, "cifar10/model.py").Spikformer
    small = {"img_size_h": 16, "img_size_w": 16, "patch_size": 4, "in_channels": 3, "depths": 2}
    about = {"T": 3, "num_classes": 5, "embed_dims": 32, "num_heads": 2, "mlp_ratios": 2}
    answers = {"cifar": answer(network(**small, **about), [1, 3, 16, 16])}
    full = {"embed_dims": 384, "num_heads": 12, "mlp_ratios": 4, "num_classes": 10, "depths": 4}
    return answers, {"cifar": count(network(**small | full))}


def mean_answer(network, shape):
    """The answer of a network that gives one for each step."""
    found = answer(network, shape)
    return found | {"logits": torch.tensor(found["logits"]).mean(0).tolist()}


TEXT = [[1, 5, 7, 2, 0, 0], [1, 9, 33, 12, 6, 2]]
PADDED = [[1, 1, 1, 1, 0, 0], [1] * 6]


def spiking_bert(folder, steps=20):
    """What the authors' classifier says in its run on spikes and in its run without time."""
    sys.path.insert(0, str(folder))
    module = importlib.import_module("implicit_bert.models.snn_ide_bert_classi_4_spike")
    sys.path.pop(0)
    about = json.loads((folder / "spiking-student-model" / "config.json").read_text())
    small = about | {
        "vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 12,
    }  # fmt: skip

    def build(config, classes):
        with tempfile.TemporaryDirectory() as place:
            (Path(place) / "config.json").write_text(json.dumps(config))
            network = module.SNNIDESTUDENTBERT4SpikeClassification
            return network(place, classes, t_conv=steps, isEval=True).eval()

    network = build(small, 3)
    shapes = {
        name: list(t.shape)
        for name, t in network.state_dict().items()
        if name.startswith(("network_", "classification"))
    }
    network.load_state_dict(weights(shapes), strict=False)
    tokens, mask = torch.tensor(TEXT), torch.tensor(PADDED)
    segments = torch.zeros_like(tokens)
    added = (1.0 - mask[:, None, None].float()) * -10000.0
    with torch.no_grad():
        logits, _, _ = network(tokens, segments, mask)
        rates, _ = network.snn_ide_conv(
            tokens, segments, attention_mask=mask, time_step=steps, threshold=30
        )
        last = network.snn_func.equivalent_func_per_layer_bert_spiking_specific(
            None, tokens, segments, num=24, attention_mask=added
        )
        clamped = network.classification(torch.relu(last[:, 0]))
    full = build(about, 2)
    unused = [full.fit_dense, full.pooler_layer, full.network_s25, full.snn_func_copy]
    return {
        "shapes": shapes, "steps": steps, "logits": logits.tolist(), "clamped": clamped.tolist(),
        "rates": [rate.mean().item() for rate in rates], "entries": len(full.state_dict()),
        "parameters": sum(p.numel() for p in full.parameters()),
        "unused": sum(p.numel() for part in unused for p in part.parameters()),
    }  # fmt: skip


FAMILIES = {
    "qkformer": qkformer,
    "spike_driven": spike_driven,
    "max_former": max_former,
    "spiking_resformer": spiking_resformer,
    "spikformer": spikformer,
}


def main():
    pretend()
    written = {}
    for name, make in FAMILIES.items():
        source = SOURCES[name]
        folder = Path(sys.argv[1]) / source.partition("@")[0].replace("/", "+")
        answers, counts = make(folder)
        written[name] = {"source": source, "torch": torch.__version__, "answers": answers,
                         "counts": counts}  # fmt: skip
    source = SOURCES["spiking_bert"]
    folder = Path(sys.argv[1]) / source.partition("@")[0].replace("/", "+")
    found = {"source": source, "torch": torch.__version__, **spiking_bert(folder)}
    written["spiking_bert"] = found
    path = Path(__file__).parent / "families.json"
    path.write_text(json.dumps(written, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
