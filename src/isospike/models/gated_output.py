"""An attention output with one gate for each head and token.

(1)  g = 2 sigmoid(x W_g + b_g)              [.., H], x the row that attention reads
(2)  out = sum_h g_h(x) Y^h W_O^h + b

arXiv 2604.23681 proposes a "position-gated output projection", PG-OP, of "parameter overhead below
1.6 %" and gives no form that could be recovered; (1) and (2) are the form that this number fits:
W_g has d H weights on W_O's d H d_k, which is 1 / d_k, 1.56 % at d_k = 64.

**Claim**: it restores, in part, what the sum over heads loses.
**Assumes**: nothing that would make it so. Gates that are not 0 scale the blocks of W_O token by
token, so that the ambiguities of :func:`isospike.ranks.head_ambiguity` are those without gates, and
W_V^h G, G^-1 W_O^h still computes the same. They tell apart heads whose attention maps are equal.
**Source**: the abstract. Prior art: Qiu et al. (2025), Gated attention for large language models
(arXiv 2505.06708), the headwise variant, whose gate is sigmoid; the factor 2 here makes the layer
start as the plain projection.
**Test**: ``tests/test_gated_output.py``, ``isospike reproduce gated-output``.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from isospike.errors import RangeError, ShapeError
from isospike.tensors import check_devices, check_floating


class GatedOutputProjection(nn.Module):
    """Attention output with a gate for each head and token, (1) and (2).

    It starts with W_g = 0 and b_g = 0, where it is the plain projection.

    Args:
        width: d, channels of x and of the result.
        heads: H, number of heads; they divide ``width`` unless ``head_width`` is given.
        head_width: d_k, channels of one head; ``width / heads`` by default.
        bias: Whether the result has a bias b.

    Attributes:
        weight: ``[d, H d_k]``, as an ``nn.Linear``'s.
        gate: The linear map of (1).

    Raises:
        RangeError: A size below 1, or heads that do not divide the width.

    >>> layer = GatedOutputProjection(width=64, heads=4)
    >>> layer(torch.randn(2, 10, 64), torch.randn(2, 10, 64)).shape
    torch.Size([2, 10, 64])
    """

    def __init__(
        self, width: int, heads: int, head_width: int | None = None, *, bias: bool = True
    ) -> None:
        super().__init__()
        if heads < 1 or width < 1 or (head_width is not None and head_width < 1):
            raise RangeError(
                f"GatedOutputProjection needs sizes >= 1, got width {width}, heads {heads}, "
                f"head_width {head_width}. Give positive numbers."
            )
        if head_width is None and width % heads:
            raise RangeError(
                f"GatedOutputProjection needs a width that {heads} heads divide, got {width}. "
                "Give head_width."
            )
        self.heads = heads
        self.head_width = width // heads if head_width is None else head_width
        plain = nn.Linear(heads * self.head_width, width, bias=bias)
        self.weight, self.bias = plain.weight, plain.bias
        self.gate = nn.Linear(width, heads)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    @property
    def overhead(self) -> float:
        """Parameters of the gate over those of the plain projection."""
        plain = self.weight.numel() + (0 if self.bias is None else self.bias.numel())
        return sum(p.numel() for p in self.gate.parameters()) / plain

    def gated(
        self, heads_out: Float[Tensor, "*batch channels"], x: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*batch channels"]:
        """The input of W_O: each head's output times its gate.

        Args:
            heads_out: Outputs of the heads, side by side.
            x: The input of attention: the normalised stream of a pre-norm block.

        Returns:
            The gated outputs, side by side.

        Raises:
            ShapeError: The last axes are not those of the layer.
        """
        check_floating("GatedOutputProjection", "heads_out", heads_out)
        check_floating("GatedOutputProjection", "x", x)
        check_devices("GatedOutputProjection", heads_out=heads_out, x=x, weight=self.weight)
        inner, width = self.heads * self.head_width, self.gate.in_features
        if heads_out.shape != (*x.shape[:-1], inner) or x.shape[-1:] != (width,):
            raise ShapeError(
                f"GatedOutputProjection needs heads_out [.., {inner}] and x [.., {width}], got "
                f"{list(heads_out.shape)} and {list(x.shape)}. Put the heads side by side."
            )
        gates = 2 * torch.sigmoid(self.gate(x))  # (1)
        return heads_out * gates.repeat_interleave(self.head_width, -1)

    def forward(
        self, heads_out: Float[Tensor, "*batch channels"], x: Float[Tensor, "*batch width"]
    ) -> Float[Tensor, "*batch width"]:
        """The gated projection (2).

        Args:
            heads_out: Outputs of the heads, side by side.
            x: The input of attention: the normalised stream of a pre-norm block.

        Returns:
            The output of attention, to be added to the stream.

        Raises:
            ShapeError: The last axes are not those of the layer.

        Gradient: of all.
        """
        return linear(self.gated(heads_out, x), self.weight, self.bias)
