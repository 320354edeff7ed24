"""What calibration needs to know of a model's activations: one float pass, a sample of each site.

Which rows are kept depends on the batch and on the tokens of those before it, not on what else was
seen, and the extremes of every channel are kept whatever the rows.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from isospike import progress
from isospike.errors import InputError, IsospikeError
from isospike.hf.batches import Batch, count_tokens, token_masks
from isospike.porting import parallel
from isospike.porting.blocks import OutOfOrderError, in_step, without_cache
from isospike.porting.fidelity import same_draws
from isospike.porting.gains import fit_scales
from isospike.porting.ranges import Range, lower_median
from isospike.porting.run import Run, Watcher
from isospike.porting.sites import HEADS, OPERANDS, Readings, Site

MOST_ROWS = 2048  # rows kept of one site, about
GOLDEN = (5**0.5 - 1) / 2
MOST_IMAGES = 16  # inputs kept of a convolution
ONE_SIDED = 0.25  # the narrower side of a one-sided site over the wider one, on average


def _run(model: nn.Module, batch: Batch, number: int) -> None:
    try:
        model(**batch)
    except (IsospikeError, OutOfOrderError):
        raise
    except (ValueError, RuntimeError, IndexError, TypeError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"port needs batches that the model takes, got calibration batch {number}: {first}. "
            "Leave it out, or mend it."
        ) from error


@dataclass
class Sample:
    """Some of the values that reached a site or a circuit, and the extremes of all of them.

    Attributes:
        parts: Rows, ``[rows, *groups, channels]``, in parts, by the number of their batch.
        images: Inputs of a convolution, ``[batch, channels, height, width]``, in parts, by the
            number of their batch.
        high, low: Largest and smallest value of each channel, over all rows.
        counts: Rows seen of each batch, with the number of the first and the share to keep.
        most: Rows to keep, about.
    """

    parts: dict[int, list[Tensor]] = field(default_factory=dict)
    images: dict[int, list[Tensor]] = field(default_factory=dict)
    high: Tensor | None = None
    low: Tensor | None = None
    counts: dict[int, tuple[int, int, float]] = field(default_factory=dict)
    most: int = MOST_ROWS

    def add(self, rows: Tensor, batch: int, before: float, total: float) -> None:
        """Take note of rows, and keep some of them: those whose number times the golden ratio has a
        fraction below the share, which spreads them evenly and meets no period.

        Args:
            rows: They.
            batch: Number of their batch.
            before: Tokens of the batches before it, over those of the batch.
            total: Tokens of all batches, likewise.
        """
        if not len(rows):
            return
        high, low = rows.amax(0), rows.amin(0)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.low = low if self.low is None else torch.minimum(self.low, low)
        share = min(1.0, self.most / max(1.0, len(rows) * total))
        seen, first, share = self.counts.get(batch, (0, round(len(rows) * before), share))
        place = torch.arange(first + seen, first + seen + len(rows), dtype=torch.float64)
        self.counts[batch] = seen + len(rows), first, share
        kept = rows[(place * GOLDEN % 1 < share).to(rows.device)]
        self.parts.setdefault(batch, []).append(kept)

    def add_images(self, images: Tensor, batch: int) -> None:
        """Keep some inputs of a convolution: the first ones, of the size of the very first.

        Args:
            images: They.
            batch: Number of their batch.
        """
        kept = [each for parts in self.images.values() for each in parts]
        if not kept or kept[0].shape[1:] == images.shape[1:]:
            few = images[: max(0, MOST_IMAGES - sum(map(len, kept)))]
            self.images.setdefault(batch, []).append(few)

    @property
    def first_images(self) -> Tensor:
        """The inputs that were kept."""
        every = [each for batch in sorted(self.images) for each in self.images[batch]]
        alike = [each for each in every if each.shape[1:] == every[0].shape[1:]]
        return torch.cat(alike)[:MOST_IMAGES]

    def include(self, other: "Sample") -> None:
        """Add what another process has seen, of other batches.

        Args:
            other: Of the same site; it is not changed.
        """
        self.parts.update(other.parts)
        self.images.update(other.images)
        self.counts.update(other.counts)
        if other.high is not None and other.low is not None:
            self.high = other.high if self.high is None else torch.maximum(self.high, other.high)
            self.low = other.low if self.low is None else torch.minimum(self.low, other.low)

    @property
    def rows(self) -> Tensor:
        """The rows that were kept."""
        parts = [part for batch in sorted(self.parts) for part in self.parts[batch]]
        if len(parts) > 1:
            self.parts = {min(self.parts): [torch.cat(parts)]}
        return self.parts[min(self.parts)][0]

    def some(self, count: int) -> Tensor:
        """About so many of them, or all if there are fewer."""
        rows = self.rows
        place = torch.arange(len(rows), dtype=torch.float64)
        chosen = place * GOLDEN % 1 < count / max(1, len(rows))
        return rows[chosen.to(rows.device)]

    @property
    def extremes(self) -> Tensor:
        """The largest and the smallest value of each channel, ``[2, *channels]``."""
        return torch.stack([self.high, self.low])  # type: ignore[list-item]

    @property
    def with_extremes(self) -> Tensor:
        """The rows, and one row of each channel's largest and one of its smallest values."""
        rows = self.rows
        return torch.cat([rows, self.extremes.to(rows)])


class NotReachedError(InputError):
    """The calibration inputs did not reach a product."""


