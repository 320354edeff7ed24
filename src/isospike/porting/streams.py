"""The inputs that a model reads side by side: text of an encoder and a decoder, images, sound.

A stream of tokens is known by the prefix of its arguments, any other by its argument.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from isospike.hf.batches import Batch, batch_size, streams, token_masks
from isospike.porting.axes import Axes

_MEDIA = {"pixel": "image", "input_features": "sound", "input_values": "sound"}
_TOKENS = ("", "decoder_", "encoder_")


@dataclass(frozen=True)
class Streams:
    """Which stream each tensor of a model belongs to.

    Attributes:
        of: Stream by name of the site, of the output (``->`` before it) or, named "", of the first
            output; None for what is made of several.
        names: What a stream is called, in the order in which they are read; fewer than two for
            models with one input.
    """

    of: Mapping[str, str | None]
    names: Mapping[str, str]

    @property
    def several(self) -> bool:
        """Whether there are at least two."""
        return len(self.names) > 1

    @property
    def first(self) -> str | None:
        """That of the first output; None if it is made of several."""
        return self.of.get("")

    def count(self, batch: Batch, padding: bool = False) -> int:
        """Positions of the first output in a batch; its rows if it is made of several streams.

        Args:
            batch: The batch.
            padding: Whether padding counts too.
        """
        if self.first is None:
            return batch_size(batch)
        return positions(batch, self.first, padding)

    def output(self, stream: str) -> str | None:
        """Name of the first output that is made of a stream alone; None if there is none."""
        named = (name for name, s in self.of.items() if name.startswith("->") and s == stream)
        return next((name.removeprefix("->") for name in named), None)

    def name_at(self, site: str) -> str:
        """What the stream of a site is called; empty if it is made of several."""
        found = self.of.get(site)
        return "" if found is None or not self.several else self.names.get(found, "")


def media(batch: Batch) -> list[str]:
    """The arguments that hold images or sound."""
    return [k for k, v in batch.items() if k.startswith(tuple(_MEDIA)) and isinstance(v, Tensor)
            and v.is_floating_point()]  # fmt: skip


def changed_inputs(batch: Batch) -> dict[str, dict[str, object]]:
    """The batch with other images, other sound, and other tokens, by stream; of models that read
    images or sound beside something else."""
    found: dict[str, dict[str, object]] = {}
    draw = torch.Generator().manual_seed(0)
    for key in media(batch):
        x = batch[key]
        noise = torch.randn(x.shape, generator=draw).to(x)
        found[key] = {**batch, key: x + noise * x.std(correction=0).clamp_min(1e-3)}
    for prefix in streams(batch):
        key = f"{prefix}input_ids"
        if isinstance(batch.get(key), Tensor):
            found[prefix] = {**batch, key: batch[key].flip(0).roll(1, -1)}
    return found if media(batch) and len(found) > 1 else {}


def assign(
    axes: Mapping[str, Axes], changes: Mapping[str, Iterable[str]], order: Iterable[str]
) -> Streams:
    """The streams of a model.

    Args:
        axes: Of its sites and outputs.
        changes: By stream, what is another where its input is.
        order: The streams of a batch.
    """
    of: dict[str, str | None] = {}
    by_input = {stream: set(names) for stream, names in changes.items()}
    for name, at in axes.items():
        made_of = [s for s, names in by_input.items() if name in names]
        if at.tokens is not None or not by_input:
            of[name] = at.stream
        else:
            of[name] = made_of[0] if len(made_of) == 1 else None
    sites = {s for name, s in of.items() if s is not None and not name.startswith("->")}
    present = [s for s in order if s in sites]
    pair = "decoder_" in present and "" in present
    names = {s: _name(s, pair) for s in present}
    return Streams(of, names)


def positions(batch: Batch, stream: str, padding: bool = False) -> int:
    """Unpadded tokens of a stream in a batch; its images, or recordings.

    Args:
        batch: The batch.
        stream: Its prefix or argument.
        padding: Whether padding counts too.
    """
    if stream not in _TOKENS:
        x = batch.get(stream)
        return 0 if not isinstance(x, Tensor) else len(x) * (x.shape[1] if x.dim() == 5 else 1)
    mask = token_masks(batch).get(stream)
    if mask is not None:
        return mask.numel() if padding else int(mask.sum())
    ids = batch.get(f"{stream}input_ids")
    if isinstance(ids, Tensor):
        return ids.numel()
    embedded = batch.get(f"{stream}inputs_embeds")
    return embedded.shape[:-1].numel() if isinstance(embedded, Tensor) else 0


def unit(stream: str) -> str:
    """What a stream's figures are given for."""
    return {"image": "image", "sound": "recording"}.get(_name(stream, False), "token")


def _name(stream: str, pair: bool) -> str:
    if stream in ("decoder_", "encoder_"):
        return stream.removesuffix("_")
    if stream == "":
        return "encoder" if pair else "text"
    return next((name for start, name in _MEDIA.items() if stream.startswith(start)), stream)
