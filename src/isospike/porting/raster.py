"""The spikes of one real input."""

from typing import Any

import torch
from torch import Tensor

from isospike.hf.batches import Batch, token_masks
from isospike.kernels.product.trains import spike_steps
from isospike.porting.measure import mask_at
from isospike.porting.ported import Ported
from isospike.porting.records import Raster
from isospike.porting.run import Watcher
from isospike.porting.sites import Site

RASTER_NEURONS = 40  # ON neurons shown


class _FirstLinear(Watcher):
    """Keeps what entered the first linear site."""

    def __init__(self) -> None:
        self.seen: list[tuple[Site, Tensor]] = []

    def on_site(self, site: Site, x: Tensor, **_: Any) -> None:
        if site.kind == "linear" and x.dim() == 3 and not self.seen:
            self.seen.append((site, x))


def record_raster(ported: Ported, row: Batch) -> Raster | None:
    """The spikes of the first row of a batch at the model's first linear site."""
    watcher = _FirstLinear()
    with torch.no_grad(), ported.run.watching(watcher, token_masks(row)):
        ported.model(**row)
    seen = watcher.seen
    if not seen:
        return None
    site, x = seen[0]
    mask = mask_at(ported.run, site, x)
    kept = slice(None) if mask is None else mask.expand(*x.shape[:-1], 1)[0, :, 0]
    shown = min(RASTER_NEURONS, x.shape[-1])
    trains = site.trains(x).value[:, 0, kept, :shown]
    fired = [step.spikes != 0 for step in spike_steps(site.code, trains)]
    spikes = torch.stack(fired).view(site.code.steps, -1, *fired[0].shape)  # [steps, neurons, ...]
    ids = _ids_of(row, x)
    return Raster(
        text=f"first held-back input of {x.shape[1]} tokens",
        site=site.name,
        tokens=tuple(str(i) for i in range(spikes.shape[2])),
        token_ids=None if ids is None else tuple(ids[kept].tolist()),
        neurons=shown * site.code.neurons,
        steps=site.code.steps,
        spikes=tuple(
            (token, step, sign * shown + neuron)
            for step, sign, token, neuron in spikes.nonzero().tolist()
        ),
    )


def _ids_of(row: Batch, x: Tensor) -> Tensor | None:
    """The numbers of the tokens that ``x`` holds, if it holds those."""
    ids = row.get("input_ids")
    return ids[0] if isinstance(ids, Tensor) and ids.shape == x.shape[:2] else None
