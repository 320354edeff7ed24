from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import isospike.errors
from isospike.energy import (
    FLOAT_45NM,
    INT8_45NM,
    INT8_SRAM_45NM,
    LOIHI_14NM,
    TABLES,
    CostTable,
    Counts,
    estimate_energy,
    memory_moved_bytes,
)

# Round numbers, so that every expected value below is worked out by hand.
COUNTS = Counts(
    macs=1000.0,
    synaptic_ops=2000.0,
    spikes=50.0,
    neuron_updates=400.0,
    neurons=100.0,
    bits=4,
    float_ops={"softmax": 6.0, "activation": 4.0},
    weights=800,
    activations=90.0,
    steps=4,
    tokens_per_input=8.0,
)

positive = st.floats(1, 1e9)
parts = {
    "macs": positive,
    "synaptic_ops": positive,
    "spikes": positive,
    "neuron_updates": positive,
    "neurons": positive,
    "bits": st.integers(1, 16),
    "float_ops": st.dictionaries(st.sampled_from(["softmax", "activation"]), positive),
    "weights": st.integers(1, 10**9),
    "activations": positive,
    "steps": st.integers(1, 64),
    "tokens_per_input": st.floats(1, 512),
}
counts = st.builds(Counts, **parts)


@st.composite
def networks(draw):
    """Counts as a network has them: neurons times steps, spikes times fan-out."""
    neurons, steps = draw(st.floats(1e2, 1e5)), draw(st.integers(1, 16))
    fan_out, rate = draw(st.floats(1e2, 1e4)), draw(st.floats(0.01, 0.9))
    return Counts(
        macs=neurons * fan_out,
        synaptic_ops=rate * neurons * steps * fan_out,
        spikes=rate * neurons * steps,
        neuron_updates=neurons * steps,
        neurons=neurons,
        bits=draw(st.integers(1, 16)),
        float_ops=draw(parts["float_ops"]),
        weights=draw(st.integers(1, 10**4)),
        activations=neurons,
        steps=steps,
        tokens_per_input=draw(parts["tokens_per_input"]),
    )


tables = st.sampled_from([table for table in TABLES if table.quantised_mac_pj is not None])


# Property: at the break-even rate the two networks take the same energy.
@given(networks(), tables)
def test_at_the_break_even_rate_spiking_and_quantised_take_the_same(counted, table):
    break_even = estimate_energy(counted, table).break_even_rate
    assume(break_even is not None)
    factor = break_even / counted.spike_rate
    tipped = replace(
        counted, spikes=counted.spikes * factor, synaptic_ops=counted.synaptic_ops * factor
    )
    row = estimate_energy(tipped, table)
    assert row.rate == pytest.approx(break_even)
    assert row.spiking_pj == pytest.approx(row.quantised_pj)


@given(counts, tables)
def test_without_a_break_even_rate_no_spike_rate_changes_the_winner(counted, table):
    row = estimate_energy(counted, table)
    assume(row.break_even_rate is None and counted.spike_rate <= 1)
    factor = 1 / counted.spike_rate
    most = replace(
        counted, spikes=counted.neuron_updates, synaptic_ops=counted.synaptic_ops * factor
    )
    least = replace(counted, spikes=0.0, synaptic_ops=0.0)
    ends = [estimate_energy(c, table) for c in (least, most)]
    assert len({r.spiking_pj < r.quantised_pj for r in [*ends, row]}) == 1


@given(counts, st.sampled_from(TABLES))
def test_energy_is_proportional_to_the_counts(counted, table):
    # Everything but bits, steps and tokens_per_input, which are not operations per token.
    twice = replace(
        counted,
        **{
            name: 2 * getattr(counted, name)
            for name in (
                "macs", "synaptic_ops", "spikes", "neuron_updates", "neurons", "weights",
                "activations",
            )
        },
        float_ops={kind: 2 * n for kind, n in counted.float_ops.items()},
    )  # fmt: skip
    one, two = estimate_energy(counted, table), estimate_energy(twice, table)
    for a, b in zip(
        (one.float_pj, one.quantised_pj, one.spiking_pj),
        (two.float_pj, two.quantised_pj, two.spiking_pj),
        strict=True,
    ):
        assert b is None if a is None else b == pytest.approx(2 * a)


# Hand trace.
def test_memory_moved_by_hand():
    moved = memory_moved_bytes(COUNTS)
    # 800 weights over 8 tokens are 100 per token; 90 activations are written and read.
    assert (moved.float32.weight_bytes, moved.float32.state_bytes) == (400, 720)
    assert (moved.quantised.weight_bytes, moved.quantised.state_bytes) == (100, 90)
    # A byte for each of 2000 operations; 400 membranes of 4 bytes, read and written.
    assert (moved.spiking.weight_bytes, moved.spiking.state_bytes) == (2000, 3200)
    assert moved.spiking.total_bytes == 5200


def test_float_table_by_hand():
    row = estimate_energy(COUNTS, FLOAT_45NM)
    # Soma: 10 operations of 4.6. MACs: 1000 of 4.6. Spiking: 2400 additions of 0.9.
    assert row.float_pj == pytest.approx(4646)
    assert row.quantised_pj == pytest.approx(4646)
    assert row.spiking_pj == pytest.approx(2206)
    assert row.winner == "spiking"
    # 4646 - 46 - 360 = 4240 left for spikes; each of the 40 operations of a spike takes 0.9.
    assert row.break_even_rate == pytest.approx(4240 / (40 * 0.9) / 400)


