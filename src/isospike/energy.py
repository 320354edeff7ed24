"""Counts (measured) and cost tables (assumed, cited): three machines side by side.

The port measures :class:`Counts`; this module multiplies them by a named :class:`CostTable`. The
three machines are the float network, the quantised network with as many levels as the code, and the
spiking network. The last two compute the same numbers, so only their cost can differ.

========================  =================================  ==========================
machine                   matrix products                    state
========================  =================================  ==========================
float                     32-bit multiply-accumulate         32-bit activations
quantised, b bits         b x w-bit multiply, 32-bit add     b-bit activations
spiking                   one addition per synaptic op       32-bit membranes
========================  =================================  ==========================

Energy is arithmetic plus memory access, per token. Leakage, clocks, control, wires and the sending
of spikes between cores are left out on every machine.
"""

import math
from dataclasses import dataclass, fields

from isospike.errors import RangeError

FLOAT_BITS = 32
"""Bits of a weight and of an activation of the float network."""

MEMBRANE_BITS = 32
"""Bits of a membrane: it holds sums of many weights."""

ACCESS_BITS = 64
"""Bits that one memory access moves."""


@dataclass(frozen=True)
class Counts:
    """Operations per token of one model run three ways.

    Attributes:
        macs: Multiply-accumulates of all matrix products, those of attention included. The same for
            the float and the quantised network.
        synaptic_ops: Additions caused by spikes, those of attention included.
        spikes: Spikes emitted.
        neuron_updates: Neurons times steps.
        neurons: Neurons.
        bits: Bits of the quantised network with the same number of levels.
        float_ops: Float operations that stay at the soma, by kind (``softmax``, ``normalisation``,
            ``activation``, ``elementwise``); the same for all three, but see the last one.
        weights: Weights of the matrix products.
        activations: Values at the inputs of the matrix products.
        steps: Time steps.
        tokens_per_input: Mean unpadded tokens per input, over which a dense network reuses a
            weight.
        spiking_float_ops: Float operations of the spiking network, where its functions run on
            spikes too; None if the same as ``float_ops``.
        weight_bits: Mean bits of a weight of the quantised and of the spiking network.

    >>> counts = Counts(
    ...     macs=1e6, synaptic_ops=2e6, spikes=2e4, neuron_updates=2e5, neurons=25e3, bits=9,
    ...     float_ops={"softmax": 1e3}, weights=10**6, activations=12_500.0, steps=8,
    ...     tokens_per_input=20.0,
    ... )
    >>> counts.spike_rate
    0.1
    """

    macs: float
    synaptic_ops: float
    spikes: float
    neuron_updates: float
    neurons: float
    bits: int
    float_ops: dict[str, float]
    weights: int
    activations: float
    steps: int
    tokens_per_input: float
    spiking_float_ops: dict[str, float] | None = None
    weight_bits: float = 8.0

    @property
    def spike_rate(self) -> float:
        """Mean spikes per neuron per step, in [0, 1]; 0 without neurons."""
        return self.spikes / self.neuron_updates if self.neuron_updates else 0.0


@dataclass(frozen=True)
class CostTable:
    """Energy of each operation in one technology, as published. isospike measures none of it.

    ``None`` means that the source has no figure for that machine; its energy is then ``None`` too,
    never a figure of another technology.

    Attributes:
        name: Technology and arithmetic.
        source: Where the figures are published.
        note: Assumptions beyond the source, in a sentence or two.
        float_mac_pj: One 32-bit float multiply-accumulate.
        quantised_mac_pj: The part of a quantised multiply-accumulate that does not depend on the
            activation's bits.
        quantised_mac_per_bit_pj: Energy that every bit of the activation adds to it, with weights
            of 8 bits; others in proportion.
        synaptic_op_pj: One addition of a weight to a membrane.
        neuron_update_pj: One update of one neuron in one step.
        float_op_pj: One float operation at the soma, on any machine; None leaves them out.
        weight_access_pj: One 64-bit access to the memory of the weights; 0 leaves memory out.
        state_access_pj: One 64-bit access, read or write, to that of activations and membranes.

    Raises:
        RangeError: Some figure is negative, infinite or NaN.

    >>> INT8_45NM.synaptic_op_pj, LOIHI_14NM.float_mac_pj
    (0.1, None)
    """

    name: str
    source: str
    note: str
    synaptic_op_pj: float
    neuron_update_pj: float
    float_mac_pj: float | None = None
    quantised_mac_pj: float | None = None
    quantised_mac_per_bit_pj: float = 0.0
    float_op_pj: float | None = None
    weight_access_pj: float = 0.0
    state_access_pj: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name.endswith("_pj") and value is not None and not 0 <= value < math.inf:
                raise RangeError(
                    f"CostTable needs finite costs of at least 0 pJ, got {f.name}={value}. "
                    "Give the published figure, or None where there is none."
                )


