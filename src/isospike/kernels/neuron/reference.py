"""The recurrence of a spiking neuron, step by step: what every engine must compute."""

from collections.abc import Sequence

import torch
from torch import Tensor

from isospike.surrogate import Surrogate, fire


def run_steps(
    x: Tensor,
    v: Tensor | None,
    params: Sequence[Tensor],
    hard: bool,
    detach: bool,
    surrogate: Surrogate,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Every step of ``x [steps, *shape]`` from the membrane ``v [*shape]``, None at rest.

    (1)  h[t] = decay v[t-1] + gain x[t] + bias
    (2)  s[t] = 1 if h[t] >= threshold else 0
    (3)  v[t] = h[t] - reset s[t]                    by subtraction
         v[t] = (1 - s[t]) h[t] + reset s[t]         to a value (``hard``)

    Each product and sum of (1) is rounded on its own, from left to right, in the parameters' type.

    Args:
        x: Input, floating point.
        v: Membrane.
        params: Decay, gain, bias, threshold and reset, broadcastable to ``shape``, all of the
            membrane's type.
        hard: Whether (3) resets to a value.
        detach: Whether the gradient of (3) ignores that of s.
        surrogate: Gives the gradient of (2).
        dtype: Type of the spikes.

    Returns:
        Spikes ``[steps, *shape]`` and the last membrane ``[*shape]``.
    """
    decay, gain, bias, threshold, reset = params
    if v is None:
        v = torch.zeros(x.shape[1:], dtype=decay.dtype, device=x.device)
    spikes = []
    for current in x.to(decay.dtype):
        h = decay * v + gain * current + bias  # (1)
        s = fire(h - threshold, surrogate)  # (2)
        r = s.detach() if detach else s
        v = (1 - r) * h + reset * r if hard else h - reset * r  # (3)
        spikes.append(s.to(dtype))
    return torch.stack(spikes), v


def integrate_steps(x: Tensor, v: Tensor | None, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The recurrence without its spike: ``v[t] = decay v[t-1] + gain x[t] + bias``, line (1).

    Args:
        x: Input ``[steps, *shape]``.
        v: First value ``[*shape]``; None is 0.
        params: Decay, gain and bias, as for :func:`run_steps`.

    Returns:
        The values of every step ``[steps, *shape]``, and the last.
    """
    decay, gain, bias = params
    if v is None:
        v = torch.zeros(x.shape[1:], dtype=decay.dtype, device=x.device)
    values = []
    for current in x.to(decay.dtype):
        v = decay * v + gain * current + bias
        values.append(v)
    return torch.stack(values), v
