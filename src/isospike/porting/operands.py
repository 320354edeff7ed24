"""What the operand of a product is, by its values: binary, whole, on a grid, or real."""

import torch
from torch import Tensor

LARGEST_INTEGER = 2**24  # float32 counts exactly up to here
MOST_LEVELS = 2**16  # a graded operand has at most this many levels per channel
FEWEST_ROWS = 8  # fewer samples per channel cannot tell a grid from real values


def counts_spikes(x: Tensor) -> bool:
    """Whether all values are 0 or one other, or multiples of one power of two up to 65,536."""
    if not x.is_floating_point():
        return not x.is_complex()
    x = x.detach().double()
    if not bool(x.isfinite().all()):
        return False
    if _constant(x[x != 0]):
        return True
    fraction, _ = torch.frexp(x)
    # The lowest bit of each value: below it, all are multiples.
    whole = (fraction * 2**53).long()
    lowest = torch.ldexp((whole & -whole).double() * 2.0**-53, torch.frexp(x)[1])[x != 0].min()
    return float(x.abs().max() / lowest) <= MOST_LEVELS


def operand_kind(x: Tensor, contraction: int) -> str:
    """``binary``, ``integer``, ``graded`` or ``float``, by the values of ``x``.

    A channel is one index of the contraction axis (per batch entry of a batched product): a weight
    can absorb its scale, so scales may differ between channels, not within one.
    """
    x = x.detach()
    if x.numel() == 0 or bool(((x == 0) | (x == 1)).all()):
        return "binary"
    x = x.double()
    if not bool(x.isfinite().all()):
        return "float"
    if x.numel() >= FEWEST_ROWS and _constant(x[x != 0]):
        return "binary"
    whole = bool((x == x.round()).all()) and float(x.abs().max()) < LARGEST_INTEGER
    channels = _by_channel(x, contraction)
    if channels.shape[1] >= FEWEST_ROWS:
        nonzero = channels != 0
        top = channels.masked_fill(~nonzero, -torch.inf).amax(1)
        bottom = channels.masked_fill(~nonzero, torch.inf).amin(1)
        if bool(((top == bottom) | ~nonzero.any(1)).all()):
            return "binary"
    if whole:
        return "integer"
    if channels.shape[1] < FEWEST_ROWS:
        return "float"
    return "graded" if _on_grid(channels) else "float"


def _constant(x: Tensor) -> bool:
    return x.numel() == 0 or bool(x.min() == x.max())


def _by_channel(x: Tensor, contraction: int) -> Tensor:
    """``[channels, rows]``: batched products keep their batch entries apart."""
    if x.dim() == 3 and contraction in (-1, -2):
        x = x.movedim(contraction, 1)
        return x.reshape(-1, x.shape[-1])
    return x.movedim(contraction, 0).reshape(x.shape[contraction], -1)


def _on_grid(channels: Tensor) -> bool:
    """Whether each channel is an integer multiple of one step, up to float32 rounding."""
    ordered = channels.sort(1).values
    gaps = ordered.diff(dim=1)
    size = ordered.abs().amax(1, keepdim=True).clamp_min(1e-300)
    gaps = gaps.masked_fill(gaps <= 1e-6 * size, torch.inf)
    smallest = gaps.amin(1, keepdim=True)
    fits = smallest[:, 0].isinf()
    above = ordered - ordered[:, :1]
    for divisor in range(1, 9):  # no two of the sample's levels may be neighbours
        # A gap is rounded, and hundreds of them add up: it only says how many fit the whole range.
        levels = (above[:, -1:] / (smallest / divisor)).round()
        multiple = above * (levels / above[:, -1:])
        whole = ((multiple - multiple.round()).abs() < 0.02).all(1)
        fits |= whole & (levels[:, 0] <= MOST_LEVELS)
    return bool(fits.all())