_HOROWITZ = (
    "Horowitz (2014), Computing's energy problem (and what we can do about it), ISSCC, figures for "
    "45 nm at 0.9 V"
)

FLOAT_45NM = CostTable(
    name="45 nm, 32-bit float",
    source=_HOROWITZ,
    note=(
        "A multiplication takes 3.7 pJ, an addition 0.9 pJ. There is no integer unit, so the "
        "quantised network pays the float price: the comparison most often printed, and a kind "
        "one to spikes."
    ),
    float_mac_pj=4.6,
    quantised_mac_pj=4.6,
    synaptic_op_pj=0.9,
    neuron_update_pj=0.9,
    float_op_pj=4.6,
)
"""32-bit float units only: 3.7 pJ a multiplication, 0.9 pJ an addition."""

INT8_45NM = CostTable(
    name="45 nm, integers",
    source=_HOROWITZ,
    note=(
        "An 8 x 8-bit multiplication takes 0.2 pJ and a 32-bit addition 0.1 pJ. A multiplication "
        "is taken to grow in proportion to the bits of either factor, so that 32 x 32 bits would "
        "take 3.2 pJ, and 3.1 pJ is published. The float network keeps "
        "float units."
    ),
    float_mac_pj=4.6,
    quantised_mac_pj=0.1,
    quantised_mac_per_bit_pj=0.2 / 8,
    synaptic_op_pj=0.1,
    neuron_update_pj=0.1,
    float_op_pj=4.6,
)
"""Integer units: ``0.2 (b / 8) (w / 8) + 0.1`` pJ a multiply-accumulate, 0.1 pJ an addition."""

INT8_SRAM_45NM = CostTable(
    name="45 nm, integers, with SRAM",
    source=_HOROWITZ,
    note=(
        "Integers plus memory: 100 pJ for 64 bits of the 1 MB banks that hold the weights, "
        "20 pJ for 64 bits of the 32 KB banks that hold activations and membranes; a write costs "
        "as much as a read. Dense networks read a weight once per input, the spiking one once per "
        "synaptic operation."
    ),
    float_mac_pj=4.6,
    quantised_mac_pj=0.1,
    quantised_mac_per_bit_pj=0.2 / 8,
    synaptic_op_pj=0.1,
    neuron_update_pj=0.1,
    float_op_pj=4.6,
    weight_access_pj=100.0,
    state_access_pj=20.0,
)
"""The integer units of :data:`INT8_45NM` with the traffic of :func:`memory_moved_bytes`."""

LOIHI_14NM = CostTable(
    name="Loihi, 14 nm",
    source=(
        "Davies et al. (2018), Loihi: a neuromorphic manycore processor with on-chip learning, "
        "IEEE Micro 38(1)"
    ),
    note=(
        "23.6 pJ a synaptic operation and 81 pJ a neuron update. The source has figures for spikes "
        "only, so there is no other machine to compare with, and the float operations at the soma "
        "are left out."
    ),
    synaptic_op_pj=23.6,
    neuron_update_pj=81.0,
)
"""A neuromorphic chip: the spiking network only."""

TABLES: tuple[CostTable, ...] = (FLOAT_45NM, INT8_45NM, INT8_SRAM_45NM, LOIHI_14NM)
"""The tables a report prints."""


@dataclass(frozen=True)
class Traffic:
    """Bytes one machine moves between memory and arithmetic, per token.

    Attributes:
        weight_bytes: Weights read.
        state_bytes: Activations or membranes, read and written.

    >>> Traffic(weight_bytes=8.0, state_bytes=4.0).total_bytes
    12.0
    """

    weight_bytes: float
    state_bytes: float

    @property
    def total_bytes(self) -> float:
        """Both together."""
        return self.weight_bytes + self.state_bytes


@dataclass(frozen=True)
class MemoryMoved:
    """The traffic of the three machines, per token.

    Attributes:
        float32: Traffic of the float network.
        quantised: Of the quantised network with as many levels.
        spiking: Of the spiking network.

    >>> MemoryMoved(Traffic(4.0, 4.0), Traffic(1.0, 1.0), Traffic(2.0, 1.0)).spiking.total_bytes
    3.0
    """

    float32: Traffic
    quantised: Traffic
    spiking: Traffic


