"""SpikingBERT (Bal, Sengupta, 2024): a BERT trained without time and run on spikes.

(1)  a = clamp(f(a_before), 0, 1)              trained: each sub-layer f of BERT, clamped
(2)  u <- u + x[t];  s[t] = [u >= 1];  u <- u - s[t]      run: integrate-and-fire neurons
(3)  x[t] = t f(m[t]) - (t - 1) f(m[t - 1]),  m[t] = mean of s_before[1 ... t]

The six sub-layers of a BERT layer are its own: key, value, attention, the projection behind it, and
the two of the perceptron, with their shortcuts and normalisations; the weights and their names are
those of transformers' BERT. By (3) the currents of T steps add up to ``T f`` of the mean spikes, so
the rate of a neuron is within 1 / T of (1) for the same rates before it, and the run approaches the
trained network as T grows. The softmax, GELU and layer normalisations inside f are computed in
floats, as in the paper.

Deviates from the paper, whose f reads the spikes of each step, ``x[t] = f(s_before[t])``: the mean
of a normalisation is not the normalisation of a mean, so that run has another limit than (1).
``published_currents=True`` is theirs. Their neurons start empty; ours at half the threshold.

A spike cannot be taken back: what a population fires for the first few, coarse means is too much
where (1) is near 0, above all behind GELU. With ``turns=True`` a population sums its current in
silence until the one before has fired its T spikes at most, and has T steps of its own:

(4)  rate = floor(T clamp(f(m), 0, 1) + 1/2) / T,  m the rates before

which is (1) rounded to whole spikes. The answer of L layers takes (1 + 5 L) T steps, and those of
other sequences follow T steps apart. ``levels=T`` puts (4) into the clamped run, so that training
sees it, with the gradient of (1) (straight-through).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

from isospike.errors import InputError, RangeError, ShapeError
from isospike.models.classifier import check_labels
from isospike.models.configs import SpikingBertConfig
from isospike.models.importers import Rule, rename
from isospike.neurons import NeuronParams, NeuronState, run
from isospike.tensors import check_whole

AT_ONCE = 16  # steps that pass a layer together
NEURONS = NeuronParams(decay=1.0, threshold=1.0)


@dataclass
class SpikingBertOutput(SequenceClassifierOutput):  # type: ignore[misc]
    """What a :class:`SpikingBert` gives.

    Attributes:
        loss: The mean cross-entropy, where labels are given.
        logits: ``[batch, classes]``.
        hidden_states: Rates ``[batch, tokens, channels]`` of the embedding and of each layer.
        spikes: Spikes that all neurons fired for the tokens of each sequence ``[batch]``, padding
            left out; None for the clamped run.
    """

    spikes: Tensor | None = None


class Clamp:
    """(1): what every population of neurons does in the run without time; or (4).

    Args:
        levels: Steps T of (4); None for (1).
    """

    def __init__(self, levels: int | None = None) -> None:
        self.levels = levels

    def __call__(self, y: Tensor) -> Tensor:
        a = y.clamp(0, 1)
        if self.levels is None:
            return a
        # The last term is 0, and has the gradient.
        return torch.floor(a.detach() * self.levels + 0.5) / self.levels + (a - a.detach())


class Turns(Clamp):
    """(4), and its spikes: neurons that fire after those before them.

    Args:
        mask: Which tokens are no padding, ``[batch, tokens]``.
        steps: T.
    """

    def __init__(self, mask: Tensor, steps: int) -> None:
        super().__init__(steps)
        self.mask, self.steps = mask, steps
        self.spikes = torch.zeros(len(mask), dtype=torch.float64, device=mask.device)

    def __call__(self, y: Tensor) -> Tensor:
        rate = super().__call__(y)
        fired = (rate.detach() * self.steps).round().sum(-1, dtype=torch.float64)
        self.spikes += torch.where(self.mask, fired, 0.0).sum(1)
        return rate


class Populations:
    """(2) and (3): the neurons of all sub-layers, called in the same order for each few steps.

    Args:
        mask: Which tokens are no padding, ``[batch, tokens]``.
        published: Whether currents are those of the paper.
    """

    def __init__(self, mask: Tensor, published: bool) -> None:
        self.mask, self.published = mask, published
        self.done, self.at = 0, 0
        self.held: list[tuple[NeuronState, Tensor | float, Tensor]] = []
        self.spikes = torch.zeros(len(mask), dtype=torch.float64, device=mask.device)

    def begin(self, done: int) -> None:
        """Begin a pass of the steps that come after ``done`` steps."""
        self.done, self.at = done, 0

    def __call__(self, y: Tensor) -> Tensor:
        """What the next sub-layer reads, the means so far or the spikes, ``[steps, batch, tokens,
        channels]``, of what this one's function gives."""
        if self.at == len(self.held):
            start = torch.full_like(y[0], 0.0 if self.published else 0.5)
            self.held.append((NeuronState(start), 0.0, torch.zeros_like(y[0])))
        state, before, total = self.held[self.at]
        times = torch.arange(1, len(y) + 1, dtype=y.dtype, device=y.device) + self.done
        times = times.view(-1, *(1,) * (y.dim() - 1))
        currents, summed = y, before
        if not self.published:
            sums = y * times
            summed = sums[-1]
            earlier = before if isinstance(before, Tensor) else torch.zeros_like(summed)
            currents = torch.diff(sums, dim=0, prepend=earlier[None])  # (3)
        spikes, state = run(currents, state, NEURONS)  # (2)
        totals = spikes.cumsum(0) + total
        self.held[self.at] = (state, summed, totals[-1])
        self.at += 1
        fired = spikes.detach().sum((0, 3), dtype=torch.float64)
        self.spikes += torch.where(self.mask, fired, 0.0).sum(1)
        return spikes if self.published else totals / times

    def rate(self, population: int) -> Tensor:
        """Mean spikes of a population over all steps so far."""
        return self.held[population][2] / self.done


