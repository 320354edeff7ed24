"""Measure how the output depends on every site's channels, and hand each site its resolution."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from isospike.errors import InputError
from isospike.hf.batches import Batch, first_output, token_masks
from isospike.porting.attention import MAX_INTEGER_GAIN, SpikingAttention
from isospike.porting.axes import Axes
from isospike.porting.ported import Ported
from isospike.porting.run import Run, Watcher
from isospike.porting.sites import Readings, Site
from isospike.porting.water_filling import Allocation, Channels

HUTCHINSON_PROBES = 2  # random directions for each batch


class _Probe(Watcher):
    """Adds a leaf of zeros to whatever a site reads, whose gradient is that of what it read.

    Attributes:
        leaves: By site, a leaf for each call, with 1 where its values are of unpadded tokens.
        sums: By site, sums of values and squares of each channel, and the number of values.
    """

    sees_probabilities = True

    def __init__(self, run: Run, wanted: Mapping[str, Tensor] | None) -> None:
        self.run, self.wanted = run, wanted
        self.readings = Readings()
        self.leaves: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.sums: dict[str, tuple[Tensor, Tensor, float]] = {}

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        leaves = self.leaves.setdefault(site.name, [])
        if self.readings.is_new(site, x):
            live = _live(site, x.detach(), self.run)
            leaves.append((torch.zeros_like(x, requires_grad=True), live))
            total, squares, count = self.sums.get(site.name, (0.0, 0.0, 0.0))
            self.sums[site.name] = (
                total + _over_channels(site, x.detach() * live),
                squares + _over_channels(site, x.detach().square() * live),
                count + float(live.expand_as(x).sum()),
            )
        if self.wanted is not None:
            a = self.wanted[site.name].to(x)
            a = a.clamp(max=1.0) if site.kind == "probability" else a
            rounded = torch.where(a.isinf(), x, (x / a).round() * a)
            x = x + (rounded - x).detach()
        return x + leaves[-1][0]

    def square_gradients(
        self, y: Tensor, keep: Tensor, sites: Mapping[str, Site], seed: int
    ) -> Iterator[tuple[str, Tensor]]:
        """Sums of the square gradients of each site's channels, for some random directions of y."""
        generator = torch.Generator().manual_seed(seed)
        calls = [(name, *call) for name, found in self.leaves.items() for call in found]
        for draw in range(HUTCHINSON_PROBES):
            v = torch.randn(y.shape, generator=generator).to(y.device) * keep
            gradients = torch.autograd.grad(
                y, [leaf for _, leaf, _ in calls], v,
                retain_graph=draw < HUTCHINSON_PROBES - 1, allow_unused=True,
            )  # fmt: skip
            for (name, _, live), g in zip(calls, gradients, strict=True):
                if g is not None:  # a head that the output does not read has none
                    yield name, _over_channels(sites[name], g.square() * live)


