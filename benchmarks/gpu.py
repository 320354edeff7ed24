"""A GPU: is everything there what it is on a CPU?

``tiny`` runs on a CPU; the other presets need CUDA. A check that fails is recorded, and the others
go on.
"""

import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace as P

import torch
import transformers

import isospike
from benchmarks.models import WORDS, random_batches, small_bert, small_llama
from benchmarks.neurons import (
    spikes,
)
from isospike.errors import UnsupportedError
from isospike.experiments.study import Findings, Goal, study
from isospike.hf.batches import first_output
from isospike.models import SpikformerConfig
from isospike.models.spikformer import Spikformer, fold
from isospike.neurons import LIF, NeuronParams, NeuronState, run
from isospike.porting.files import load
from isospike.porting.run import run_of
from isospike.products import spike_attention, spike_linear, spike_matmul
from isospike.progress import update
from isospike.report.table import Table
from isospike.surrogate import SURROGATES

SETTINGS = (
    {}, {"functions": "spiking"}, {"precision": "fast"}, {"steps": 12}, {"code": "half-octave"},
    {"steps": isospike.Target(error=0.1)}, {"code": "bernoulli"},
)  # fmt: skip


def presets(**sizes):
    """The same settings, with the sizes of a test or of a GPU."""
    small, large = ({k: v[i] for k, v in sizes.items()} for i in range(2))
    return {
        "tiny": P(device="cpu", peers=False, rounds=1, inner=1, **small),
        "small": P(device="cuda", peers=False, rounds=5, inner=2, **small),
        "full": P(device="cuda", peers=True, rounds=15, inner=5, **large),
    }


def card(p):
    """The device, and what it is called."""
    if p.device == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"the studies of a GPU need CUDA, got torch {torch.__version__} that sees no GPU. Run "
            "them where there is one, or with --preset tiny."
        )
    return torch.cuda.get_device_name() if p.device == "cuda" else "a CPU"


