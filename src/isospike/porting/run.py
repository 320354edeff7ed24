"""How the modules of one ported model run: the mode, the phase, and whoever watches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.hf.batches import Batch, token_rows
from isospike.porting.axes import Axes
from isospike.porting.choices import Choice
from isospike.porting.sites import Site
from isospike.porting.streams import Streams

EXECUTIONS = ("collapsed", "stepped")
PRECISIONS = ("exact", "fast")
FUNCTIONS = ("float", "spiking")
FAST_LEVELS = 256  # a bfloat16 holds integers up to here
ATTRIBUTE = "isospike_run"  # of a ported model


@dataclass(frozen=True)
class Mode:
    """The settings of a ported model.

    Attributes:
        execution: ``collapsed`` or ``stepped``.
        precision: ``exact`` (float32) or ``fast`` (collapsed only: weights and the results of
            linear products in bfloat16; the integers are exact in it).
        functions: How softmax, activations and normalisation are computed: ``float`` or
            ``spiking``.
    """

    execution: str = "collapsed"
    precision: str = "exact"
    functions: str = "float"

    @property
    def stepped(self) -> bool:
        """Whether spikes enter the products step by step."""
        return self.execution == "stepped"

    @property
    def fast(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.precision == "fast"

    @property
    def spiking(self) -> bool:
        """Whether circuits of spikes compute what is not a product."""
        return self.functions == "spiking"

    def check(self, who: str, levels: int = 0) -> None:
        """Raise unless a port whose codes have up to ``levels`` levels can run like this.

        Args:
            who: The function that the user called.
            levels: Of the longest code before a product with a weight.

        Raises:
            InputError: A setting that does not exist.
            RangeError: More levels than a fast port can have.
        """
        for name, known in (
            ("execution", EXECUTIONS),
            ("precision", PRECISIONS),
            ("functions", FUNCTIONS),
        ):
            value = getattr(self, name)
            if value not in known:
                raise InputError(
                    f"{who} needs {name} among {', '.join(known)}, got {value!r}. Choose one of "
                    "them."
                )
        if self.fast and (self.stepped or levels > FAST_LEVELS):
            raise RangeError(
                f"{who} needs collapsed execution and at most {FAST_LEVELS} levels for precision "
                f"'fast', got {self.execution} and {levels} levels. Use 8 steps or fewer, or "
                "precision 'exact'."
            )


@dataclass(frozen=True)
class CircuitStats:
    """What one circuit did on one batch, summed over unpadded tokens.

    Attributes:
        name: The module it belongs to.
        kind: ``activation``, ``normalisation``, ``softmax``, ``product``, ``relay`` or ``gain``.
        values: Values it gave.
        neurons: Neurons.
        spikes: Spikes.
        synaptic_ops: Additions they caused.
        neuron_updates: Neurons times the steps each was awake.
        squared_error: Against the float function of the same inputs.
        squared: That function's values.
    """

    name: str
    kind: str
    values: float
    neurons: float
    spikes: float
    synaptic_ops: float
    neuron_updates: float
    squared_error: float
    squared: float


class Watcher:
    """Sees what passes through a ported model; override what you want to see.

    Attributes:
        sees_circuits: Whether :meth:`on_circuit` is called, which costs time.
        sees_probabilities: Whether :meth:`on_input` sees the probabilities of attention too, whose
            softmax is then computed as ``exp`` and a division.
        sees_maps: Whether :meth:`on_map` is called.
    """

    sees_circuits = False
    sees_probabilities = False
    sees_maps = False

    def on_input(self, site: Site, x: Tensor) -> Tensor:
        """What a float pass shall use in place of a site's input ``x``; called by each reader."""
        return x

    def on_map(self, weights: Tensor) -> None:
        """Take note of the weights of an attention, ``[batch, heads, queries, keys]``, in a spiking
        pass."""

    def on_values(self, name: str, x: Tensor) -> None:
        """Take note of values that a circuit will encode, in a float pass."""

    def on_place(self, name: str, x: Tensor) -> None:
        """Take note of the shape of what a circuit reads, in a float pass."""

    def on_site(
        self,
        site: Site,
        x: Tensor,
        *,
        fan_out: Tensor | float,
        macs: bool = True,
        live: Tensor | None = None,
    ) -> None:
        """Take note of a site's input in a spiking pass.

        Args:
            site: The site.
            x: Its input, channels last.
            fan_out: Additions that one spike causes.
            macs: Whether the float product multiplies each value ``fan_out`` times.
            live: Entries of ``x`` that exist; a causal mask removes some.
        """

    def on_circuit(self, stats: CircuitStats) -> None:
        """Take note of what a circuit did in a spiking pass."""

    def join(self) -> None:
        """Add what was seen in the other processes: :mod:`isospike.porting.parallel`."""