def test_eight_bit_table_by_hand():
    row = estimate_energy(COUNTS, INT8_45NM)
    # A quantised MAC of 4 bits: 0.2 * 4 / 8 + 0.1 = 0.2.
    assert row.quantised_pj == pytest.approx(200 + 46)
    assert row.spiking_pj == pytest.approx(200 + 40 + 46)
    assert row.winner == "quantised"
    assert row.ratio == pytest.approx(286 / 246)
    assert row.rate == 50 / 400
    # 246 - 46 - 40 = 160 left for spikes, 4 each: 40 spikes where 50 were measured.
    assert row.break_even_rate == pytest.approx(40 / 400)


def test_eight_bit_multiplication_takes_its_published_price():
    row = estimate_energy(replace(COUNTS, bits=8, float_ops={}), INT8_45NM)
    assert row.quantised_pj == pytest.approx(1000 * (0.2 + 0.1))


def test_memory_table_by_hand():
    row = estimate_energy(COUNTS, INT8_SRAM_45NM)
    # Per byte: 100 / 8 = 12.5 for weights, 20 / 8 = 2.5 for state.
    assert row.float_pj == pytest.approx(4646 + 400 * 12.5 + 720 * 2.5)
    assert row.quantised_pj == pytest.approx(246 + 100 * 12.5 + 90 * 2.5)
    assert row.spiking_pj == pytest.approx(286 + 2000 * 12.5 + 3200 * 2.5)
    assert row.winner == "quantised"
    assert row.break_even_rate is None  # the membranes alone move more than the quantised network


def test_loihi_is_never_compared_with_another_machine():
    row = estimate_energy(COUNTS, LOIHI_14NM)
    assert row.spiking_pj == pytest.approx(2000 * 23.6 + 400 * 81)
    assert (row.float_pj, row.quantised_pj) == (None, None)
    assert (row.winner, row.ratio, row.break_even_rate) == (None, None, None)


def test_the_soma_costs_all_three_machines_the_same():
    without = replace(COUNTS, float_ops={})
    for table in (FLOAT_45NM, INT8_45NM, INT8_SRAM_45NM):
        row, bare = estimate_energy(COUNTS, table), estimate_energy(without, table)
        extra = [
            row.float_pj - bare.float_pj,
            row.quantised_pj - bare.quantised_pj,
            row.spiking_pj - bare.spiking_pj,
        ]
        assert extra == pytest.approx([46, 46, 46])


def test_silence_has_a_rate_of_zero_and_no_break_even_rate():
    row = estimate_energy(replace(COUNTS, spikes=0.0, synaptic_ops=0.0), INT8_45NM)
    assert (row.rate, row.break_even_rate) == (0, None)
    assert replace(COUNTS, neuron_updates=0.0).spike_rate == 0


def test_a_tie_goes_to_the_quantised_network():
    assert estimate_energy(replace(COUNTS, synaptic_ops=1e6), FLOAT_45NM).winner == "quantised"


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_table_names_its_source_with_a_year(table):
    assert any(f"({year})" in table.source for year in range(2014, 2030))


# Error: by its text.
@pytest.mark.parametrize("function", [memory_moved_bytes, lambda c: estimate_energy(c, INT8_45NM)])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"macs": -1.0}, r"at least 0, got macs=-1\.0"),
        ({"spikes": float("nan")}, r"at least 0, got spikes=nan"),
        ({"synaptic_ops": float("inf")}, r"at least 0, got synaptic_ops=inf"),
        ({"tokens_per_input": 0.0}, r"above 0, got tokens_per_input=0\.0"),
        ({"float_ops": {"softmax": -2.0}}, r"at least 0, got softmax=-2\.0"),
    ],
)
def test_impossible_counts_are_refused(function, change, text):
    with pytest.raises(isospike.errors.RangeError, match=text):
        function(replace(COUNTS, **change))


@pytest.mark.parametrize("cost", [-0.1, float("nan"), float("inf")])
def test_an_impossible_cost_is_refused(cost):
    with pytest.raises(isospike.errors.RangeError, match=rf"got neuron_update_pj={cost}"):
        CostTable("mine", "me (2026)", "", synaptic_op_pj=1.0, neuron_update_pj=cost)


def test_functions_on_spikes_spare_the_spiking_network_their_float_operations():
    spared = estimate_energy(replace(COUNTS, spiking_float_ops={"softmax": 1.0}), INT8_45NM)
    before = estimate_energy(COUNTS, INT8_45NM)
    assert before.spiking_pj - spared.spiking_pj == pytest.approx(9 * 4.6)  # 10 were kept
    assert (spared.float_pj, spared.quantised_pj) == (before.float_pj, before.quantised_pj)
    with pytest.raises(isospike.errors.RangeError, match=r"got softmax=-2\.0"):
        estimate_energy(replace(COUNTS, spiking_float_ops={"softmax": -2.0}), INT8_45NM)
