"""What leaves this machine: NIR files read by others and written by others; ports in onnxruntime.

The preset ``tiny`` runs without the other packages. The others need nir, h5py, nirtorch, onnx,
onnxruntime, SpikingJelly, snnTorch and Norse, installed without their dependencies.
"""

import importlib.util
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace as P

import numpy as np
import torch
from torch import nn

from benchmarks.models import lively, load_minilm, random_batches, small_bert
from benchmarks.port import STORIES, greedy, read_stories
from isospike.deploy.attention import mask_attention, token_attention
from isospike.deploy.build import Builder, convolution
from isospike.deploy.families import family_network
from isospike.deploy.nir import read_nir, write_nir
from isospike.deploy.onnx import BertGraph, write_onnx
from isospike.experiments.study import Findings, Goal, study
from isospike.models import SpikeDrivenConfig, SpikeDrivenTransformer
from isospike.neurons import LIF
from isospike.porting.port import port
from isospike.porting.sites import Site
from isospike.presets import spikingjelly_lif
from isospike.report.table import Table

DT = 1e-4
ORACLE = Path(__file__).parents[1] / "tests" / "nir_oracle.py"


def draw(seed, *shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def attention(kind, shape, heads, seed):
    """A network of one attention, and the same in torch."""
    channels = shape[0]
    g = torch.Generator().manual_seed(seed)
    weights = [
        6 * torch.randn(channels, channels, 1, 1, generator=g) / channels**0.5 for _ in "qkv"
    ]
    biases = [0.1 * torch.randn(channels, generator=g) for _ in "qkv"]
    if kind == "mask":  # keys and values that seldom meet, so that the mask decides something
        biases[1] -= 2.5
        biases[2] -= 2.5
    lif, mask = LIF(spikingjelly_lif()), LIF(spikingjelly_lif(v_threshold=0.5))
    build = Builder()
    x = build.input("in", shape)
    names = "qk" if kind == "token" else "qkv"
    ends = [
        build.add(n, lif, build.add(f"{n}_conv", convolution(w, b), x))
        for n, w, b in zip(names, weights, biases, strict=False)
    ]
    if kind == "token":
        build.output("out", token_attention(build, "a", *ends, channels, heads, mask))
    else:
        build.output("out", mask_attention(build, "a", *ends, shape, mask))

    def right(x):
        frames = x.flatten(0, 1)
        q, k, v = (
            lif(nn.functional.conv2d(frames, w, b).view(x.shape))
            for w, b in zip(weights, biases, strict=True)
        )
        if kind == "mask":
            return mask((k * v).sum((-1, -2), keepdim=True)) * q
        q, k = (s.unflatten(2, (heads, -1)) for s in (q, k))
        return (mask(q.sum(3))[:, :, :, None] * k).flatten(2, 3)

    return build.network(DT), right


def by_oracle(path, x, name="in"):
    spec = importlib.util.spec_from_file_location("nir_oracle", ORACLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (found,) = module.run_file(path, {name: x.numpy()}, DT).values()
    return torch.from_numpy(found).float()


def by_spikingjelly(path, x):
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    model, state, found = import_from_nir(path, dt=DT), None, []
    for frame in x:
        y, state = model(frame, state)
        found.append(y)
    return torch.stack(found)


@study(
    "nir-attention",
    question="Does attention in NIR's own nodes give other readers the same spikes?",
    presets={
        "tiny": P(peers=False, shape=(8, 2, 2), heads=2, steps=3, batch=2),
        "small": P(peers=True, shape=(32, 8, 8), heads=4, steps=8, batch=8),
        "full": P(peers=True, shape=(48, 16, 16), heads=8, steps=8, batch=4),
    },
)
def nir_attention(p, ctx):  # noqa: ARG001
    """Random projections, LIF neurons and attention; torch's own products are what is right."""
    rows, goals, numbers = [], {}, {}
    for kind in ("token", "mask"):
        network, right = attention(kind, p.shape, p.heads, 1)
        x = (draw(2, p.steps, p.batch, *p.shape) < 0.3).float()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            y = right(x)
            found = {"this library, the network": network(x)}
            if p.peers:
                write_nir(network, Path(folder) / "a.nir", {"code": "binary", "steps": p.steps})
                for name, read in (
                    ("this library, the file", lambda path, x: read_nir(path)(x)),
                    ("an oracle in NumPy, the file", by_oracle),
                    ("SpikingJelly 2.0.0, the file", by_spikingjelly),
                ):
                    found[name] = read(Path(folder) / "a.nir", x)
        for name, value in found.items():
            differ = int((value != y).sum())
            rows.append((f"{kind} attention", name, differ, y.numel(), f"{float(y.mean()):.2f}"))
            numbers[f"{kind}: {name}"] = differ
            goals[f"{kind} attention, {name}: spikes that differ"] = Goal(differ, 0)
    head = ("attention", "run by", "spikes that differ", "spikes compared", "rate")
    meaning = "No spike should differ from torch's own products."
    return Findings(numbers, [Table("Attention in NIR", head, tuple(rows), meaning)], goals)


@study(
    "nir-families",
    question="Does a folded spiking transformer in a NIR file fire the same spikes elsewhere?",
    presets={
        "tiny": P(peers=False, channels=16, side=8, steps=2, batch=2),
        "small": P(peers=True, channels=64, side=8, steps=8, batch=200),
        "full": P(peers=True, channels=128, side=16, steps=8, batch=100),
    },
)
def nir_families(p, ctx):  # noqa: ARG001
    """A random spike-driven transformer of two blocks, whose stem pools spikes and no currents. The
    scores of a step are sums of the last neurons' spikes with random weights, so that they are the
    same where all of them are; if they are not, all of the step count as different."""
    config = SpikeDrivenConfig(
        channels=p.channels, blocks=2, pools=(False, True, True, False), num_labels=10
    )
    model = lively(SpikeDrivenTransformer(config))
    network, refused = family_network(model, (p.side, p.side))
    x = (256 * draw(1, p.batch, 3, p.side, p.side)).floor() / 256
    x = x.expand(p.steps, *x.shape)
    rows, numbers, goals = [], {"left out": len(refused)}, {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.nir"
        y = network(x)
        right = model(x[0], steps=p.steps).logits
        numbers["largest difference of the model's scores"] = float((y.mean(0) - right).abs().max())
        readers = ()
        if p.peers:
            write_nir(network, path, {"code": "binary", "steps": p.steps})
            readers = (
                ("this library, the file", lambda: read_nir(path)(x)),
                ("an oracle in NumPy, the file", lambda: by_oracle(path, x, "image")),
                ("SpikingJelly 2.0.0, the file", lambda: by_spikingjelly(path, x)),
            )
        for name, read in readers:
            steps = ((read() - y).abs() > 1e-4).any(-1)
            differ, every = int(steps.sum()) * p.channels, steps.numel() * p.channels
            rows.append((name, differ, every))
            numbers[name] = differ
            goals[f"{name}: spikes that differ"] = Goal(differ, 0)
    head = ("run by", "spikes that differ, at most", "spikes compared")
    meaning = "Against the network that was written: none should differ."
    return Findings(numbers, [Table("A family in NIR", head, tuple(rows), meaning)], goals)


# ------------------------------------------------------------------------- files of others


def spikingjelly_files(folder):
    """Networks of SpikingJelly: name, file, step, input, its own spikes."""
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    nodes = {
        "LIF": neuron.LIFNode, "IF": neuron.IFNode, "CubaLIF": neuron.CUBALIFNode,
        "LIF, input not decaying": lambda: neuron.LIFNode(3.0, decay_input=False, v_threshold=0.7),
    }  # fmt: skip
    for name, node in nodes.items():
        torch.manual_seed(0)
        net = nn.Sequential(layer.Linear(12, 64), node(), layer.Linear(64, 64), node())
        driven(net)
        yield f"SpikingJelly 2.0.0, {name}", *spikingjelly_run(net, (12,), folder, export_to_nir)
    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 8, 3, padding=1), neuron.LIFNode(), layer.AvgPool2d(2),
        layer.Conv2d(8, 8, 3, stride=2, padding=1), neuron.IFNode(), layer.Flatten(),
        layer.Linear(32, 64), neuron.LIFNode(),
    )  # fmt: skip
    driven(net)
    yield (
        "SpikingJelly 2.0.0, convolutions",
        *spikingjelly_run(net, (2, 8, 8), folder, export_to_nir),
    )
    functional.reset_net(net)


def driven(net):
    """Weights that make neurons fire."""
    for part in net:
        if hasattr(part, "weight"):
            part.weight.data *= 4
            part.bias.data += 0.4


def spikingjelly_run(net, shape, folder, export):
    from spikingjelly.activation_based import functional

    x = draw(1, 20, 16, *shape)
    export(net, x[0], save_path=folder / "a.nir")
    functional.reset_net(net)
    return folder / "a.nir", DT, x, torch.stack([net(frame) for frame in x])


def snntorch_files(folder):
    import nir
    import snntorch
    from snntorch.export_nir import export_to_nir

    def full(value):
        return torch.full((64,), value)

    zero = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
    kinds = {
        "Leaky": lambda: snntorch.Leaky(beta=full(0.8), threshold=full(1.0), **zero),
        "Synaptic": lambda: snntorch.Synaptic(full(0.5), full(0.8), threshold=full(1.0), **zero),
        "RLeaky, recurrent": lambda: snntorch.RLeaky(
            beta=full(0.8), linear_features=64, threshold=full(1.0), **zero
        ),
        "Leaky, its default reset": lambda: snntorch.Leaky(
            beta=full(0.8), threshold=full(1.0), init_hidden=True
        ),
    }
    x = draw(1, 20, 16, 12)
    for name, kind in kinds.items():
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(12, 64), kind(), nn.Linear(64, 64), kind())
        for part in (net[0], net[2]):
            part.weight.data *= 2
            part.bias.data += 0.3
        nir.write(folder / "a.nir", export_to_nir(net, x[0][0]))
        for part in net:
            if hasattr(part, "reset_mem"):
                part.reset_mem()
        found = [net(frame) for frame in x]
        right = torch.stack([y[0] if isinstance(y, tuple) else y for y in found])
        yield f"snnTorch 1.0.0, {name}", folder / "a.nir", DT, x, right