@dataclass(frozen=True)
class Origin:
    """What a port needs of its making when it is saved.

    Attributes:
        rows: A long and a short input, whose answers are saved with it.
        layers: The class of each module of the float model, by name.
        card: Its model card, in Markdown.
    """

    rows: Sequence[Batch] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    card: str = ""


@dataclass
class Run:
    """The state that all modules of one ported model share.

    Attributes:
        mode: Its settings.
        phase: ``float`` or ``run``.
        token_mask: Mask of the unpadded tokens, ``[batch, tokens]``; None if all are.
        watcher: Sees what passes, while there is one.
        axes: Where rows and tokens are in what each site reads, and (named "") in the output.
        masks: Masks of the unpadded tokens by stream, while a watcher sees a pass.
        streams: Which stream each site and output belongs to.
        choices: What the model chooses by its activations.
        wants_maps: Whether attention shall give its maps, as ``output_attentions=True`` asks.
        multiplier: What computes the products that modules call; None if none call any.
        origin: What is saved with it.
        learning: How it will run once it is trained; None while it is not
            (:mod:`isospike.porting.training`).
    """

    mode: Mode = Mode()
    phase: str = "float"
    token_mask: Tensor | None = None
    watcher: Watcher | None = None
    axes: Mapping[str, Axes] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Streams = Streams({}, {})
    choices: tuple[Choice, ...] = ()
    wants_maps: bool = False
    multiplier: Any = None
    origin: Origin = Origin()
    learning: Mode | None = None

    @contextmanager
    def watching(
        self, watcher: Watcher | None, masks: Mapping[str, Tensor] | None = None
    ) -> Iterator[None]:
        """Have ``watcher`` see the passes inside, whose unpadded tokens ``masks`` say by stream."""
        before = self.watcher, self.masks, self.token_mask
        self.watcher, self.masks = watcher, masks or {}
        self.token_mask = self.masks.get("")
        try:
            yield
        finally:
            self.watcher, self.masks, self.token_mask = before

    def mask_at(self, name: str, x: Tensor) -> Tensor | None:
        """The mask of the unpadded tokens of what the site ``name`` reads (or, named "", of the
        first output), broadcastable to ``x``; None if all are."""
        return self.axes.get(name, Axes()).mask(self.masks, x)

    @contextmanager
    def switched(self, **settings: str) -> Iterator[None]:
        """Other settings for the passes inside."""
        before = self.mode
        self.mode = replace(before, **settings)
        try:
            yield
        finally:
            self.mode = before

    def seen(self, site: Site, x: Tensor) -> Tensor:
        """``x`` as the float phase shall use it."""
        return x if self.watcher is None else self.watcher.on_input(site, x)

    def show(self, name: str, x: Tensor) -> None:
        """Let the watcher see values that no site reads, in a float pass."""
        if self.watcher is not None:
            self.watcher.on_values(name, x)

    def place(self, name: str, x: Tensor) -> None:
        """Let the watcher see what a circuit reads as it is, with rows and tokens, in a float
        pass."""
        if self.watcher is not None:
            self.watcher.on_place(name, x)

    @property
    def circuit_watcher(self) -> Watcher | None:
        """Who wants to know of circuits, if anybody."""
        return self.watcher if self.watcher is not None and self.watcher.sees_circuits else None

    def rows(self, x: Tensor, name: str = "") -> Tensor:
        """Unpadded tokens of ``x [batch, tokens, channels]``; all of them where no mask fits, or
        where the model has several sequences and it is not known whose these are: those of the
        circuit ``name`` are."""
        return token_rows(x, self.circuit_mask(name))

    def circuit_mask(self, name: str) -> Tensor | None:
        """The mask of the unpadded tokens that the circuit ``name`` reads, ``[batch, tokens]``;
        None if all are, or if it is not known which of several sequences they belong to."""
        at = self.axes.get(name) if name else None
        if at is not None and at.tokens is not None:
            return self.masks.get(at.stream)
        several = any(axes.stream for axes in self.axes.values())
        return None if several else self.token_mask


def run_of(model: nn.Module) -> Run:
    """The run of a ported model.

    Raises:
        UnsupportedError: The model is not a port.
    """
    run = vars(model).get(ATTRIBUTE)
    if not isinstance(run, Run):
        raise UnsupportedError(
            f"this needs a ported model, got a {type(model).__name__} that runs in float. Port it "
            "with isospike.port first."
        )
    return run
