"""The configurations of the spiking transformers, for ``AutoConfig``.

transformers reads and writes each like its own: ``config.json``, ``num_labels``, ``id2label``.
``steps`` is what a call without steps takes; it changes no weight.
"""

from importlib import import_module
from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from isospike.errors import InputError, RangeError

FORMS = ("cifar", "imagenet", "dvs")


class SpikingConfig(PreTrainedConfig):  # type: ignore[misc]
    """What all of them have."""

    # transformers makes a dataclass of each, whose __init__ takes more than its fields.
    __no_type_check__ = True
    _others: ClassVar[tuple[str, ...]] = ()  # types whose files it reads too

    def check(self) -> None:
        """Raise unless a model of these sizes can be built."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration that a file holds, unless it is of a model of another kind.

        Args:
            config_dict: What the file holds.
            kwargs: As transformers takes them.

        Raises:
            InputError: It is of another kind.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found not in (cls.model_type, *cls._others):
            raise InputError(
                f"{cls.__name__} needs a model of type {cls.model_type}, got {found}. Load it with "
                "the class that saved it, or with AutoModel."
            )
        return super().from_dict(config_dict, **kwargs)


class QKFormerConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.QKFormer`, by default 4-384 for 32 x 32 images.

    Attributes:
        form: ``cifar``, ``imagenet`` or ``dvs``: where the embeddings pool, 4, 16 and 16 times in
            all.
        channels: Of the last stage; each stage has twice those of the one before.
        depths: Blocks of each stage. The last has self-attention, the others token attention.
        heads: Attention heads of each stage.
        expansion: Hidden neurons of the perceptron per channel.
        num_channels: Channels of the input.
        steps: Time steps of a call that gives none.
        published_leak: Whether membranes go on from image to image in the last stage, as in the
            authors' code: for comparisons only, since an answer then depends on the batch.
        levels: D of integer neurons, which give the same in one step and in D steps of spikes; 0
            for neurons with a leak.

    >>> QKFormerConfig(num_labels=10).num_labels
    10
    """

    model_type = "isospike-qkformer"
    form: str = "cifar"
    channels: int = 384
    depths: list[int] | tuple[int, ...] = (1, 1, 2)
    heads: list[int] | tuple[int, ...] = (8, 8, 8)
    expansion: int = 4
    num_channels: int = 3
    steps: int = 4
    published_leak: bool = False
    levels: int = 0

    def check(self) -> None:
        if self.form not in FORMS:
            raise InputError(
                f"QKFormerConfig needs a known form, got {self.form!r}. Use one of "
                f"{', '.join(FORMS)}."
            )
        if self.levels and self.published_leak:
            raise InputError(
                "QKFormerConfig needs membranes that leak from image to image or integer neurons, "
                f"got levels={self.levels} and published_leak=True. Leave one of them out."
            )
        check_stages("QKFormerConfig", self, 8)


class MSQKFormerConfig(SpikingConfig):
    """Sizes of an :class:`~isospike.models.MSQKFormer`, by default 4-384.

    Attributes:
        channels, depths, heads, expansion, num_channels, steps, levels: As of
            :class:`QKFormerConfig`.

    >>> MSQKFormerConfig(num_labels=10).num_labels
    10
    """

    model_type = "isospike-ms-qkformer"
    channels: int = 384
    depths: list[int] | tuple[int, ...] = (1, 1, 2)
    heads: list[int] | tuple[int, ...] = (8, 8, 8)
    expansion: int = 4
    num_channels: int = 3
    steps: int = 4
    levels: int = 0

    def check(self) -> None:
        check_stages("MSQKFormerConfig", self, 2)


class MaxFormerConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.MaxFormer`, by default 4-384 for 32 x 32 images.

    Attributes:
        form: ``cifar`` or ``imagenet``: an embedding that keeps the image's size, or quarters it.
        kernels: Side of the convolution that mixes tokens in each stage but the last; 0 for none.
        channels, depths, heads, expansion, num_channels, steps, levels: As of
            :class:`QKFormerConfig`; only the heads of the last stage are used.

    >>> MaxFormerConfig(num_labels=10).num_labels
    10
    """

    model_type = "isospike-max-former"
    form: str = "cifar"
    channels: int = 384
    depths: list[int] | tuple[int, ...] = (1, 1, 2)
    kernels: list[int] | tuple[int, ...] = (0, 3)
    heads: list[int] | tuple[int, ...] = (8, 8, 8)
    expansion: int = 4
    num_channels: int = 3
    steps: int = 4
    levels: int = 0

    def check(self) -> None:
        check_stages("MaxFormerConfig", self, 2)
        if self.form not in FORMS[:2]:
            raise InputError(
                f"MaxFormerConfig needs a known form, got {self.form!r}. Use one of cifar, "
                "imagenet."
            )
        odd = all(k == 0 or k % 2 for k in self.kernels)
        if len(self.kernels) != len(self.depths) - 1 or not odd:
            raise RangeError(
                "MaxFormerConfig needs an odd kernel, or 0, for each stage but the last, got "
                f"{tuple(self.kernels)}. Choose kernels=(0, 3)."
            )


class SpikeDrivenConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.SpikeDrivenTransformer`, by default 2-512 for 32 x 32.

    Attributes:
        channels: Of a token, a multiple of 8.
        blocks: Number of blocks.
        expansion: Hidden neurons of the perceptron per channel.
        pools: Whether each of the four convolutions of the stem pools.
        num_channels: Channels of the input.
        steps: Time steps of a call that gives none.

    >>> SpikeDrivenConfig(num_labels=10).num_labels
    10
    """

    model_type = "isospike-spike-driven"
    channels: int = 512
    blocks: int = 2
    expansion: int = 4
    pools: list[bool] | tuple[bool, ...] = (False, False, True, True)
    num_channels: int = 3
    steps: int = 4

    def check(self) -> None:
        check_positive("SpikeDrivenConfig", self, ("blocks", "expansion", "num_channels", "steps"))
        if self.channels < 8 or self.channels % 8 or len(self.pools) != 4:
            raise RangeError(
                "SpikeDrivenConfig needs channels a multiple of 8 and four pools, got "
                f"channels={self.channels}, pools={tuple(self.pools)}. Choose channels=512 and "
                "pools=(False, False, True, True)."
            )


class SpikformerConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.Spikformer`, by default 4-384 for 32 x 32 images.

    Attributes:
        channels: Of a token, a multiple of 8 and of ``heads``.
        heads: Attention heads.
        blocks: Number of blocks.
        expansion: Hidden neurons of the perceptron per channel.
        pools_spikes: Whether the stem pools spikes, as in the authors' code, instead of currents,
            as in SpikingJelly's.
        num_channels: Channels of the input.
        steps: Time steps of a call that gives none.

    >>> SpikformerConfig(num_labels=10).num_labels
    10
    """

    model_type = "isospike-spikformer"
    channels: int = 384
    heads: int = 12
    blocks: int = 4
    expansion: int = 4
    pools_spikes: bool = False
    num_channels: int = 3
    steps: int = 4

    def check(self) -> None:
        owner = "SpikformerConfig"
        check_positive(owner, self, ("heads", "blocks", "expansion", "num_channels", "steps"))
        if self.channels < 8 or self.channels % 8 or self.channels % self.heads:
            raise RangeError(
                f"{owner} needs channels a multiple of 8 and of heads, got channels="
                f"{self.channels}, heads={self.heads}. Choose channels=384, heads=12."
            )


class IntegerNetConfig(SpikingConfig):
    """Sizes of an :class:`~isospike.models.IntegerNet`.

    Attributes:
        channels: Of each stage; a stage halves the image's sides.
        levels: D, the largest integer of a neuron and the steps of a run on spikes; 0 for
            rectifiers, which have no spikes.
        divisor: Number over which the head reads integers; None for D, or for 1 with rectifiers.
        num_channels: Channels of the input.
        steps: Time steps of a call that gives none: 1, on integers, or D.

    >>> IntegerNetConfig(channels=(32, 64)).levels
    4
    """

    model_type = "isospike-integer-net"
    channels: list[int] | tuple[int, ...] = (64, 128, 256)
    levels: int = 4
    divisor: float | None = None
    num_channels: int = 3
    steps: int = 1

    def check(self) -> None:
        check_positive("IntegerNetConfig", self, ("num_channels", "steps"))
        if not self.channels or min(self.channels) < 1 or not 0 <= self.levels <= 255:
            raise RangeError(
                "IntegerNetConfig needs channels of at least 1 and levels from 0 to 255, got "
                f"channels={tuple(self.channels)}, levels={self.levels}. Choose channels=(64, 128, "
                "256) and levels=4."
            )
        if self.divisor is not None and not 0 < self.divisor < float("inf"):
            raise RangeError(
                f"IntegerNetConfig needs divisor above 0, got {self.divisor}. Use half of levels."
            )


class SequenceNetConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.SequenceNet`.

    Attributes:
        inputs: Values that are read in a step: pixels of an image, or all of a frame.
        channels: Neurons of each layer.
        taps: Weights of a synapse, for spikes of so many different delays.
        longest: The largest time constant of a layer's neurons, in steps; the smallest is 1.
        num_channels: Channels of the input.
        steps: Time steps of a call that gives none: pieces of an image.

    >>> SequenceNetConfig().steps
    28
    """

    model_type = "isospike-sequence-net"
    inputs: int = 28
    channels: list[int] | tuple[int, ...] = (128, 128, 256)
    taps: int = 3
    longest: float = 10.0
    num_channels: int = 1
    steps: int = 28

    def check(self) -> None:
        check_positive("SequenceNetConfig", self, ("inputs", "taps", "num_channels", "steps"))
        if not self.channels or min(self.channels) < 1 or not 1 <= self.longest < float("inf"):
            raise RangeError(
                "SequenceNetConfig needs channels of at least 1 and longest from 1 on, got "
                f"channels={tuple(self.channels)}, longest={self.longest}. Choose channels=(128, "
                "128, 256) and longest=10."
            )


class SpikingResformerConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.SpikingResformer`, by default Ti for 32 x 32 images.

    Attributes:
        form: ``cifar`` or ``imagenet``: a stem that keeps the image's size, or quarters its sides.
        channels: Of a token in each stage; each later stage halves the image's sides.
        depths: Pairs of attention and perceptron in each stage.
        heads: Attention heads of each stage.
        patches: Pixels of the side of a patch that attention reads as one, in each stage.
        group: Channels of the perceptron that its 3 x 3 convolution mixes.
        expansion: Hidden neurons of the perceptron per channel.
        learned_leak: Whether each layer of neurons learns its leak, as in the form for events.
        levels: As of :class:`QKFormerConfig`, without ``learned_leak``.
        num_channels: Channels of the input.
        steps: Time steps of a call that gives none.

    >>> SpikingResformerConfig(num_labels=10).depths
    (1, 2, 3)
    """

    model_type = "isospike-spiking-resformer"
    form: str = "cifar"
    channels: list[int] | tuple[int, ...] = (64, 192, 384)
    depths: list[int] | tuple[int, ...] = (1, 2, 3)
    heads: list[int] | tuple[int, ...] = (1, 3, 6)
    patches: list[int] | tuple[int, ...] = (4, 2, 1)
    group: int = 64
    expansion: int = 4
    learned_leak: bool = False
    num_channels: int = 3
    steps: int = 4
    levels: int = 0

    def check(self) -> None:
        owner = "SpikingResformerConfig"
        check_positive(owner, self, ("group", "expansion", "num_channels", "steps"))
        if self.form not in FORMS[:2]:
            raise InputError(
                f"{owner} needs a known form, got {self.form!r}. Use one of cifar, imagenet."
            )
        if self.levels and self.learned_leak:
            raise InputError(
                f"{owner} needs neurons that learn their leak or integer ones, got levels="
                f"{self.levels} and learned_leak=True. Leave one of them out."
            )
        sizes = (self.channels, self.depths, self.heads, self.patches)
        fits = len({len(s) for s in sizes}) == 1 and min(map(min, sizes), default=0) >= 1
        pairs = zip(self.channels, self.heads, strict=False)
        if not fits or any(c % h or c * self.expansion % self.group for c, h in pairs):
            raise RangeError(
                f"{owner} needs channels, depths, heads and patches for each stage, channels a "
                f"multiple of heads and hidden channels of group, got {sizes} and "
                f"group={self.group}. Choose ((64, 192, 384), (1, 2, 3), (1, 3, 6), (4, 2, 1)) and "
                "group=64."
            )


class SpikingBertConfig(SpikingConfig):
    """Sizes of a :class:`~isospike.models.SpikingBert`: those of a ``BertConfig``, four layers.

    Attributes:
        steps: Time steps of a call that gives none; None for the clamped run, which has no time.
        published_currents: Whether sub-layers read the spikes of each step, as in the authors'
            code, instead of their mean so far: for comparisons, since that run does not approach
            the clamped one.
        turns: Whether a population fires when the one before it has fired all its steps, so that
            its rate is the clamped one, rounded; instead of all at the same steps.
        levels: Steps whose rounding the clamped run has, so that training sees it; None for no
            rounding.
        shortcut_weights: Whether the shortcuts have a trained weight for each channel, of 1 at
            first, which BERT and the paper's network do not have.

    >>> SpikingBertConfig(steps=16).num_hidden_layers
    4
    """

    # Not a subclass of BertConfig, whose module loads all of the lists that wait for this one.
    _others = ("bert",)
    model_type = "isospike-spiking-bert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    use_cache: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    steps: int | None = None
    published_currents: bool = False
    turns: bool = False
    levels: int | None = None
    shortcut_weights: bool = False

    def __post_init__(self, **more: object) -> None:
        super().__post_init__(**more)
        # Registers the model. Earlier, among the imports of transformers, modeling_bert cannot be
        # imported.
        import_module("isospike.models.spiking_bert")

    def check(self) -> None:
        """Raise unless a model of these sizes can be built.

        Raises:
            RangeError: A size is below 1, or does not fit.
        """
        heads, channels = self.num_attention_heads, self.hidden_size
        steps = 1 if self.steps is None else self.steps
        if heads < 1 or channels < 1 or channels % heads or steps < 1:
            raise RangeError(
                "SpikingBertConfig needs a hidden_size that num_attention_heads divides, and steps "
                f">= 1 or None, got {channels}, {heads} and {self.steps}. Choose 768, 12 and None."
            )
        if self.levels is not None and self.levels < 1:
            raise RangeError(
                f"SpikingBertConfig needs levels >= 1 or None, got {self.levels}. Give the steps "
                "of the run that the training shall see."
            )
        if self.turns and self.published_currents:
            raise InputError(
                "SpikingBertConfig needs turns or published_currents, got both. The paper's "
                "populations fire at the same steps: leave turns out."
            )


def check_positive(owner: str, config: SpikingConfig, names: tuple[str, ...]) -> None:
    """Raise RangeError unless these sizes are at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise RangeError(
                f"{owner} needs {name} >= 1, got {getattr(config, name)}. Give a positive number."
            )