def norse_files(folder):
    import nir
    import norse.torch as norse
    from norse.torch.utils.export_nir import to_nir

    def full(value):
        return torch.full((64,), value)

    ends = {"v_leak": full(0.0), "v_reset": full(0.0)}
    box = norse.LIFBoxParameters(tau_mem_inv=full(100.0), v_th=full(0.3), **ends)
    current = norse.LIFParameters(
        tau_mem_inv=full(100.0), tau_syn_inv=full(200.0), v_th=full(0.3), **ends
    )
    kinds = {  # the step that undoes what its writer does to the time constants
        "LIFBox, read with dt squared": (lambda: norse.LIFBoxCell(p=box), 1e-6),
        "IAF, read with dt 1": (lambda: norse.IAFCell(p=norse.IAFParameters(v_th=full(0.7))), 1.0),
        "LIF (CubaLIF)": (lambda: norse.LIFCell(p=current), 1e-6),
    }
    x = draw(1, 20, 16, 12)
    for name, (kind, dt) in kinds.items():
        torch.manual_seed(0)
        net = norse.SequentialState(nn.Linear(12, 64), kind(), nn.Linear(64, 64), kind())
        for part in (net[0], net[2]):
            part.weight.data *= 6
            part.bias.data += 0.5
        nir.write(folder / "a.nir", to_nir(net, x[0][0]))
        state, found = None, []
        for frame in x:
            y, state = net(frame, state)
            found.append(y)
        yield f"Norse 1.1.0, {name}", folder / "a.nir", dt, x, torch.stack(found)


