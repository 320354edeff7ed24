"""A small pre-norm transformer, causal or not, with any positional encoding.

(1)  x_0 = scale * embedding[tokens], position added
(2)  x <- x + W_o attention(W_q LN(x), W_k LN(x), W_v LN(x)), position rotated or biased
(3)  x <- x + W_down gelu(W_up LN(x))
(4)  logits = W_out LN(x)

Reference: Vaswani et al. (2017), Attention is all you need; Xiong et al. (2020), On layer
normalization in the transformer architecture.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from isospike.errors import RangeError, ShapeError, UnsupportedError
from isospike.models.gated_output import GatedOutputProjection
from isospike.positions import NoPE, Position
from isospike.tensors import check_tensor, check_whole, unwrapped


class Cache(NamedTuple):
    """Keys and values of the tokens so far: the memory of a causal transformer.

    Attributes:
        keys, values: Of each layer, ``[batch, heads, length, head width]``; keys are rotated.
        at: Their positions, ``[length]``.

    >>> none = torch.zeros(0)
    >>> Cache((none,), (none,), torch.arange(0)).at.shape
    torch.Size([0])
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    at: Tensor

    @property
    def length(self) -> int:
        """Number of tokens in it; it grows by one with every token, without a bound."""
        return len(self.at)


class Transformer(nn.Module):
    """A pre-norm transformer; the equations are in the module's head.

    Args:
        vocabulary: Number of tokens, and of logits.
        width: Channels of x.
        heads: Number of attention heads; they divide ``width``.
        layers: Number of layers, each with attention and a perceptron.
        position: The positional encoding, shared by all layers; None for none.
        causal: Whether a token attends only to itself and to those before it.
        hidden: Channels of the perceptron; by default four times ``width``.
        scale: Multiplies the token embeddings, which start with variance 1.
        attention: False for a control of equal size: no token attends to another, and the
            perceptron has as many more weights as attention would have.
        gated: Whether W_o has a gate for each head and token
            (:class:`isospike.models.GatedOutputProjection`).

    Raises:
        RangeError: A size below 1, or heads that do not divide the width.
        UnsupportedError: Gates without attention.

    >>> model = Transformer(vocabulary=10, width=16, heads=2, layers=1)
    >>> model(torch.zeros(3, 5, dtype=torch.long)).shape
    torch.Size([3, 5, 10])
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 64,
        heads: int = 4,
        layers: int = 2,
        position: Position | None = None,
        *,
        causal: bool = True,
        hidden: int | None = None,
        scale: float = 1.0,
        attention: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__()
        hidden = 4 * width if hidden is None else hidden
        sizes = {
            "vocabulary": vocabulary, "width": width, "heads": heads, "layers": layers,
            "hidden": hidden,
        }  # fmt: skip
        for name, size in sizes.items():
            if size < 1:
                raise RangeError(
                    f"Transformer needs {name} >= 1, got {size}. Give a positive number."
                )
        if width % heads:
            raise RangeError(
                f"Transformer needs a width that {heads} heads divide, got {width}. Choose a "
                f"multiple of {heads}."
            )
        if gated and not attention:
            raise UnsupportedError(
                "Transformer needs attention for its gates, got gated=True and attention=False. "
                "Leave one of them out."
            )
        self.vocabulary, self.heads, self.causal, self.scale = vocabulary, heads, causal, scale
        self.position = NoPE() if position is None else position
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            [_Block(width, heads, hidden, attention, gated) for _ in range(layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, vocabulary, bias=False)

    def forward(
        self, tokens: Int[Tensor, "batch length"], mask: Bool[Tensor, "batch length"] | None = None
    ) -> Float[Tensor, "batch length vocabulary"]:
        """Logits of every token.

        Args:
            tokens: Token numbers, in [0, vocabulary).
            mask: False for padding, to which no other token attends.

        Returns:
            The logits.

        Raises:
            ShapeError: Not ``[batch, length]``, or a mask of another shape.
            RangeError: A token out of range, or more tokens than the encoding has positions.
        """
        x, at = self.embed(tokens)
        return self.read(self.attend(x, at, None, mask)[0])

    def extend(
        self, tokens: Int[Tensor, "batch length"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "batch length vocabulary"], Cache]:
        """Logits of tokens that follow those of a cache.

        Args:
            tokens: The next tokens, in [0, vocabulary).
            cache: Result of the last call; None before the first token.

        Returns:
            The logits, and the cache with these tokens in it.

        Raises:
            UnsupportedError: The transformer is not causal.
            RangeError: A token out of range, or more tokens than the encoding has positions.
        """
        if not self.causal:
            raise UnsupportedError(
                "extend needs a causal transformer, got causal=False, where later tokens change "
                "earlier ones. Call the model with all tokens."
            )
        x, at = self.embed(tokens, cache.length if cache else 0)
        x, cache = self.attend(x, at, cache)
        return self.read(x), cache

    # The parts, for those who run them one by one.

    def embed(
        self, tokens: Int[Tensor, "batch length"], start: int = 0
    ) -> tuple[Float[Tensor, "batch length width"], Int[Tensor, "length"]]:
        """(1) of tokens that follow ``start`` others, and their positions.

        Args:
            tokens: Token numbers, in [0, vocabulary).
            start: Number of tokens before them.

        Returns:
            The embedded tokens, and their positions.

        Raises:
            ShapeError: Not ``[batch, length]``.
            RangeError: A token out of range, or more tokens than the encoding has positions.
        """
        check_whole("Transformer", "tokens", tokens)
        if tokens.dim() != 2:
            raise ShapeError(
                f"Transformer needs tokens [batch, length], got {tuple(tokens.shape)}. "
                "One sequence is tokens[None]."
            )
        if tokens.numel() and not tokens.is_meta:
            low, high = int(unwrapped(tokens).min()), int(unwrapped(tokens).max())
            if not 0 <= low <= high < self.vocabulary:
                raise RangeError(
                    f"Transformer needs tokens in [0, {self.vocabulary}), got {low} to {high}. Use "
                    "the tokenizer of the model's vocabulary."
                )
        at = self.position.index(tokens.shape[1], start).to(tokens.device)
        return self.position.add(self.scale * self.tokens(tokens.long()), at), at

    def attend(
        self,
        x: Float[Tensor, "batch length width"],
        at: Int[Tensor, "length"],
        cache: Cache | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], Cache]:
        """(2) and (3), all layers, over the tokens of the cache and of x itself.

        Args:
            x: Output of :meth:`embed`.
            at: Positions of the tokens.
            cache: Keys and values of earlier tokens.
            mask: False for padding, to which no other token attends.

        Returns:
            The stream after the last layer, and the cache with these tokens in it.

        Raises:
            ShapeError: The mask is not ``[batch, length]``.
            UnsupportedError: A mask and a cache.
        """
        if mask is not None:
            check_tensor("Transformer", "mask", mask)
        if mask is not None and mask.shape != x.shape[:2]:
            raise ShapeError(
                f"Transformer needs a mask of shape {tuple(x.shape[:2])}, got "
                f"{tuple(mask.shape)}. Give one entry per token."
            )
        if mask is not None and cache is not None:
            raise UnsupportedError(
                "Transformer needs unpadded tokens to extend a cache, got a mask. Leave the mask "
                "out, or run the whole sequence at once."
            )
        past = cache.length if cache else 0
        keys_at = torch.cat([cache.at, at]) if cache else at
        scores, causal = self._scores(at, keys_at, mask)
        keys, values = [], []
        for i, block in enumerate(self.blocks):
            before = (cache.keys[i], cache.values[i]) if cache and past else None
            x, k, v = block(x, at, self.position, before, scores, causal)
            keys.append(k)
            values.append(v)
        return x, Cache(tuple(keys), tuple(values), keys_at)

    def read(
        self, x: Float[Tensor, "batch length width"]
    ) -> Float[Tensor, "batch length vocabulary"]:
        """The logits (4).

        Args:
            x: What the last block gives.

        Returns:
            A logit for each token of the vocabulary.
        """
        logits: Tensor = self.out(self.norm(x))
        return logits

    def _scores(
        self, queries: Tensor, keys: Tensor, mask: Tensor | None
    ) -> tuple[Tensor | None, bool]:
        """The bias of the scores, and whether the plain causal mask is still to be applied."""
        bias = self.position.bias(queries, keys)
        count, past = len(queries), len(keys) - len(queries)
        if bias is None and mask is None and (not self.causal or not past or count == 1):
            return None, self.causal and not past
        seen = torch.ones(count, len(keys), dtype=torch.bool, device=keys.device)
        if self.causal:  # By order of the tokens, wherever their positions are.
            seen = seen.tril(past)
        if mask is not None:  # A token sees itself, padding or not: softmax needs one key.
            own = torch.eye(count, dtype=torch.bool, device=keys.device)
            seen = seen & (mask.bool()[:, None, None, :] | own)
        if bias is None:
            return seen, False
        return torch.where(seen, bias, -torch.inf), False


class _Block(nn.Module):
    """(2) and (3)."""

    def __init__(self, width: int, heads: int, hidden: int, attention: bool, gated: bool) -> None:
        super().__init__()
        self.heads, self.attention, self.gated = heads, attention, gated
        if attention:
            self.norm = nn.LayerNorm(width)
            self.qkv = nn.Linear(width, 3 * width, bias=False)
            self.join: nn.Module = (
                GatedOutputProjection(width, heads, bias=False)
                if gated
                else nn.Linear(width, width, bias=False)
            )
        else:
            hidden += 2 * width  # the 4 width^2 weights of attention
        self.norm_hidden = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        x: Tensor,
        at: Tensor,
        position: Position,
        before: tuple[Tensor, Tensor] | None,
        scores: Tensor | None,
        causal: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        k = v = x[:, None, :, :0]  # without attention the cache stays empty
        if self.attention:
            shape = (*x.shape[:2], 3, self.heads, x.shape[2] // self.heads)
            read = self.norm(x)
            q, k, v = self.qkv(read).view(shape).permute(2, 0, 3, 1, 4)
            q, k = position.rotate(q, k, at)
            if before is not None:
                k, v = torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)
            y = scaled_dot_product_attention(q, k, v, attn_mask=scores, is_causal=causal)
            y = y.transpose(1, 2).flatten(2)
            x = x + (self.join(y, read) if self.gated else self.join(y))  # (2)
        hidden = nn.functional.gelu(self.up(self.norm_hidden(x)))
        return x + self.down(hidden), k, v  # (3)