class Statistics:
    """Samples of every site and circuit of a model, from one float pass over its inputs.

    Args:
        model: A discovered model, in the float phase.
        run: Its state.
        batches: The calibration inputs; each is run as it is, padded to its own longest row.
        blocks: Names of the model's blocks.
        finished: Told the name of a block that all inputs have left, with the samples so far, of
            which it may drop some. Told the empty name at the end.

    Attributes:
        samples: By name of the site; by ``<module>/<part>`` of a circuit.

    Raises:
        InputError: NaN or infinity at a site, which is named.
        OutOfOrderError: A batch runs the blocks in another order.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        batches: Sequence[Batch],
        blocks: Sequence[str] = (),
        finished: "Callable[[str, Statistics], None]" = lambda *_: None,
    ) -> None:
        self.samples: dict[str, Sample] = {}
        self._ranges: dict[str, Range] = {}
        tokens = [max(1, count_tokens(batch)) for batch in batches]
        parts = len(blocks) or len(batches)

        def pass_of(number: int) -> None:
            if not blocks:
                progress.update("calibrate", number, parts)
            before, total = (sum(t) / tokens[number] for t in (tokens[:number], tokens))
            watcher = Seen(run, self.samples, number, before, total)
            batch = batches[number]
            with torch.no_grad(), same_draws(), run.watching(watcher, token_masks(batch)):
                _run(model, batch, number)

        def told(number: int) -> None:
            progress.update("calibrate", number, parts)
            finished(blocks[number], self)

        passes = [partial(pass_of, number) for number in parallel.own(len(batches))]
        parts_of_model = [(model.get_submodule(name),) for name in blocks]
        with without_cache(model):
            parallel.together(partial(in_step, [run], parts_of_model, passes, told))
        self._join()
        finished("", self)
        progress.update("calibrate", parts, parts)

    def _join(self) -> None:
        """Add what the other processes have seen."""
        if parallel.processes() == 1:
            return
        every, self.samples = parallel.from_all(self.samples), {}
        for samples in every:
            for name, sample in samples.items():
                self.samples.setdefault(name, Sample()).include(sample)

    def sample(self, name: str) -> Sample:
        """What was seen of a site or a circuit.

        Raises:
            NotReachedError: The calibration inputs did not reach it.
        """
        if name not in self.samples:
            raise NotReachedError(
                f"port needs calibration inputs that reach every product, got none for {name}. Add "
                "inputs that use it."
            )
        return self.samples[name]

    def drop(self, names: Iterable[str]) -> None:
        """Forget what was seen of some sites or circuits."""
        for name in list(names):
            self.samples.pop(name, None)
            self._ranges.pop(name, None)

    def dynamic_range(self, name: str, weight: Tensor, evenness: float = 0.0) -> Range:
        """Offsets and scales of a site whose gain follows its input; they hold for every code."""
        if name not in self._ranges:
            self._ranges[name] = fit_scales(self.sample(name).rows, weight, evenness)
        return self._ranges[name]

    def one_sided(self, site: Site) -> bool:
        """Whether nearly all of a site's range lies on one side of where its values rest."""
        sample = self.samples.get(site.name)
        if site.kind not in ("linear", "left") or sample is None:
            return False
        middle, (high, low) = lower_median(sample.rows.t()), sample.extremes
        up, down = high - middle, middle - low
        return bool(torch.minimum(up, down).mean() < ONE_SIDED * torch.maximum(up, down).mean())


class Seen(Watcher):
    """Takes note of what one batch shows.

    Args:
        run: State of the model.
        samples: To add to.
        number: Of the batch.
        before, total: See :meth:`Sample.add`.
        most: Rows to keep of a site, about.
    """

    def __init__(
        self, run: Run, samples: dict[str, Sample], number: int, before: float, total: float,
        most: int = MOST_ROWS,
    ) -> None:  # fmt: skip
        self._run, self.samples, self._most = run, samples, most
        self._place = number, before, total
        self._readings = Readings()

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        if self._readings.is_new(site, x):
            if site.kind == "conv":
                self._sample(site.name).add_images(x, self._place[0])
                self._add(site.name, x.movedim(1, -1).flatten(0, -2))
            else:
                self.take(site, x)
        return x

    def take(self, site: Site, x: Tensor) -> None:
        """Take note of what a site reads.

        Args:
            site: Of no convolution.
            x: What enters.
        """
        self._add(site.name, self._rows(site, x))

    def _rows(self, site: Site, x: Tensor) -> Tensor:
        """Unpadded tokens, ``[rows, channels]`` or, in attention, ``[rows, heads, channels]``."""
        mask = self._run.mask_at(site.name, x)
        if mask is not None and mask.shape[-1] > 1:  # tokens are what is summed over
            mask = None
        valid = None if mask is None else mask.expand(*x.shape[:-1], 1)
        if site.kind in HEADS:
            x, valid = x.transpose(1, 2), None if valid is None else valid[:, 0]
            valid = None if valid is None else valid[..., 0]
            return x.flatten(0, 1) if valid is None else x[valid]
        x = x.reshape(-1, x.shape[-1]) if valid is None else x[valid[..., 0]]
        return x.reshape(-1, 1) if site.kind in OPERANDS else x

    def on_values(self, name: str, x: Tensor) -> None:
        self._add(name, self._run.rows(x, name))

    def _sample(self, name: str) -> Sample:
        return self.samples.setdefault(name, Sample(most=self._most))

    def _add(self, name: str, rows: Tensor) -> None:
        if not bool(rows.isfinite().all()):
            raise InputError(
                f"port needs finite activations, got NaN or infinity at {name}. Check the "
                "model's weights and inputs."
            )
        self._sample(name).add(rows.detach(), *self._place)