@dataclass(frozen=True)
class EnergyRow:
    """Energy per token of the three machines under one cost table.

    Attributes:
        table: The table.
        float_pj: Float network; None where the table has no figure for it.
        quantised_pj: Quantised network of ``Counts.bits`` bits; None likewise.
        spiking_pj: Spiking network.
        winner: ``quantised``, ``spiking`` or ``float``, whichever takes least; in a tie the first
            in this order. None if the table knows one machine only.
        rate: Mean spikes per neuron per step, measured.
        break_even_rate: The spike rate at which the spiking network would take as much energy as
            the quantised one, at the measured fan-out: spiking wins below it. None if no
            rate in [0, 1] does that, if nothing spiked (no fan-out was measured), or without a
            quantised figure.

    >>> counts = Counts(
    ...     macs=1e6, synaptic_ops=2e6, spikes=2e4, neuron_updates=2e5, neurons=25e3, bits=9,
    ...     float_ops={"softmax": 1e3}, weights=10**6, activations=12_500.0, steps=8,
    ...     tokens_per_input=20.0,
    ... )
    >>> row = estimate_energy(counts, INT8_45NM)
    >>> row.winner, row.ratio < 1
    ('spiking', True)
    """

    table: CostTable
    float_pj: float | None
    quantised_pj: float | None
    spiking_pj: float
    winner: str | None
    rate: float
    break_even_rate: float | None

    @property
    def ratio(self) -> float | None:
        """Spiking energy over quantised energy; None where either is missing or zero."""
        return self.spiking_pj / self.quantised_pj if self.quantised_pj else None


def memory_moved_bytes(counts: Counts) -> MemoryMoved:
    """Bytes each machine moves between memory and arithmetic, per token.

    (1)  float      4 weights / tokens_per_input  +  2 * 4 activations
    (2)  quantised  (weight_bits / 8) weights / tokens_per_input  +  2 * (bits / 8) activations
    (3)  spiking    (weight_bits / 8) synaptic_ops                +  2 * 4 neuron_updates

    Assumed. Dense, (1) and (2): every weight is read once per input and kept for all its tokens; an
    activation is written once by its producer and read once; sums stay in registers. Spiking, (3):
    event-driven, so a weight is read for each synaptic operation and not kept (in attention, the
    other operand stands for the weight); the sums of one step stay in registers, and each neuron's
    32-bit membrane is read and written once per step. Spikes are sent, not stored, and are not
    counted, which favours (3); a core that kept a weight for all tokens would move less than (3).

    Args:
        counts: Operations per token.

    Returns:
        The three machines' traffic, in bytes per token.

    Raises:
        RangeError: Some count is negative, infinite or NaN, or ``tokens_per_input``, ``bits`` or
            ``weight_bits`` is not positive.

    >>> counts = Counts(
    ...     macs=0.0, synaptic_ops=100.0, spikes=10.0, neuron_updates=8.0, neurons=4.0, bits=4,
    ...     float_ops={}, weights=100, activations=4.0, steps=2, tokens_per_input=10.0,
    ... )
    >>> memory_moved_bytes(counts).spiking
    Traffic(weight_bytes=100.0, state_bytes=64.0)
    """
    _check_counts("memory_moved_bytes", counts)
    weights = counts.weights / counts.tokens_per_input
    return MemoryMoved(
        float32=Traffic(weights * FLOAT_BITS / 8, 2 * counts.activations * FLOAT_BITS / 8),  # (1)
        quantised=Traffic(
            weights * counts.weight_bits / 8, 2 * counts.activations * counts.bits / 8
        ),
        spiking=Traffic(
            counts.synaptic_ops * counts.weight_bits / 8,
            2 * counts.neuron_updates * MEMBRANE_BITS / 8,
        ),  # (3)
    )


