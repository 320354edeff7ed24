"""Recurrent layers of torch as products: the input's once, the state's step by step.

A step's products are those of the first one, with its sites and biases, whatever the length.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from isospike.porting.lowering import Lowering, Multiplier, entrywise, matrices

State = tuple[Tensor, ...]
Step = Callable[[Multiplier, Tensor, Sequence[Tensor], State], State]
"""``step(m, input, weights, state)``: a new state, its output first; ``input`` is W_ih x + b_ih."""


def _through(m: Multiplier, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = matrices(m, x, weight.t())
    return y if bias is None else y + bias


def _lstm_step(m: Multiplier, x: Tensor, weights: Sequence[Any], state: State) -> State:
    _, hidden, _, bias, *project = weights
    i, f, g, o = (x + _through(m, state[0], hidden, bias)).chunk(4, -1)
    kept, added = entrywise(m, f.sigmoid(), state[1]), entrywise(m, i.sigmoid(), g.tanh())
    c = kept + added
    h = entrywise(m, o.sigmoid(), c.tanh())
    return (matrices(m, h, project[0].t()) if project else h), c


def _gru_step(m: Multiplier, x: Tensor, weights: Sequence[Any], state: State) -> State:
    _, hidden, _, bias = weights
    a, b, c = x.chunk(3, -1)
    r, z, n = _through(m, state[0], hidden, bias).chunk(3, -1)
    new = (c + entrywise(m, (a + r).sigmoid(), n)).tanh()
    return (new + entrywise(m, (b + z).sigmoid(), state[0] - new),)


def _plain_step(function: Callable[[Tensor], Tensor]) -> Step:
    def step(m: Multiplier, x: Tensor, weights: Sequence[Any], state: State) -> State:
        _, hidden, _, bias = weights
        return (function(x + _through(m, state[0], hidden, bias)),)

    return step


def _layers(step: Step, parts: int) -> Lowering:
    """The lowering of a stack of layers whose state has so many parts."""

    def lowered(
        m: Multiplier,
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        batch_first: Any = None,
    ) -> Any:
        packed = isinstance(hx, Tensor) and not hx.is_floating_point()  # sizes of batches
        if packed or batch_first is None or (train and dropout):
            return NotImplemented
        start = list(hx) if parts > 1 else [hx]
        x = input.transpose(0, 1) if batch_first else input
        ways = 2 if bidirectional else 1
        each = len(params) // (num_layers * ways)
        ends: list[State] = []
        for layer in range(num_layers):
            outputs = []
            for way in range(ways):
                at = layer * ways + way
                weights = list(params[each * at : each * (at + 1)])
                if not has_biases:
                    weights[2:2] = [None, None]
                given = tuple(s[at] for s in start)
                y, end = _unrolled(m, step, x.flip(0) if way else x, weights, given)
                outputs.append(y.flip(0) if way else y)
                ends.append(end)
            x = torch.cat(outputs, -1)
        found = (torch.stack([end[i] for end in ends]) for i in range(parts))
        return (x.transpose(0, 1) if batch_first else x, *found)

    return lowered


def _unrolled(
    m: Multiplier, step: Step, x: Tensor, weights: Sequence[Any], state: State
) -> tuple[Tensor, State]:
    """What one layer gives at each step, and its last state, for ``x [steps, ..., channels]``."""
    read = _through(m, x, weights[0], weights[2])
    outputs = []
    for t in range(len(read)):
        m.begin_step(t == 0)
        state = step(m, read[t], weights, state)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _cell(step: Step, parts: int) -> Lowering:
    """The lowering of one step of one layer."""

    def lowered(
        m: Multiplier,
        input: Tensor,
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state = tuple(hx) if parts > 1 else (hx,)
        weights: list[Any] = [w_ih, w_hh, b_ih, b_hh]
        found = step(m, _through(m, input, w_ih, b_ih), weights, state)
        return found if parts > 1 else found[0]

    return lowered


_STEPS = {
    "lstm": (_lstm_step, 2), "gru": (_gru_step, 1), "rnn_tanh": (_plain_step(torch.tanh), 1),
    "rnn_relu": (_plain_step(torch.relu), 1),
}  # fmt: skip
LOWERINGS: dict[Any, Lowering] = {
    **{getattr(torch, name): _layers(*known) for name, known in _STEPS.items()},
    **{getattr(torch, f"{name}_cell"): _cell(*known) for name, known in _STEPS.items()},
}
"""By function of torch."""