class SpikingBert(BertPreTrainedModel):  # type: ignore[misc]
    """SpikingBERT for sequences of text; four layers by default.

    ``SpikingBert.from_pretrained`` reads a BERT of transformers too: names and shapes are the same.

    Args:
        config: Its sizes, those of a ``BertConfig``.

    Raises:
        RangeError: The heads do not divide the channels, or steps are below 1.

    >>> config = SpikingBertConfig(
    ...     vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=16,
    ... )
    >>> model = SpikingBert(config).eval()
    >>> tokens = torch.tensor([[1, 2, 3]])
    >>> clamped, spiking = model(tokens).logits, model(tokens, steps=400).logits
    >>> bool((clamped - spiking).abs().max() < 0.01)
    True

    Reference: Bal, Sengupta (2024), SpikingBERT: distilling BERT to train spiking language models
    using implicit differentiation.
    """

    config_class = SpikingBertConfig

    def __init__(self, config: SpikingBertConfig) -> None:
        config.check()
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        count = 2 * config.num_hidden_layers if config.shortcut_weights else 0
        self.shortcuts = nn.ParameterList(torch.ones(config.hidden_size) for _ in range(count))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.ParameterList):
            for weight in module:
                nn.init.ones_(weight)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        steps: int | None = None,
    ) -> SpikingBertOutput:
        """Scores of sequences.

        Args:
            input_ids: Tokens ``[batch, length]``.
            attention_mask: 1 for tokens, 0 for padding; None for no padding.
            token_type_ids: Segment of each token; None for the first.
            labels: Classes ``[batch]``, for the loss.
            steps: Time steps of a run on spikes; None for that of the configuration, or where that
                has none, for the clamped run, which is what is trained.

        Returns:
            Logits, rates and the number of spikes.

        Raises:
            InputError: Something is not a tensor.
            ShapeError: A shape does not fit, or a sequence is too long.
            RangeError: There are no steps, a token is outside the vocabulary, or a label is not one
                of the classes.
        """
        mask = self._check(input_ids, attention_mask, token_type_ids)
        steps = self.config.steps if steps is None else steps
        if steps is not None and steps < 1:
            raise RangeError(
                f"SpikingBert needs steps >= 1, got {steps}. Leave it out for the clamped run."
            )
        x = self.bert.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        if steps is None:
            hidden, spikes = self._pass(x, mask, Clamp(self.config.levels)), None
        elif self.config.turns:
            turns = Turns(mask, steps)
            hidden, spikes = self._pass(x, mask, turns), turns.spikes
        else:
            hidden, spikes = self._run(x, mask, steps)
        logits = self.classifier(hidden[-1][:, 0])
        loss = None
        if labels is not None:
            check_labels("SpikingBert", labels, logits)
            loss = F.cross_entropy(logits, labels)
        return SpikingBertOutput(
            loss=loss, logits=logits, hidden_states=tuple(hidden), spikes=spikes
        )

    def _run(self, x: Tensor, mask: Tensor, steps: int) -> tuple[list[Tensor], Tensor]:
        """Rates of the embedding and of each layer after ``steps`` steps, and spikes."""
        neurons = Populations(mask, self.config.published_currents)
        for done in range(0, steps, AT_ONCE):
            count = min(AT_ONCE, steps - done)
            neurons.begin(done)
            self._pass(x.expand(count, *x.shape), mask, neurons)
        neurons.done = steps
        places = range(0, 1 + 6 * len(self.bert.encoder.layer), 6)
        return [neurons.rate(place) for place in places], neurons.spikes

    def _pass(self, x: Tensor, mask: Tensor, fire: Any) -> list[Tensor]:
        """What ``fire`` gives for the embedding and for each layer."""
        a = fire(x)
        hidden = [a]
        weights = iter(self.shortcuts)
        for layer in self.bert.encoder.layer:
            attention = layer.attention
            k, v = fire(attention.self.key(a)), fire(attention.self.value(a))
            b = fire(self._attend(attention.self.query(a), k, v, mask))
            b = fire(attention.output(b, a * next(weights, 1)))
            a = fire(layer.output(fire(layer.intermediate(b)), b * next(weights, 1)))
            hidden.append(a)
        return hidden

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        heads = self.config.num_attention_heads
        q, k, v = (y.unflatten(-1, (heads, -1)).transpose(-3, -2) for y in (q, k, v))  # type: ignore[no-untyped-call]
        # Not torch's fused attention: where all values spike its sum is 1, and rounding decides.
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min)
        dropped = self.config.attention_probs_dropout_prob
        y = F.dropout(scores.softmax(-1), dropped, self.training) @ v
        return y.transpose(-3, -2).flatten(-2)

    def _check(self, tokens: Tensor, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        check_whole("SpikingBert", "input_ids", tokens)
        longest, words = self.config.max_position_embeddings, self.config.vocab_size
        if tokens.dim() != 2 or 0 in tokens.shape or tokens.shape[1] > longest:
            raise ShapeError(
                f"SpikingBert needs input_ids [batch, length] of 1 to {longest} tokens, got "
                f"{tuple(tokens.shape)}. Cut the sequences."
            )
        for name, other in {"attention_mask": mask, "token_type_ids": segments}.items():
            if other is not None and other.shape != tokens.shape:
                raise ShapeError(
                    f"SpikingBert needs {name} of the shape of input_ids, got "
                    f"{tuple(other.shape)} and {tuple(tokens.shape)}. Give what the tokenizer "
                    "gives."
                )
        if tokens.device.type == "cpu" and not 0 <= int(tokens.min()) <= int(tokens.max()) < words:
            raise RangeError(
                f"SpikingBert needs tokens from 0 to {words - 1}, got {int(tokens.min())} to "
                f"{int(tokens.max())}. Use the tokenizer of this model."
            )
        if mask is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return mask != 0


def from_bert(bert: nn.Module, **settings: Any) -> SpikingBert:
    """A SpikingBERT with the weights of a BERT of transformers.

    Args:
        bert: A ``BertModel`` or ``BertForSequenceClassification``. Its pooler is left out; a
            classifier that is missing, or has other classes, is drawn at random.
        settings: Of the configuration, beside those of the BERT. With fewer ``num_hidden_layers``
            the first ones are kept.

    Returns:
        The model, in the mode of ``bert``, with weights of its own.

    Raises:
        InputError: The model is no BERT encoder.

    >>> from transformers import BertConfig, BertModel
    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
    >>> small = BertModel(BertConfig(vocab_size=9, num_hidden_layers=1, **sizes))
    >>> from_bert(small, num_labels=3).classifier.out_features
    3
    """
    config: Any = getattr(bert, "config", None)
    if getattr(config, "model_type", None) != "bert" or getattr(config, "is_decoder", True):
        raise InputError(
            f"from_bert needs an encoder of transformers' type bert, got {type(bert).__name__}. "
            "Load one with AutoModelForSequenceClassification."
        )
    names = {"id2label", "label2id"} if "num_labels" in settings else set()
    other = {"model_type", "architectures"} | names
    known = {name: value for name, value in config.to_dict().items() if name not in other}
    model = SpikingBert(SpikingBertConfig(**{**known, **settings}))
    prefix = "" if hasattr(bert, "bert") else "bert."
    given = {prefix + name: tensor for name, tensor in bert.state_dict().items()}
    head = given.get("classifier.weight")
    if head is None or head.shape != model.classifier.weight.shape:
        given |= {f"classifier.{name}": t for name, t in model.classifier.state_dict().items()}
    given |= {f"shortcuts.{name}": t for name, t in model.shortcuts.state_dict().items()}
    model.load_state_dict({name: given[name] for name in model.state_dict()})
    model.train(bert.training)
    return model


SUBLAYERS = (
    "attention.self.key", "attention.self.value", "attention.self", "attention.output",
    "intermediate", "output",
)  # fmt: skip


def _sublayer(number: str, part: str, leaf: str) -> str:
    layer, place = divmod(int(number) - 1, 6)
    inner = "" if place < 2 else f".{part}"
    return f"bert.encoder.layer.{layer}.{SUBLAYERS[place]}{inner}.{leaf}"


AUTHORS: list[Rule] = [
    (r"network_x\.(\w+)\.(\w+)", r"bert.embeddings.\1.\2"),
    (r"network_s\d+\.fc\.weight", None),  # their feedback, which is not used
    (r"network_s(\d+)\.(dense|query|LayerNorm)\.(\w+)", lambda m: _sublayer(*m.groups())),
    (r"classification\.(weight|bias)", r"classifier.\1"),
    (r"(snn_func|snn_func_copy|snn_ide_conv|fit_dense|pooler_layer)\..+", None),
]


def from_authors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for :class:`SpikingBert` from those of the authors' classifiers.

    Args:
        weights: The ``state_dict()`` of their network. It holds most tensors several times; the
            copies, the layer for distillation and the pooler, which is not used, are left out.

    Returns:
        The same weights under our names, for ``load_state_dict``.

    Raises:
        UnsupportedError: A name does not belong to that network.

    >>> list(from_authors({"network_s9.query.bias": torch.zeros(4)}))
    ['bert.encoder.layer.1.attention.self.query.bias']

    Source: github.com/NeuroCompLab-psu/SpikingBERT at 765e39b.
    """
    return rename("spiking_bert.from_authors", weights, AUTHORS, "SpikingBERT")


AutoModelForSequenceClassification.register(SpikingBert.config_class, SpikingBert, exist_ok=True)
