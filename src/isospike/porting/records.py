"""What is recorded of a port, part by part."""

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class SiteReport:
    """One site: the input of one or more matrix products.

    All counts are per unpadded token of the first output (per image for models without an attention
    mask), measured on held-out batches.

    Attributes:
        name: Module whose input it is; for attention, ``<module>:query``, ``:key``, ``:value`` or
            ``:probability``; for a product that a module calls, ``<module>:<weight>`` or
            ``<module>:matmul:left`` and ``:right``.
        layer: The block it belongs to, e.g. ``encoder.layer.0``; its module's name outside a block.
        kind: ``linear``, ``conv``, ``query``, ``key``, ``value``, ``probability`` or, of two
            activations that are multiplied, ``left`` and ``right``.
        code: Name of its code.
        steps: Time steps.
        values: Values coded per token.
        neurons: Neurons spent on them per token (twice ``values`` for ON/OFF pairs).
        spikes: Spikes emitted per token.
        synaptic_ops: Additions those spikes cause per token: spikes times fan-out.
        neuron_updates: ``neurons * steps``.
        macs: Multiply-accumulates of the float product(s) it feeds, per token.
        error: Root-mean-square coding error over the root-mean-square of the centred values.
        pca95: Principal components holding 95 % of the variance of its values; None where not
            defined.
        participation: Participation ratio ``(sum l)^2 / sum l^2`` of the covariance eigenvalues.
        capped: Whether ``pca95`` is limited by the number of tokens rather than by the data.
        share: Its part of the output's squared error as an allocation predicts it; None without.
        outside: Share of its values beyond its range, which are cut off; with ranges that follow
            the input, share of the tokens whose gain is above those of the calibration inputs.
        gain_ops: Comparisons that find the gains, and multiplications by them.
        stream: What it is made of, if the model reads several inputs: see :class:`StreamReport`.
    """

    name: str
    layer: str
    kind: str
    code: str
    steps: int
    values: float
    neurons: float
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    macs: float
    error: float
    pca95: int | None
    participation: float | None
    capped: bool
    share: float | None = None
    outside: float = 0.0
    gain_ops: float = 0.0
    stream: str = ""


@dataclass(frozen=True)
class TextErrors:
    """Errors on one kind of input.

    Attributes:
        name: Of the inputs.
        tokens: Unpadded tokens.
        error: Relative root-mean-square error over all of them.
        median, p999, worst: Of the errors of single tokens, each relative to its own output.
        cosine: Mean over tokens.
        cosine_pooled: Mean over inputs, of the outputs averaged over tokens.
        changed: Share of choices, such as a token's experts, that are not the float model's, over
            all places where it chooses; None if it chooses nothing.
    """

    name: str
    tokens: int
    error: float
    median: float
    p999: float
    worst: float
    cosine: float | None
    cosine_pooled: float | None
    changed: float | None = None


@dataclass(frozen=True)
class ChoiceReport:
    """What a module chooses for each token by the largest scores, as a router its experts.

    Attributes:
        name: The module.
        layer: Its block.
        chosen: How many, for a token.
        tokens: Unpadded tokens of the held-out inputs.
        changed: Share of them for which the float model chooses others.
    """

    name: str
    layer: str
    chosen: int
    tokens: int
    changed: float


@dataclass(frozen=True)
class StreamReport:
    """One of several inputs that a model reads: the text of an encoder, images, a decoder's text.

    Attributes:
        name: ``encoder``, ``decoder``, ``text``, ``image`` or ``sound``.
        unit: What its figures are given for: ``token``, ``image``, ``recording``.
        positions: So many held-out ones, without padding.
        sites: Sites that read what is made of it alone.
        output: The output that is made of it; empty if the model gives none.
        error: Relative root-mean-square error of that output; None without.
        worst: Largest error of one token of it, relative to its own output; None likewise.
        values, spikes, synaptic_ops, neuron_updates, macs: Of its sites, for each position.
    """

    name: str
    unit: str
    positions: int
    sites: int
    output: str
    error: float | None
    worst: float | None
    values: float
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    macs: float


@dataclass(frozen=True)
class CircuitReport:
    """One circuit that computes a function no product computes; counts as in :class:`SiteReport`.

    Attributes:
        name: The module it belongs to.
        layer: Its block.
        kind: ``activation``, ``normalisation``, ``softmax``, ``product`` (of a gate and a value),
            ``relay`` (values encoded again so that other neurons can read them) or ``gain``.
        values: Values it gives per token.
        neurons, spikes, synaptic_ops, neuron_updates: Per token.
        error: Root-mean-square error against the float function of the same inputs, over that
            function's root-mean-square value.
    """

    name: str
    layer: str
    kind: str
    values: float
    neurons: float
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    error: float


@dataclass(frozen=True)
class CurvePoint:
    """Error of the whole model under one uniform code and number of steps, on held-out batches."""

    code: str
    steps: int
    error: float
    spikes: float  # per token


@dataclass(frozen=True)
class Raster:
    """The spikes of one real input at one site.

    Attributes:
        text: The sentence, or a description of the input.
        site: Name of the site.
        tokens: One label per token.
        neurons: Number of neurons shown (the first ones).
        steps: Time steps per token.
        spikes: ``(token, step, neuron)`` triples; the OFF neurons come after the ON neurons.
        token_ids: Numbers of the tokens in the model's vocabulary; None if it reads none.
    """

    text: str
    site: str
    tokens: tuple[str, ...]
    neurons: int
    steps: int
    spikes: tuple[tuple[int, int, int], ...]
    token_ids: tuple[int, ...] | None = None

    def labelled(self, tokenizer: Any) -> "Raster":
        """The same with the words of the tokens.

        Args:
            tokenizer: Of the model; anything with a ``decode`` as those of transformers.
        """
        if self.token_ids is None:
            return self
        ids = list(self.token_ids)
        words = tuple(tokenizer.decode([i]) for i in ids)
        return replace(self, text=tokenizer.decode(ids, skip_special_tokens=True), tokens=words)


@dataclass(frozen=True)
class LayerSum:
    """The sites and circuits of one layer together, per token.

    Attributes:
        name: The layer.
        spikes, synaptic_ops, neuron_updates: Sums over its sites and circuits.
        share: Its part of all synaptic operations.
        error: The largest error of a site or circuit.
    """

    name: str
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    share: float
    error: float