FAULTS = {
    "snnTorch 1.0.0, Leaky, its default reset": "NIR's neurons reset to a value; its writer does "
    "not say that this one subtracts, a step later",
    "Norse 1.1.0, LIF (CubaLIF)": "its writer leaves out that spikes enter the current undivided",
    "Norse 1.1.0, LIFBox, read with dt squared": "its writer multiplies the time constant with dt",
    "Norse 1.1.0, IAF, read with dt 1": "its writer leaves out dt",
}


@study(
    "nir-files",
    question="Are files of other libraries read as they run them?",
    presets={"tiny": P(peers=False), "small": P(peers=True), "full": P(peers=True)},
)
def nir_files(p, ctx):  # noqa: ARG001
    """Two layers of neurons and recurrences, made and run by the library that wrote the file."""
    rows, numbers, goals = [], {}, {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sources = (spikingjelly_files, snntorch_files, norse_files) if p.peers else ()
        for source in sources:
            for name, path, dt, x, right in source(Path(folder)):
                strict = not name.startswith("SpikingJelly")
                y = read_nir(path, dt=dt, strict=strict)(x)
                differ = int((y != right).sum())
                rate = f"{float(right.mean()):.3f}"
                rows.append((name, differ, right.numel(), rate, FAULTS.get(name, "")))
                numbers[name] = differ
                if differ == 0 or name not in FAULTS:
                    goals[f"{name}: spikes that differ"] = Goal(differ, 0)
    head = ("written by", "spikes that differ", "compared", "rate", "fault of the writer")
    meaning = "Ours against the library's own run: none should differ, but for a fault named here."
    return Findings(numbers, [Table("Files of others", head, tuple(rows), meaning)], goals)


# -------------------------------------------------------------------------------- onnxruntime


class FloatGraph(BertGraph):
    """The float model in the same operators, to compare the time with."""

    def product(self, product, x):
        y = self.add("MatMul", x, self.value(product.weight.T))
        return self.add("Add", y, self.value(product.bias))

    def _layer(self, layer, x, mask):
        layer.attention.self.isospike_attention = None
        return super()._layer(layer, x, mask)

    def attention(self, attention, q, k, v, mask):  # noqa: ARG002
        scaled = self.add("Mul", q, self.value(self.model.encoder.layer[0].attention.self.scaling))
        z = self.add("MatMul", scaled, self.turn(k))
        return self.add("MatMul", self.add("Softmax", self.add("Add", z, mask), axis=-1), v)


def integers_of(model, inputs):
    """The integers of every site of a port, by its name, and the first output."""
    parts, read = {}, Site.read

    def kept(site, x, dtype=torch.float32, *, into=None):
        reading = read(site, x, dtype, into=into)
        held = parts.setdefault(site.name, [])
        if site.kind == "linear":  # which several products may read
            held.clear()
        held.append(reading.value.float().numpy().copy())
        return reading

    Site.read = kept
    try:
        with torch.no_grad():
            output = model(**inputs)[0].numpy()
    finally:
        Site.read = read
    return {name: np.concatenate(held) for name, held in parts.items()}, output


def session(runtime, model):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(model, options)


@study(
    "onnx",
    question="Does another runtime compute the integers of a collapsed port, and how fast?",
    data=STORIES,
    presets={
        "tiny": P(peers=False, minilm=False, length=8, written=4),
        "small": P(peers=True, minilm=True, rows=8, length=512, rounds=9, written=100),
        "full": P(peers=True, minilm=True, rows=16, length=512, rounds=9, written=100),
    },
)
def onnx(p, ctx):
    """MiniLM with functions on spikes: integers of every site and the output against torch, on
    texts that nothing was tuned on; time of a batch against the float model in the same operators,
    which alternate. A Llama with its cache: the text it writes against the port's."""
    model, calibration, held_out = inputs(p)
    ported = port(model, calibration, steps=8, functions="spiking").model
    if not p.peers:
        return Findings({"sites": sum(isinstance(m, Site) for m in ported.modules())})
    import onnx as package
    import onnxruntime as runtime

    differ = total = apart = outputs = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.onnx"
        write_onnx(ported, path, strict=True, integers=True)
        run = session(runtime, path)
        names = [end.name for end in run.get_outputs()]
        for batch in held_out:
            right, output = integers_of(ported, batch)
            made = run.run(None, {n: x.numpy() for n, x in batch.items() if n in INPUTS})
            got = dict(zip(names, made, strict=True))
            differ += sum(int((got[n] != right[n]).sum()) for n in right)
            total += sum(value.size for value in right.values())
            apart += int((got["last_hidden_state"] != output).sum())
            outputs += output.size
        write_onnx(ported, path, strict=True)
        spiking = session(runtime, path)
        size = path.stat().st_size / 2**20
        same, text = written_text(runtime, path, p, ctx)
    plain = session(runtime, FloatGraph(package, model, False).build(20))
    ids = torch.randint(5, 900, (p.rows, 64), generator=torch.Generator().manual_seed(1))
    fed = {"input_ids": ids.numpy(), "attention_mask": np.ones_like(ids.numpy())}
    runs = {"port": lambda: spiking.run(None, fed), "float32": lambda: plain.run(None, fed)}
    ratio = ctx.timing(runs, p.rounds).ratio("port", "float32")
    numbers = {
        "integers": total, "integers that differ": differ, "outputs": outputs,
        "outputs that differ": apart, "time over float32": ratio, "MiB": size,
        "stories260K, tokens": text, "stories260K, same tokens": same,
    }  # fmt: skip
    rows = (
        ("MiniLM, integers that differ from torch's", f"{differ} of {total:,}"),
        ("MiniLM, numbers of its output that differ", f"{apart} of {outputs:,}"),
        ("MiniLM, time over onnxruntime's float32", f"{ratio:.2f}"),
        ("MiniLM, size of the file, MiB", f"{size:.0f}"),
        ("stories260K, tokens with a cache that are the port's", f"{same} of {text}"),
    )
    goals = {
        "integers that differ": Goal(differ, 0),
        "outputs that differ": Goal(apart, 0),
        "time over onnxruntime's float32": Goal(ratio, 0.7),
        "stories260K, tokens that differ": Goal(text - same, 0),
    }
    meaning = "Functions on spikes are tables and shifts, which every runtime computes alike."
    return Findings(numbers, [Table("Ports in onnxruntime", ("", "figure"), rows, meaning)], goals)


def written_text(runtime, path, p, ctx):
    """Tokens that a runtime writes as the port does, and how many there are."""
    model, texts, prompt = read_stories(p, ctx)
    ported = port(model, [{"input_ids": text[:, :256]} for text in texts[:4]], steps=8).model
    write_onnx(ported, path)
    run = session(runtime, path)
    config = model.config
    rest = np.zeros((1, config.num_key_value_heads, 0, config.head_dim), np.float32)
    names = [end.name for end in run.get_outputs()]
    past = {end.name: rest for end in run.get_inputs() if end.name.startswith("past")}
    new, found = prompt.numpy(), prompt.tolist()[0]
    for _ in range(p.written):
        fed = {"input_ids": new, "attention_mask": np.ones((1, len(found)), np.int64)}
        made = dict(zip(names, run.run(None, {**fed, **past}), strict=True))
        past = {name: made[name.replace("past", "present")] for name in past}
        new = made["logits"][:, -1:].argmax(-1)
        found.append(int(new[0, 0]))
    right = greedy(ported, prompt, p.written)
    same = sum(a == b for a, b in zip(found, right, strict=False))
    return same - prompt.shape[1], p.written


INPUTS = ("input_ids", "attention_mask")


def inputs(p):
    """Model, batches to calibrate on, and batches of texts of another kind."""
    if not p.minilm:
        return small_bert(), random_batches(4, 4, p.length), random_batches(2, 2, p.length, seed=1)
    from isospike.data import calibration_texts, foreign_texts

    tokenizer, model = load_minilm()

    def batches(texts):
        for i in range(0, len(texts), 8):
            made = tokenizer(texts[i : i + 8], padding=True, truncation=True, max_length=128,
                             return_tensors="pt")  # fmt: skip
            yield {n: made[n] for n in INPUTS}

    return model, list(batches(calibration_texts()[::6])), list(batches(foreign_texts()[:64]))