def check_stages(owner: str, config: SpikingConfig, divisor: int) -> None:
    """Raise RangeError unless stages, heads and channels fit each other."""
    check_positive(owner, config, ("expansion", "num_channels", "steps", "channels"))
    stages = len(config.depths)
    widths = [config.channels >> (stages - 1 - i) for i in range(stages)]
    fits = stages >= 1 and len(config.heads) == stages and min(*config.depths, *config.heads) >= 1
    whole = fits and config.channels % (divisor << (stages - 1)) == 0
    if not whole or any(w % h for w, h in zip(widths, config.heads, strict=True)):
        raise RangeError(
            f"{owner} needs one depth and one number of heads for each stage, channels a multiple "
            f"of {divisor} in the first and of the heads in each, got channels={config.channels}, "
            f"depths={tuple(config.depths)}, heads={tuple(config.heads)}. Choose channels=384, "
            "depths=(1, 1, 2), heads=(8, 8, 8)."
        )


CONFIGS = (
    IntegerNetConfig,
    MSQKFormerConfig,
    MaxFormerConfig,
    QKFormerConfig,
    SequenceNetConfig,
    SpikeDrivenConfig,
    SpikformerConfig,
    SpikingBertConfig,
    SpikingResformerConfig,
)
for _config in CONFIGS:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