def estimate_energy(counts: Counts, table: CostTable) -> EnergyRow:
    """Energy per token of the three machines, and the spike rate at which the last two break even.

    (1)  float      macs * float_mac_pj                       + memory + soma
    (2)  quantised  macs * (quantised_mac_pj + bits * weight_bits / 8 * quantised_mac_per_bit_pj)
                    + memory + soma
    (3)  spiking    synaptic_ops * synaptic_op_pj + neuron_updates * neuron_update_pj
                    + memory + soma
    (4)  break_even_rate = rate * ((2) - fixed) / ((3) - fixed),  fixed = (3) without synaptic_ops

    ``soma`` is ``float_op_pj`` for each of ``counts.float_ops``, the same on all three machines
    unless ``counts.spiking_float_ops`` lists those of (3): one multiply-accumulate per element and
    operation, whatever its kind. ``memory`` is the traffic of :func:`memory_moved_bytes` at the
    table's price per 64 bits. In (4) only the synaptic operations follow the spikes.

    Args:
        counts: Operations per token.
        table: Cost of each operation, all of one technology.

    Returns:
        Energies in pJ per token; None for a machine the table has no figure for.

    Raises:
        RangeError: As for :func:`memory_moved_bytes`.

    >>> counts = Counts(
    ...     macs=1e6, synaptic_ops=5e5, spikes=500.0, neuron_updates=8e3, neurons=1e3, bits=8,
    ...     float_ops={}, weights=1_000_000, activations=1e3, steps=8, tokens_per_input=10.0,
    ... )
    >>> row = estimate_energy(counts, INT8_45NM)
    >>> row.winner, row.break_even_rate
    ('spiking', 0.374...)
    """
    _check_counts("estimate_energy", counts)
    moved = memory_moved_bytes(counts)
    soma = (table.float_op_pj or 0.0) * sum(counts.float_ops.values(), 0.0)
    left = counts.float_ops if counts.spiking_float_ops is None else counts.spiking_float_ops
    float_pj = quantised_pj = None
    if table.float_mac_pj is not None:
        float_pj = counts.macs * table.float_mac_pj + _memory_pj(moved.float32, table) + soma  # (1)
    if table.quantised_mac_pj is not None:
        bits = counts.bits * counts.weight_bits / 8
        mac = table.quantised_mac_pj + bits * table.quantised_mac_per_bit_pj
        quantised_pj = counts.macs * mac + _memory_pj(moved.quantised, table) + soma  # (2)
    events = counts.synaptic_ops * table.synaptic_op_pj + _memory_pj(
        Traffic(moved.spiking.weight_bytes, 0.0), table
    )
    fixed = (
        counts.neuron_updates * table.neuron_update_pj
        + _memory_pj(Traffic(0.0, moved.spiking.state_bytes), table)
        + (table.float_op_pj or 0.0) * sum(left.values(), 0.0)
    )
    spiking_pj = events + fixed  # (3)
    return EnergyRow(
        table=table,
        float_pj=float_pj,
        quantised_pj=quantised_pj,
        spiking_pj=spiking_pj,
        winner=_winner(quantised_pj, spiking_pj, float_pj),
        rate=counts.spike_rate,
        break_even_rate=_break_even_rate(counts.spike_rate, events, fixed, quantised_pj),
    )


def _winner(quantised: float | None, spiking: float, float_pj: float | None) -> str | None:
    """The machine that takes least, the first of them in a tie; None without another machine."""
    energies = {"quantised": quantised, "spiking": spiking, "float": float_pj}
    known = {name: pj for name, pj in energies.items() if pj is not None}
    return min(known, key=lambda name: known[name]) if len(known) > 1 else None


def _memory_pj(traffic: Traffic, table: CostTable) -> float:
    per_byte = 8 / ACCESS_BITS
    weights = traffic.weight_bytes * table.weight_access_pj
    return per_byte * (weights + traffic.state_bytes * table.state_access_pj)


def _break_even_rate(
    rate: float, events: float, fixed: float, quantised_pj: float | None
) -> float | None:
    if quantised_pj is None or not rate or not events:
        return None
    break_even = rate * (quantised_pj - fixed) / events  # (4)
    # A neuron spikes at most once per step: a rate above 1 is as unreachable as one below 0.
    return break_even if 0 <= break_even <= 1 else None


def _check_counts(function: str, counts: Counts) -> None:
    kinds = [*counts.float_ops.items(), *(counts.spiking_float_ops or {}).items()]
    numbers = [(f.name, getattr(counts, f.name)) for f in fields(counts)]
    plain = [(name, value) for name, value in numbers if not name.endswith("float_ops")]
    for name, value in [*plain, *kinds]:
        positive = name in ("bits", "tokens_per_input", "weight_bits")
        if not 0 <= value < math.inf or (positive and value == 0):
            raise RangeError(
                f"{function} needs finite counts {'above' if positive else 'of at least'} 0, got "
                f"{name}={value}. Count the operations of a run on at least one token."
            )
