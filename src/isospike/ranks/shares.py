"""What each head, each MLP and the embedding add: to their layer's stream, and to a logit.

(1)  attention's output  = sum_h z^h W_O^h + bias
(2)  stream at the end   = embedding + sum over layers of (1) and the MLP's output
(3)  logit of token t    = sum over parts of (2) of  ((part - mean) / sigma * gamma) . W_U[t]
                           + beta . W_U[t] + b_U[t]

with sigma the divisor of the last norm at that token, held fixed; for an RMSNorm no mean is taken.
Both sums are checked.

Reference: Elhage et al. (2021), A mathematical framework for transformer circuits; (3) is what
TransformerLens calls direct logit attribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.ranks.circuits import Circuit
from isospike.ranks.layers import Plan
from isospike.ranks.norms import find_norm

SUM_TOLERANCE = 1e-4  # of a sum that is the stream, relative to its largest value


@dataclass
class KeptAttention:
    """One attention of a forward pass.

    Attributes:
        name: As in the report.
        heads: Their number.
        z: Their outputs side by side, ``[rows, n, H d_k]``.
        weight: W_O, ``[H d_k, d]``.
        bias: ``[d]``, or None.
        y: Their sum, ``[rows, n, d]``.
        added: What is added to the stream.
        circuits: Of each head; empty for a later call of the same weights.
    """

    name: str
    heads: int
    z: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor
    added: Tensor
    circuits: Sequence[Circuit]

    def shares(self) -> Float[Tensor, "rows n heads d"]:
        """What each head adds, float64."""
        shares = head_shares(self.z.flatten(0, 1), self.weight, self.heads)
        return shares.view(*self.z.shape[:2], *shares.shape[1:])


@dataclass
class KeptLayer:
    """One layer of a forward pass.

    Attributes:
        name: As in the report.
        x: Its input, where that is not the output of the layer before; None otherwise.
        mask: The unpadded tokens, ``[rows, n]``.
        attentions: In order.
        mlp: What is added after them.
    """

    name: str
    x: Tensor | None
    mask: Tensor
    attentions: list[KeptAttention]
    mlp: Tensor | None


@dataclass
class Kept:
    """What a report keeps of a forward pass, in memory only.

    Attributes:
        layers: In order.
        norm: The last norm outside the layers, its input and its output.
        unembedding: ``[vocabulary, d]`` and its bias, of a model that predicts tokens.
        plan: Where its layers were found.
    """

    layers: list[KeptLayer] = field(default_factory=list)
    norm: tuple[nn.Module, Tensor, Tensor] | None = None
    unembedding: tuple[Tensor, Tensor | None] | None = None
    plan: Plan | None = None

    def attention(self, name: str, who: str) -> KeptAttention:
        """The attention of a name.

        Raises:
            InputError: There is none.
        """
        found = {a.name: a for layer in self.layers for a in layer.attentions}
        if name not in found:
            raise InputError(
                f"{who} needs the name of a layer with attention, got {name!r}. They are "
                f"{', '.join(found) or 'none'}."
            )
        return found[name]


class LogitShares(NamedTuple):
    """What each part of a model adds to a logit.

    Attributes:
        names: Of the parts: the embedding, each head, bias and MLP of each layer, the constants.
        values: ``[parts, rows]``; each column sums to the row's logit.
        tokens: The token of the logit, ``[rows]``.
        places: The position that predicts it, ``[rows]``.
        logits: ``[rows]``.

    >>> LogitShares._fields
    ('names', 'values', 'tokens', 'places', 'logits')
    """

    names: tuple[str, ...]
    values: Float[Tensor, "parts rows"]
    tokens: Int[Tensor, "rows"]
    places: Int[Tensor, "rows"]
    logits: Float[Tensor, "rows"]


def head_shares(z: Tensor, weight: Tensor, heads: int) -> Tensor:
    """What each head adds, ``[n, H, d]``: its outputs times its rows of W_O.

    Args:
        z: The heads' outputs side by side, ``[n, H d_k]``.
        weight: W_O, ``[H d_k, d]``.
        heads: H.
    """
    wide = z.double().cpu().view(len(z), heads, -1).movedim(1, 0)
    blocks = weight.double().cpu().view(heads, wide.shape[2], -1)
    return (wide @ blocks).movedim(0, 1)


@torch.no_grad()
def checked_shares(kept: Kept, layer: str) -> Float[Tensor, "rows n heads d"]:
    """(1) of a layer, its sum checked.

    Args:
        kept: Of the forward pass.
        layer: Name of the attention.

    Raises:
        InputError: There is none of this name.
        UnsupportedError: The sum is not the attention's output.
    """
    found = kept.attention(layer, "shares")
    shares = found.shares()
    total = shares.sum(2) + (0 if found.bias is None else found.bias.double().cpu())
    y = found.y.double().cpu()
    rounding = max(SUM_TOLERANCE, 16 * torch.finfo(found.y.dtype).eps)
    gap = float((total - y).abs().max() / y.abs().max().clamp_min(1e-300))
    if gap > rounding:
        raise UnsupportedError(
            f"shares needs heads that sum to the attention's output, got a difference of {gap:.1e} "
            f"in {layer}. Use another layer."
        )
    return shares


@torch.no_grad()
def attribute_logits(kept: Kept, tokens: Any = None) -> LogitShares:
    """(3) at the last unpadded position of each row.

    Args:
        kept: Of the forward pass.
        tokens: Whose logits, one for each row or one for all; the likeliest by default.

    Raises:
        UnsupportedError: The model does not predict tokens, or its layers do not just add to a
            stream that a norm ends.
        RangeError: A token is not in the vocabulary.
    """
    if kept.norm is None or kept.unembedding is None:
        raise UnsupportedError(
            "logit_shares needs a model that predicts tokens and ends in a norm, got one without. "
            "Use a causal language model."
        )
    module, x, y = kept.norm
    unembedding = kept.unembedding[0].detach().double().cpu()
    b = None if kept.unembedding[1] is None else kept.unembedding[1].detach().double().cpu()
    start = max(i for i, layer in enumerate(kept.layers) if layer.x is not None)
    layers = kept.layers[start:]
    mask = layers[0].mask
    places = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(1)
    at = torch.arange(len(mask)), places
    names, parts = _parts(layers, at)
    stream = x[at].double().cpu()
    gap = float((parts.sum(0) - stream).abs().max() / stream.abs().max())
    if not gap < max(SUM_TOLERANCE, 16 * torch.finfo(x.dtype).eps):
        raise UnsupportedError(
            f"logit_shares needs layers that add to one stream, got a sum that differs by "
            f"{gap:.1e} from it. Models with a norm after the addition have no such sum."
        )
    norm = find_norm(module)
    gamma = torch.ones(stream.shape[1]) if norm.gamma is None else norm.gamma
    if norm.kind == "layer":
        parts = parts - parts.mean(-1, keepdim=True)
    parts = parts / norm.divisor(stream) * gamma.double()
    logits = y[at].double().cpu() @ unembedding.T
    logits = logits if b is None else logits + b
    tokens = logits.argmax(1) if tokens is None else torch.as_tensor(tokens).expand(len(logits))
    if bool(((tokens < 0) | (tokens >= logits.shape[1])).any()):
        raise RangeError(
            f"logit_shares needs tokens from 0 to {logits.shape[1] - 1}, got "
            f"{int(tokens.max())} at most and {int(tokens.min())} at least. Use the tokenizer's."
        )
    rows = unembedding[tokens]
    values = torch.einsum("prd,rd->pr", parts, rows)
    constant = torch.zeros(len(rows), dtype=torch.float64)
    constant = constant if norm.beta is None else rows @ norm.beta.double()
    constant = constant if b is None else constant + b[tokens]
    chosen = logits.gather(1, tokens[:, None])[:, 0]
    return LogitShares(
        (*names, "constants"), torch.cat([values, constant[None]]), tokens, places, chosen
    )


def _parts(layers: Sequence[KeptLayer], at: Any) -> tuple[list[str], Tensor]:
    """The parts of (2) at one position of each row, ``[parts, rows, d]``."""
    first: Any = layers[0].x
    names, parts = ["embedding"], [first[at].double().cpu()[None]]
    for layer in layers:
        for a in layer.attentions:
            if a.added is a.y:
                z = a.z[at]
                parts.append(head_shares(z, a.weight, a.heads).movedim(1, 0))
                names += [f"{a.name}, head {h}" for h in range(a.heads)]
                if a.bias is not None:
                    parts.append(a.bias.detach().double().cpu().expand(1, len(z), -1))
                    names.append(f"{a.name}, bias")
            else:  # a norm or a scale of the sum
                parts.append(a.added[at].double().cpu()[None])
                names.append(f"{a.name}, attention")
        if layer.mlp is not None:
            parts.append(layer.mlp[at].double().cpu()[None])
            names.append(f"{layer.name}, MLP")
    return names, torch.cat(parts)