def measure_channels(
    opened: Ported, batches: Sequence[Batch], wanted: Mapping[str, Tensor] | None = None
) -> dict[str, Channels]:
    """Sensitivity and variance of every channel, by Hutchinson's estimate.

    For v standard normal, ``E (d(v . y) / dx)^2`` is the squared norm of dy / dx: one gradient is
    an estimate for every value of every site at once. Sums over tokens give each channel's.

    Args:
        opened: A discovered model, in the float phase.
        batches: Its inputs.
        wanted: Round to these amplitudes on the way, so that gradients are those of the model as
            it will run: a saturated softmax has none until its scores move.

    Returns:
        By site, in order of execution.

    Raises:
        InputError: The output depends on no site.
    """
    by_name = {site.name: site for site in opened.sites}
    gradient = {n: torch.zeros(s.offset.shape, dtype=torch.float64) for n, s in by_name.items()}
    first, second = ({n: torch.zeros_like(g) for n, g in gradient.items()} for _ in range(2))
    count = dict.fromkeys(by_name, 0.0)
    power = tokens = 0.0
    for i, batch in enumerate(batches):
        masks = token_masks(batch)
        probe = _Probe(opened.run, wanted)
        with torch.enable_grad(), opened.run.watching(probe, masks):
            y = first_output(opened.model(**batch))
        for name, (total, squares, values) in probe.sums.items():
            first[name] += total.cpu()
            second[name] += squares.cpu()
            count[name] += values
        mask = opened.run.axes.get("", Axes(0)).mask(masks, y)
        keep = torch.ones_like(y) if mask is None else mask.to(y).expand_as(y)
        power += float((y.detach().double() * keep).square().sum())
        tokens += float(keep[..., 0].sum())
        for name, squares in probe.square_gradients(y, keep, by_name, seed=i):
            gradient[name] += squares.cpu() / HUTCHINSON_PROBES
    measured = {}
    for name, site in by_name.items():
        if not count[name]:
            continue
        each = count[name] / max(1, site.offset.numel())
        variance = (second[name] / each - (first[name] / each).square()).clamp_min(0)
        if site.kind == "probability":
            variance = second[name] / each  # it rests at 0
        measured[name] = Channels(gradient[name] / max(power, 1e-300), variance, each / tokens)
    if not any(bool((c.sensitivity > 0).any()) for c in measured.values()):
        raise InputError(
            "port needs an output that depends on the inputs of its products for per_channel, got "
            "gradients of 0 everywhere. Leave per_channel out, or check the model."
        )
    return measured


def max_sensitivity(a: Mapping[str, Channels], b: Mapping[str, Channels]) -> dict[str, Channels]:
    """The larger sensitivity of each channel: two places where the model was measured."""
    return {
        name: Channels(torch.maximum(x.sensitivity, b[name].sensitivity), x.variance, x.values)
        for name, x in a.items()
    }


def assign_amplitudes(ported: Ported, allocation: Allocation) -> None:
    """Have every site take an allocation's amplitudes when its range is fitted.

    A site that the first output does not depend on, a pooler say, keeps the code it has: another
    output may depend on it.

    Args:
        ported: A fresh port whose sites have the longest code that they may have.
        allocation: Its amplitudes by site.
    """
    for site in ported.sites:
        amplitude = allocation.amplitude.get(site.name)
        silent = amplitude is None or bool(amplitude.isinf().all())
        site.wanted = None if silent else amplitude
    for module in ported.products:
        if isinstance(module, SpikingAttention):
            _balance(module)


def _balance(attention: SpikingAttention) -> None:
    """Bring the products of query's and key's amplitudes within what their integer gain can span.

    A head's largest product is 15 of its units; a product under two of them would be rounded up by
    more than half, so the largest ones are lowered, which costs few spikes.
    """
    query, key = attention.query.wanted, attention.key.wanted
    if query is None or key is None:
        return
    product = query * key.repeat_interleave(len(query) // len(key), 0)
    least = product.amin(-1, keepdim=True)
    excess = (product / (least * MAX_INTEGER_GAIN / 2)).clamp_min(1)
    attention.query.wanted = torch.where(least.isinf(), query, query / excess)


def _over_channels(site: Site, x: Tensor) -> Tensor:
    """Sum over all axes but the site's channels, in the shape of its offset."""
    shape = site.offset.shape
    skipped = x.dim() - len(shape)
    axes = [d for d in range(x.dim()) if d < skipped or shape[d - skipped] == 1]
    return x.sum(axes, dtype=torch.float64).view(shape)


def _live(site: Site, x: Tensor, run: Run) -> Tensor:
    """1 where a value belongs to an unpadded token, broadcastable to ``x``."""
    if site.kind == "probability":
        return (x > 0).to(x.dtype)
    mask = run.mask_at(site.name, x)
    return x.new_ones(()) if mask is None else mask.to(x.dtype)
