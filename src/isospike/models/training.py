"""The training loop of the models: AdamW, warm-up and linear decay, checkpoints.

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

from isospike.errors import InputError, RangeError
from isospike.report.files import write_file

IGNORE = -100
"""Target of a position that is not scored."""

FORMAT = 1

Batches = Callable[[torch.Generator], tuple[Tensor, Tensor]]


@dataclass
class History:
    """The course of a training run.

    Attributes:
        bits: Cross-entropy of each step's batch, bits per scored position.
        watched: ``(steps done, value)`` of each call of ``watch``.

    >>> History([3.1, 2.9], [(2, 0.4)]).bits[-1]
    2.9
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
        steps: Number of steps, those of a checkpoint included.
        rate: The largest learning rate.
        generator: Draws the batches, and whatever else in the model uses it.
        watch: Called in ``eval`` mode after every ``every`` steps and the last.
        every: Steps between two calls of ``watch``.
        checkpoint: File to resume from if it exists, written every ``save_every`` steps.
        save_every: Steps between two checkpoints.

    Returns:
        The cross-entropy of each step, and the values of ``watch``.

    Raises:
        RangeError: ``steps``, ``rate`` or ``every`` out of range, or the loss is not finite.
        InputError: The checkpoint is of another model or run, or damaged.

    >>> def draw(generator):
    ...     x = torch.randn(8, 4, generator=generator)
    ...     return x, (x[:, 0] > 0).long()
    >>> history = train(
    ...     nn.Linear(4, 2), draw, steps=3, rate=0.01, generator=torch.Generator().manual_seed(0)
    ... )
    >>> len(history.bits)
    3
    """
    for name, value in {"steps": steps, "every": every, "save_every": save_every}.items():
        if value < 1:
            raise RangeError(f"train needs {name} >= 1, got {value}. Give a positive number.")
    if not 0 < rate < math.inf:
        raise RangeError(f"train needs a rate above 0, got {rate}. Use 0.001.")
    run = _Run(model, generator, steps, rate)
    if checkpoint is not None and checkpoint.exists():
        run.load(checkpoint)
    history = run.history
    model.train()
    for step in range(len(history.bits), steps):
        run.step(*batches(generator))
        done = step + 1
        if watch is not None and (done % every == 0 or done == steps):
            model.eval()
            with torch.no_grad():
                history.watched.append((done, watch(model)))
            model.train()
        if checkpoint is not None and (done % save_every == 0 or done == steps):
            run.save(checkpoint)
    model.eval()
    return history


class _Run:
    """A training run: one step at a time, saved and resumed."""

    def __init__(
        self, model: nn.Module, generator: torch.Generator, steps: int, rate: float
    ) -> None:
        self.model, self.generator, self.steps, self.rate = model, generator, steps, rate
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, weight_decay=0.0, fused=True
        )
        self.history = History()

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        step, warm = len(self.history.bits), math.ceil(self.steps / 20)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(
                (step + 1) / warm, (self.steps - step) / max(1, self.steps - warm)
            )  # (1)
        logits = self.model(inputs).flatten(0, -2)
        loss = cross_entropy(logits, targets.flatten(), ignore_index=IGNORE)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        bits = loss.item() / math.log(2)
        self.history.bits.append(bits)
        if not math.isfinite(bits):
            raise RangeError(
                f"train needs a finite loss, got {bits} at step {step}. Lower the rate."
            )

    def save(self, path: Path) -> None:
        from safetensors.torch import save

        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        tensors["generator"] = self.generator.get_state()
        about = {
            "format": FORMAT, "steps": self.steps, "rate": self.rate, "bits": self.history.bits,
            "watched": self.history.watched,
        }  # fmt: skip
        packed = {name: t.contiguous().clone() for name, t in tensors.items()}
        write_file(path, save(packed, metadata={"isospike": json.dumps(about)}))

    def load(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["isospike"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            saved, own = (about["format"], about["steps"], about["rate"]), (self.steps, self.rate)
            if saved != (FORMAT, *own):
                raise InputError(
                    f"train needs a checkpoint of {self.steps} steps at rate {self.rate:g}, got "
                    f"one of {about['steps']} at {about['rate']:g} in {path}. Remove it, or name "
                    "another."
                )
            prefix = "model."
            state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            self.model.load_state_dict(state)
            for name, parameter in self.model.named_parameters():
                keys = ("step", "exp_avg", "exp_avg_sq")
                held = {key: tensors[f"{key}.{name}"] for key in keys if f"{key}.{name}" in tensors}
                if held:
                    self.optimizer.state[parameter] = held
            self.generator.set_state(tensors["generator"])
        except (SafetensorError, KeyError, RuntimeError, json.JSONDecodeError) as error:
            raise InputError(
                f"train needs a checkpoint of this model, got {path} "
                f"({' '.join(str(error).split())[:120]}). Remove it, or name another."
            ) from error
        watched = [(int(n), float(v)) for n, v in about["watched"]]
        self.history = History(about["bits"], watched)
