"""What a port costs beside the float and the quantised network: a table, and who wins and why."""

from isospike.energy import TABLES, Counts, EnergyRow, estimate_energy, memory_moved_bytes
from isospike.report import numbers
from isospike.report.table import Cell, Table

MACHINES = ("float", "quantised", "spiking")
_Row = tuple[str, str, tuple[float | int | None, ...]]
_SHOWN = {"operations": numbers.si, "bytes": numbers.memory, "pJ": numbers.energy}

MEMORY_MEANING = (
    "Memory moved, assumed: a dense network reads every weight once per input, and writes and "
    "reads every activation once; weights take 4 bytes in float32, and their bits otherwise. The "
    "spiking network reads a weight for every synaptic operation, and reads and writes a "
    "4-byte membrane at every neuron update. Sums of one step stay in registers; spikes are not "
    "stored."
)


def cost_table(counts: Counts) -> Table:
    """Operations, memory and energy per token of three machines, as numbers with their unit.

    Args:
        counts: Operations per token.

    Returns:
        The table.
    """
    head = ("quantity", "unit", "float32", _quantised(counts), "spiking")
    rows: list[tuple[Cell, ...]] = [(name, unit, *values) for name, unit, values in _rows(counts)]
    return Table(
        "Costs per token", head, tuple(rows), names=("quantity", "unit", "float32", *MACHINES[1:])
    )


def shown_costs(counts: Counts) -> Table:
    """The same for people: numbers with prefixes, the least energy in bold.

    Args:
        counts: Operations per token.

    Returns:
        The table.
    """
    rows = _rows(counts)
    first = next(i for i, row in enumerate(rows) if row[1] == "bytes")
    energies = [estimate_energy(counts, table) for table in TABLES]
    start = len(rows) - len(energies)
    best = tuple(
        (start + i, 1 + MACHINES.index(row.winner))
        for i, row in enumerate(energies)
        if row.winner is not None
    )
    cells = tuple(
        (
            name.replace("of which", "\u2003of which"),
            *(None if v is None else _SHOWN[unit](v) for v in values),
        )
        for name, unit, values in rows
    )
    head = ("per token", "float32", _quantised(counts), "spiking")
    return Table("Costs per token", head, cells, strong=best, groups=(first, start))


def _quantised(counts: Counts) -> str:
    return f"quantised, {counts.bits} x {counts.weight_bits:.3g} bits"


def winner_text(row: EnergyRow) -> str:
    """Who wins under a table, by how much, and at what spike rate that would change.

    Args:
        row: Energies under one cost table.

    Returns:
        One to three sentences.
    """
    spiking = numbers.energy(row.spiking_pj)
    if row.quantised_pj is None:
        return f"Spiking takes {spiking}. The table has no figure for another machine: no winner."
    quantised, rate = numbers.energy(row.quantised_pj), f"{row.rate:.3g}"
    leads = row.spiking_pj < row.quantised_pj
    times = ""
    if row.ratio:
        times = f", {1 / row.ratio if leads else row.ratio:.3g} times as much"
    if row.winner == "float":
        text = (
            f"Float wins: {numbers.energy(row.float_pj or 0.0)}; quantised {quantised}, spiking "
            f"{spiking}."
        )
    elif leads:
        text = f"Spiking wins: {spiking}; the quantised network takes {quantised}{times}."
    else:
        text = f"The quantised network wins: {quantised}; spiking takes {spiking}{times}."
    if row.break_even_rate is not None:
        return (
            f"{text} They break even at {row.break_even_rate:.3g} spikes per neuron and step, "
            f"below which spiking beats the quantised network; measured {rate}."
        )
    if not row.rate:
        return f"{text} Nothing spiked, so no break-even rate is known."
    if leads:
        return f"{text} No spike rate breaks even: spiking would win even at one spike per step."
    return f"{text} No spike rate breaks even: neuron updates and float operations alone take more."


def _rows(counts: Counts) -> list[_Row]:
    """Name, unit, and the value of each machine."""
    moved = memory_moved_bytes(counts)
    left = counts.float_ops if counts.spiking_float_ops is None else counts.spiking_float_ops
    traffic = (moved.float32, moved.quantised, moved.spiking)
    energies = [estimate_energy(counts, table) for table in TABLES]
    return [
        ("Multiply-accumulates", "operations", (counts.macs, counts.macs, None)),
        ("Synaptic operations (additions)", "operations", (None, None, counts.synaptic_ops)),
        ("Neuron updates", "operations", (None, None, counts.neuron_updates)),
        *(
            (f"Float operations left: {kind}", "operations", (number, number, left.get(kind)))
            for kind, number in counts.float_ops.items()
        ),
        ("Memory moved", "bytes", tuple(t.total_bytes for t in traffic)),
        ("of which weights", "bytes", tuple(t.weight_bytes for t in traffic)),
        ("of which activations or membranes", "bytes", tuple(t.state_bytes for t in traffic)),
        *(
            (f"Energy: {row.table.name}", "pJ", (row.float_pj, row.quantised_pj, row.spiking_pj))
            for row in energies
        ),
    ]