class Checks:
    """Differences by name; what fails is a text."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}
        self.failed: dict[str, str] = {}

    def run(self, name: str, check: Callable[[], dict[str, float]]) -> None:
        """Take note of what ``check`` finds, or of how it fails."""
        update(name, 0, 1)
        try:
            self.numbers |= {f"{name}: {what}": float(x) for what, x in check().items()}
        except Exception as error:  # noqa: BLE001 - the next check is to run
            last = error.__traceback__
            while last is not None and last.tb_next is not None:
                last = last.tb_next
            place = "" if last is None else Path(last.tb_frame.f_code.co_filename).name
            line = 0 if last is None else last.tb_lineno
            first = (str(error).splitlines() or [""])[0][:300]
            self.failed[name] = f"{type(error).__name__}: {first} ({place}:{line})"

    def tables(self, device: str) -> list[Table]:
        """What was found."""
        apart = {n: x for n, x in self.numbers.items() if x}
        rows = tuple((n, f"{x:.3g}") for n, x in apart.items()) or (("none", "0"),)
        same = len(self.numbers) - len(apart)
        found = Table(f"What differs on {device}", ("check", "value"), rows,
                      f"{same} other checks found no difference at all.")  # fmt: skip
        lost = tuple(self.failed.items()) or (("none", ""),)
        return [
            found,
            Table(
                "Checks that failed",
                ("check", "error"),
                lost,
                "The error, and where it was raised.",
            ),
        ]


def neuron_check(device, params, shape, dtype):
    """The compiled engine of a device against the reference on the CPU."""
    g = torch.Generator().manual_seed(0)
    x = (torch.randint(-64, 160, shape, generator=g) / 64).to(dtype)
    x[:, ::2] += torch.randn(x[:, ::2].shape, generator=g).to(dtype)
    v = torch.randn(shape[1:], generator=g)
    up, last = torch.randn(shape, generator=g).to(dtype), torch.randn(shape[1:], generator=g)
    found = []
    for place, engine in (("cpu", "reference"), (device, "auto")):
        there = [t.detach().to(place).requires_grad_() for t in (x, v)]
        held = {n: t.to(place).requires_grad_() if isinstance(t, torch.Tensor) else t
                for n, t in params._asdict().items()}  # fmt: skip
        learnt = [t for t in held.values() if isinstance(t, torch.Tensor)]
        s, state = run(there[0], NeuronState(there[1]), NeuronParams(**held), engine=engine)
        grads = torch.autograd.grad((s, state.v), [*there, *learnt], (up.to(place), last.to(place)))
        found.append([t.detach().cpu().double() for t in (s, state.v, *grads)])
    scale = [a.abs().max().clamp_min(1e-9) for a in found[0]]
    apart = [((a - b).abs().max() / c) for a, b, c in zip(*found, scale, strict=True)]
    return {"spikes": (found[0][0] != found[1][0]).sum(), "membranes": apart[1],
            "gradients": max(apart[2:])}  # fmt: skip


def neuron_checks(checks, p):
    """Every surrogate and kind of reset; the worst over types and kinds of gradient."""
    channels = p.shape[-1]
    g = torch.Generator().manual_seed(1)
    learnt = {"decay": torch.rand(channels, generator=g), "gain": torch.rand(channels, generator=g),
              "bias": torch.randn(channels, generator=g) / 8,
              "threshold": 0.5 + torch.rand(p.shape[-2], 1, generator=g)}  # fmt: skip
    resets = {
        "by the threshold": {},
        "by an amount": {"reset_by": 0.5},
        "to a value": {"reset_to": -0.25},
    }
    for name, (reset, more) in itertools.product(SURROGATES, resets.items()):
        for kind, held in (("numbers", {}), ("tensors", learnt)):
            if kind == "numbers" and name != "Sigmoid":
                continue  # each is compiled anew
            surrogate = SURROGATES[name]()

            def check(held=held, more=more, surrogate=surrogate):
                worst: dict[str, float] = {}
                for detach, dtype in itertools.product(
                    (True, False), (torch.float32, torch.bfloat16)
                ):
                    params = NeuronParams(**held, **more, detach_reset=detach, surrogate=surrogate)
                    got = neuron_check(p.device, params, p.shape, dtype)
                    half = dtype == torch.bfloat16
                    got = {f"{k}, bfloat16" if half else k: float(x) for k, x in got.items()}
                    worst |= {k: max(x, worst.get(k, 0.0)) for k, x in got.items()}
                return worst

            checks.run(f"{name}, {reset}, {kind}", check)


def huge_check(p):
    """More values than 31 bits count: every neuron does what the first one does."""
    x = torch.full((5, p.huge), 0.75, dtype=torch.bfloat16, device=p.device)
    s = LIF(dtype=torch.uint8)(x)
    found = {"spikes": int((s != s[:, :1]).sum()) + (s[:, 0].tolist() != [0, 1, 0, 1, 0])}
    del s
    x.requires_grad_()
    (g,) = torch.autograd.grad(LIF()(x), x, torch.ones_like(x))
    return {**found, "spikes' gradients": int((g != g[:, :1]).sum()) + (g[:, 0] == 0).sum()}


def product_checks(checks, p):
    """Products of spikes against float64 on the CPU."""
    kinds = (torch.float32, torch.bfloat16, torch.uint8, torch.bool)
    for kind in kinds:
        s, k, v = (spikes((3, 2, 40, 80), 0.2, i).to(kind) for i in range(3))
        weight = torch.randn(48, 80, generator=torch.Generator().manual_seed(3))
        grid = (weight * 64).round() / 64

        def linear(s=s, weight=weight, grid=grid):
            true, there = s.double() @ weight.double().t(), s.to(p.device)
            y = spike_linear(there, weight.to(p.device)).cpu()
            exact = spike_linear(there, grid.to(p.device)).cpu()
            fast = spike_linear(there, weight.to(p.device), precision="fast").cpu()
            return {
                "error": (y - true).norm() / true.norm(),
                "error, fast": (fast - true).norm() / true.norm(),
                "differ, on a grid": (exact != s.double() @ grid.double().t()).sum(),
            }

        def counts(s=s, k=k, v=v):
            here = [x.to(p.device) for x in (s, k, v)]
            many = spikes((2, 1000), 0.9, 5).to(s.dtype)
            product = spike_matmul(here[0], here[1].transpose(-1, -2)).cpu()
            long = spike_matmul(many.to(p.device), many.t().to(p.device)).cpu()
            return {
                "product": (product != s.double() @ k.double().transpose(-1, -2)).sum(),
                "1000 terms": (long != many.double() @ many.double().t()).sum(),
                "attention": (spike_attention(*here).cpu() != spike_attention(s, k, v)).sum(),
            }

        checks.run(f"spike_linear, {kind}", linear)
        checks.run(f"counts, {kind}", counts)

    def gradients():
        out = []
        for place in ("cpu", p.device):
            s = spikes((2, 30, 80), 0.2, 0).float().to(place).requires_grad_()
            w = torch.randn(48, 80, generator=torch.Generator().manual_seed(3)).to(place)
            y = spike_linear(s, w.requires_grad_(), pack=True)
            z = spike_attention(s, s, s)
            out.append([t.cpu() for t in torch.autograd.grad(y.square().sum() + z.sum(), (s, w))])
        return {"relative": max((a - b).norm() / a.norm() for a, b in zip(*out, strict=True))}

    checks.run("gradients of products", gradients)


def float_models(seed=0):
    """Tiny random models and their batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=1,
            eos_token_id=None, pad_token_id=0,
        )).eval()  # fmt: skip
        vit = transformers.ViTForImageClassification(transformers.ViTConfig(
            image_size=16, patch_size=4, num_channels=3, hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, intermediate_size=64, num_labels=7,
        )).eval()  # fmt: skip
    text = random_batches(2, 8, 12)
    images = [{"pixel_values": torch.randn(8, 3, 16, 16)} for _ in range(2)]
    return {"BERT": (small_bert(), text), "GPT-2": (gpt2, text), "Llama": (small_llama(), text),
            "ViT": (vit, images)}  # fmt: skip


