"""The training loop of the models: AdamW, warm-up and straight decay, checkpoints to go on from.

(1)  rate(n) = rate * min((n + 1) / warm, (steps - n) / (steps - warm)), warm = ceil(steps / 20)

Gradients are clipped to norm 1. Runs of equal generators are equal, interrupted or not.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from isospike.errors import IsospikeError, RangeError
from isospike.report.files import write_file

IGNORE = -100
"""Target of a position that is not scored."""

FORMAT = 1

Batches = Callable[[torch.Generator], tuple[Tensor, Tensor]]


@dataclass
class History:
    """What a training run has seen.

    Attributes:
        bits: Cross-entropy of each step's batch, bits per scored position.
        watched: ``(steps done, value)`` of what was watched.
    """

    bits: list[float] = field(default_factory=list)
    watched: list[tuple[int, float]] = field(default_factory=list)


def train(
    model: nn.Module,
    batches: Batches,
    steps: int,
    rate: float,
    *,
    generator: torch.Generator,
    watch: Callable[[nn.Module], float] | None = None,
    every: int = 25,
    checkpoint: Path | None = None,
    save_every: int = 200,
) -> History:
    """Train ``model`` so that ``model(inputs)`` gives the targets.

    Args:
        model: Gives logits ``[..., classes]``; changed in place.
        batches: Draws inputs and targets ``[...]`` from the generator it is given; targets of
            :data:`IGNORE` are not scored.
        steps: In all, those of a checkpoint included.
        rate: The largest learning rate.
        generator: Draws the batches, and whatever else in the model uses it.
        watch: Called in ``eval`` mode after every ``every`` steps and the last.
        every: Steps between two looks.
        checkpoint: File to go on from if it is there, and to write every ``save_every`` steps.
        save_every: Steps between two checkpoints.

    Raises:
        RangeError: ``steps``, ``rate`` or ``every`` out of range, or the loss is not a number.
        IsospikeError: The checkpoint is of another model or run, or cut short.
    """
    for name, value in {"steps": steps, "every": every, "save_every": save_every}.items():
        if value < 1:
            raise RangeError(f"train needs {name} >= 1, got {value}.")
    if not 0 < rate < math.inf:
        raise RangeError(f"train needs a rate above 0, got {rate}.")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0, fused=True)
    history = History()
    if checkpoint is not None and checkpoint.exists():
        history = _resume(checkpoint, model, optimizer, generator, steps, rate)
    warm = math.ceil(steps / 20)
    model.train()
    for step in range(len(history.bits), steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(
                (step + 1) / warm, (steps - step) / max(1, steps - warm)
            )  # (1)
        inputs, targets = batches(generator)
        loss = cross_entropy(model(inputs).flatten(0, -2), targets.flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.bits.append(loss.item() / math.log(2))
        if not math.isfinite(history.bits[-1]):
            raise RangeError(
                f"train needs a finite loss, got {history.bits[-1]} at step {step}. Lower the rate."
            )
        done = step + 1
        if watch is not None and (done % every == 0 or done == steps):
            model.eval()
            with torch.no_grad():
                history.watched.append((done, watch(model)))
            model.train()
        if checkpoint is not None and (done % save_every == 0 or done == steps):
            _save(checkpoint, model, optimizer, generator, history, steps, rate)
    model.eval()
    return history


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    history: History,
    steps: int,
    rate: float,
) -> None:
    from safetensors.torch import save

    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = value
    tensors["generator"] = generator.get_state()
    about = {
        "format": FORMAT, "steps": steps, "rate": rate, "bits": history.bits,
        "watched": history.watched,
    }  # fmt: skip
    packed = {name: t.contiguous().clone() for name, t in tensors.items()}
    write_file(path, save(packed, metadata={"isospike": json.dumps(about)}))


def _resume(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    steps: int,
    rate: float,
) -> History:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["isospike"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (about["format"], about["steps"], about["rate"]) != (FORMAT, steps, rate):
            raise IsospikeError(
                f"train needs a checkpoint of {steps} steps at rate {rate:g}, got one of "
                f"{about['steps']} at {about['rate']:g} in {path}. Remove it, or name another."
            )
        state = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        model.load_state_dict(state)
        for name, parameter in model.named_parameters():
            keys = ("step", "exp_avg", "exp_avg_sq")
            held = {key: tensors[f"{key}.{name}"] for key in keys if f"{key}.{name}" in tensors}
            if held:
                optimizer.state[parameter] = held
        generator.set_state(tensors["generator"])
    except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        raise IsospikeError(
            f"train needs a checkpoint of this model, got {path} "
            f"({' '.join(str(error).split())[:120]}). Remove it, or name another."
        ) from error
    return History(about["bits"], [(int(n), float(v)) for n, v in about["watched"]])
