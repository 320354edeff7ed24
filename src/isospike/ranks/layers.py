"""Which modules are the layers of a model, found by running it."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from isospike.errors import UnsupportedError
from isospike.hf.batches import Batch, rows_of
from isospike.porting.axes import Axes, measure_axes
from isospike.ranks.circuits import Circuit, head_circuits
from isospike.ranks.flow import Attention, Flow, Listener, Projected
from isospike.ranks.spikes import followed

MOST_ROWS = 2  # of the batch, in the passes that find the layers

Path = tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The layers of a model.

    Attributes:
        layers: Names of their modules, with the number of channels of the stream; 0 if no product
            tells it.
        axes: Rows and tokens of what each module reads, by its name and the number of its call.
        circuits: Those of each head, by the name of the layer's module and the number of its
            attention.
    """

    layers: Mapping[str, int]
    axes: Mapping[tuple[str, int], Axes]
    circuits: Mapping[tuple[str, int], list[Circuit]]


def plan_of(model: nn.Module, batch: Batch) -> Plan:
    """Find the layers of a model.

    A layer is the innermost module around an attention that has siblings of its class or is one of
    a list; where there is none, the innermost module around attention and projection. A module
    beside such a layer is one too. In a model without attention, layers are the innermost repeated
    modules that multiply.

    Args:
        model: The model, in ``eval`` mode.
        batch: Arguments of its forward.

    Raises:
        UnsupportedError: There is none.
    """
    sample = rows_of(batch, slice(0, MOST_ROWS))
    survey = _Survey(model)
    found: list[_Survey] = []

    def shapes(inputs: Batch) -> dict[str, tuple[int, ...]]:
        survey.run(inputs)
        if not found:
            found.append(survey.copy())
        return {f"{count} {name}": shape for (name, count), shape in survey.shapes.items()}

    try:
        measured = measure_axes(shapes, sample)
    except RuntimeError:  # rows that belong together, such as codebooks of one sound
        measured = measure_axes(shapes, batch)
    axes = {}
    for key, value in measured.items():
        count, _, name = key.partition(" ")
        axes[name, int(count)] = value
    layers, circuits = _layers(model, found[0])
    if not layers:
        raise UnsupportedError(
            f"measure_ranks needs a model with attention or with repeated layers, got a "
            f"{type(model).__name__} with neither. Measure another model."
        )
    return Plan(layers, axes, circuits)


def first_tensor(args: Any, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The first tensor of real numbers that a module was given, by place before by name."""
    named = [kwargs.get("hidden_states"), *kwargs.values()]
    values = [x for x in (*args, *named) if isinstance(x, Tensor) and x.is_floating_point()]
    return next((x for x in values if x.dim() > 1), None)


class _Survey(Listener):
    """Notes where in the tree of modules a model attends and projects.

    Attributes:
        places: The modules around each attention and its projection, outermost first, the number
            of channels that this gives, and the circuits of the heads.
        called: Modules that ran.
        shapes: Of what each module reads, by its name and call.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.places: list[tuple[Path, int, list[Circuit]]] = []
        self.called: dict[str, None] = {}
        self.shapes: dict[tuple[str, int], tuple[int, ...]] = {}
        self._stack: list[str] = []
        self._at: dict[int, Path] = {}

    def copy(self) -> "_Survey":
        """What is known now."""
        found = _Survey(self.model)
        found.places, found.called = [*self.places], dict(self.called)
        return found

    def run(self, batch: Batch) -> None:
        """One pass, forgetting earlier ones."""
        self.places, self.shapes = [], {}
        counts: Counter[str] = Counter()
        flow = Flow(self, (*self.model.parameters(), *self.model.buffers()), maps=False)
        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                enter = module.register_forward_pre_hook(
                    partial(self._enter, name, counts), with_kwargs=True
                )
                leave = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
            stack.enter_context(followed(self.model, flow))
            self._stack = []
            self.model(**batch)

    def _enter(
        self, name: str, counts: Counter[str], module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        self._stack.append(name)
        self.called[name] = None
        counts[name] += 1
        x = first_tensor(args, kwargs)
        if x is not None:
            self.shapes[name, counts[name]] = tuple(x.shape)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._stack.pop()

    def attended(self, attention: Attention) -> None:
        self._at[id(attention)] = tuple(self._stack)

    def projected(self, found: Projected) -> None:
        before = self._at.pop(id(found.attention))
        both = [a for a, b in zip(before, self._stack, strict=False) if a == b]
        self.places.append((tuple(both), found.y.shape[-1], _circuits(found)))


def _circuits(found: Projected) -> list[Circuit]:
    """Those of the heads of an attention."""
    entries = found.maps[0].long()
    weights: list[Tensor | None] = []
    for made in found.attention.operands:
        if made is None:
            weights.append(None)
        else:
            channels = made.channels[entries].flatten().long().to(made.weight.device)
            weights.append(made.weight[:, channels].detach())
    q, k, v = (weights[i] if i < len(weights) else None for i in range(3))
    if q is None or k is None or q.shape != k.shape:
        q = k = None
    if v is not None and v.shape[1] != len(found.weight):
        v = None  # heads that are made of several, as a difference of two is
    weights = [q, k, v]
    return head_circuits(weights, found.weight.detach(), found.heads)


def _layers(
    model: nn.Module, survey: _Survey
) -> tuple[dict[str, int], dict[tuple[str, int], list[Circuit]]]:
    """Number of channels of each layer, and the circuits of each attention of it."""
    alike = _repeated(model)
    layers: dict[str, int] = {}
    circuits: dict[tuple[str, int], list[Circuit]] = {}
    for path, width, heads in survey.places:
        inner = [n for n in path if n in alike]
        listed = [n for n in path if n.rpartition(".")[2].isdigit()]
        name = inner[-1] if inner else listed[0] if listed else path[-1]
        layers[name] = width
        circuits[name, sum(n == name for n, _ in circuits)] = heads
    lists = {n.rpartition(".")[0]: w for n, w in layers.items() if n.rpartition(".")[2].isdigit()}
    for name in survey.called:
        above, _, last = name.rpartition(".")
        if last.isdigit() and above in lists and _multiplies(model.get_submodule(name)):
            layers.setdefault(name, lists[above])
    if not layers:
        several = [n for n in survey.called if n in alike and _multiplies(model.get_submodule(n))]
        layers = {
            n: 0 for n in several if not any(m.startswith(f"{n}.") for m in several)
        }  # fmt: skip
    return layers, circuits


def _repeated(model: nn.Module) -> set[str]:
    """Modules of a list whose members are of one class."""
    lists: dict[str, list[str]] = {}
    modules = dict(model.named_modules())
    for name in modules:
        above, _, last = name.rpartition(".")
        if last.isdigit():
            lists.setdefault(above, []).append(name)
    return {
        name
        for members in lists.values()
        if len({type(modules[m]) for m in members}) == 1
        for name in members
    }


def _multiplies(module: nn.Module) -> bool:
    if not any(True for _ in module.children()):
        return False  # a product alone
    return any(p.dim() > 1 for p in module.parameters())