def on(device, batch):
    return {k: v.to(device) for k, v in batch.items()}


def outputs(model, batch, execution=None):
    with torch.no_grad(), run_of(model).switched(**({"execution": execution} if execution else {})):
        return first_output(model(**batch)).cpu()


def moved_check(device, model, batches, settings):
    """A port of the CPU that moves: stepped and collapsed, and what it was before."""
    generator = torch.Generator().manual_seed(0)
    port = isospike.port(model, batches, generator=generator, **settings)
    before = outputs(port.model, batches[1])
    port.model.to(device)
    there = on(device, batches[1])
    after = outputs(port.model, there)
    found = {"against the CPU": (after - before).norm() / before.norm()}
    if settings.get("precision") != "fast" and settings.get("code") != "bernoulli":
        found["stepped and collapsed"] = (outputs(port.model, there, "stepped") != after).sum()
    with tempfile.TemporaryDirectory() as folder:
        saved = port.save(Path(folder) / "port")
        loaded = load(saved).to(device)
    if settings.get("code") != "bernoulli":
        found["saved and loaded"] = (outputs(loaded, there) != after).sum()
    port.model.to("cpu")
    if settings.get("code") != "bernoulli":
        found["back on the CPU"] = (outputs(port.model, batches[1]) != before).sum()
    return found


def made_check(device, model, batches, settings):
    """A port made on the device, of a model that is there."""
    here = isospike.port(model, batches, **settings)
    there = [on(device, batch) for batch in batches]
    moved = model.to(device)
    try:
        port = isospike.port(moved, there, **settings)
    finally:
        model.to("cpu")
    found = {"error over that on the CPU": port.report.error / here.report.error}
    if settings.get("precision") != "fast" and settings.get("code") != "bernoulli":
        a, b = (outputs(port.model, there[1], e) for e in ("collapsed", "stepped"))
        found["stepped and collapsed"] = (a != b).sum()
    return found


def tf32_check(device, model, batches):
    """The same bits, whether a user allows TF32 or not."""
    port = isospike.port(model, batches).model.to(device)
    there = on(device, batches[1])
    before = torch.get_float32_matmul_precision()
    plain = outputs(port, there)
    try:
        torch.set_float32_matmul_precision("high")
        found = [outputs(port, there, e) for e in ("collapsed", "stepped")]
    finally:
        torch.set_float32_matmul_precision(before)
    return {"stepped and collapsed": (found[0] != found[1]).sum(),
            "against without": (found[0] - plain).abs().max()}  # fmt: skip


def spikformer_check(device, way):
    """Scores of a small Spikformer, on the device over on the CPU; images are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Spikformer(SpikformerConfig(steps=2, channels=64, heads=4, blocks=2)).train()
        images = torch.rand(8, 3, 32, 32)
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.momentum = None
        model(images)  # normalisations get their statistics
    model.eval()
    with torch.no_grad():
        here = model(images).logits
        model.to(device)
        there = images.to(device)
        there = model(there).logits if way == "module" else fold(model, way)(there)
        there = there.cpu().float()
    return {"scores": (there - here).norm() / here.norm()}


@study(
    "gpu-parity",
    question="Does a GPU give what a CPU gives?",
    presets=presets(shape=((5, 3, 7, 24), (5, 3, 37, 129)), huge=(64, 2**29 + 64)),
)
def parity(p, ctx):
    """Spikes, membranes and gradients of neurons, products, models, ports."""
    device, checks = card(p), Checks()
    neuron_checks(checks, p)
    checks.run("a large layer", partial(huge_check, p))
    product_checks(checks, p)
    for way in ("module", "exact", "fast"):
        checks.run(f"Spikformer, {way}", partial(spikformer_check, p.device, way))
    return found(checks, device)


@study(
    "gpu-ports",
    question="Does a port give on a GPU what it gives on a CPU?",
    presets=presets(),
)
def ports(p, ctx):
    """Tiny random models, moved there, made there, saved and loaded."""
    device, checks = card(p), Checks()
    for name, (model, batches) in float_models().items():
        checks.run(f"{name}, TF32 allowed", partial(tf32_check, p.device, model, batches))
        for settings in SETTINGS if p.device == "cuda" else SETTINGS[:1]:
            said = ", ".join(f"{k} {v}" for k, v in settings.items()) or "default"
            run_one = (p.device, model, batches, settings)
            checks.run(f"{name}, moved, {said}", partial(moved_check, *run_one))
            checks.run(f"{name}, ported there, {said}", partial(made_check, *run_one))
    return found(checks, device)


def found(checks, device):
    """Tables of the checks, and the goal that nothing differs where nothing may."""
    exact = [
        x
        for n, x in checks.numbers.items()
        if n.rpartition(": ")[2].startswith(("spikes", "stepped", "saved", "back"))
    ]
    goals = {"checks that failed": Goal(len(checks.failed), 0),
             "values that differ where none may": Goal(sum(exact), 0)}  # fmt: skip
    return Findings({**checks.numbers, "failed": len(checks.failed)}, checks.tables(device), goals)
