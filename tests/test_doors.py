"""What is no tensor, or none that can be used, at the doors of the generic rooms: our own errors.

Run without the jaxtyping hook, which would refuse these inputs before the doors do.
"""

import copy
import pickle

import numpy as np
import pytest
import torch

import isospike
from isospike import ranks
from isospike.codes import CODES, RankOrderCode, nof_m, significance, similarity
from isospike.errors import InputError, IsospikeError, RangeError, ShapeError, UnsupportedError
from isospike.memory import (
    SequenceMachine,
    SparseDistributedMemory,
    first_spikes,
    rdlif_times,
    wheel_times,
)
from isospike.models import (
    GatedOutputProjection,
    QKFormer,
    QKFormerConfig,
    Spikformer,
    SpikformerConfig,
    Transformer,
    fold,
)
from isospike.neurons import IF, LIF, PLIF, NeuronParams, NeuronState, run, step
from isospike.positions import POSITIONS, RoPE, Sinusoidal, position
from isospike.presets import norse_lif_box, snntorch_leaky, spikingjelly_lif
from isospike.products import spike_attention, spike_linear, spike_matmul
from isospike.surrogate import Sigmoid, spike

X = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
ORDER = torch.tensor([2, 0, 1])
MEMORY = SparseDistributedMemory((3, 16), (4, 3, 64), (3, 16))
FAMILY = QKFormer(QKFormerConfig(channels=32, depths=(1, 1), heads=(2, 2), num_channels=1))
BIASED = [name for name in POSITIONS if position(name, width=8, heads=2, length=9).bias(
    torch.arange(3), torch.arange(3)) is not None]  # fmt: skip

DOORS = {
    "run": lambda x: run(x),
    "pixel_values": lambda x: FAMILY(x),
    "pixel_values, folded": lambda x: fold(FAMILY)(x),
    "step": lambda x: step(x),
    "IF": lambda x: IF()(x),
    "LIF": lambda x: LIF()(x),
    "PLIF": lambda x: PLIF()(x),
    "LIF.run": lambda x: LIF().run(x),
    "NeuronState": lambda x: run(X, NeuronState(x)),
    "decay": lambda x: run(X, None, NeuronParams(decay=x)),
    "threshold of a layer": lambda x: LIF(NeuronParams(threshold=x)),
    "spike": lambda x: spike(x, Sigmoid()),
    "spike_linear": lambda x: spike_linear(x, X),
    "weight": lambda x: spike_linear(torch.ones(2, 3), x),
    "bias": lambda x: spike_linear(torch.ones(2, 3), X, 0 if x is None else x),
    "spike_matmul": lambda x: spike_matmul(x, X),
    "spike_matmul, second": lambda x: spike_matmul(torch.ones(2, 4), x),
    "queries": lambda x: spike_attention(x, X, X),
    "keys": lambda x: spike_attention(X, x, X),
    "values": lambda x: spike_attention(X, X, x),
    **{
        f"{code.name}.{action}": lambda x, code=code, action=action: getattr(code, action)(x)
        for code in (*(kind(4) for kind in CODES.values()), RankOrderCode(2))
        for action in ("encode", "decode", "quantize", "count")
    },
    "nof_m": lambda x: nof_m(x, 2),
    "significance": lambda x: significance(x, 4, 0.9),
    "similarity": lambda x: similarity(ORDER, x, 0.9),
    "write": lambda x: MEMORY.write(x, ORDER),
    "write, data": lambda x: MEMORY.write(ORDER, x),
    "read": MEMORY.read,
    "activity": MEMORY.activity,
    "active_locations": MEMORY.active_locations,
    "wheel_times": lambda x: wheel_times(x, ORDER, ORDER.sort()[0].float(), alpha=1, threshold=9),
    "wheel_times, order": lambda x: wheel_times(X, x, torch.arange(3.0), alpha=1, threshold=9),
    "rdlif_times, times": lambda x: rdlif_times(X, ORDER, x, alpha=1, threshold=9),
    "first_spikes": lambda x: first_spikes(x, 1),
    "rotate": lambda x: RoPE(3 - 1).rotate(x, torch.ones(4, 2)),
    "rotate, keys": lambda x: RoPE(2).rotate(torch.ones(4, 2), x),
    "at": lambda x: RoPE(2).rotate(torch.ones(4, 2), torch.ones(4, 2), 0.5 if x is None else x),
    "add": lambda x: Sinusoidal(2).add(x),
    **{
        f"bias of {name}": lambda x, name=name: position(
            name, width=8, heads=2, length=9
        ).bias(torch.arange(3), x)
        for name in BIASED
    },
    "measure_collapse": ranks.measure_collapse,
    "measure_maps": ranks.measure_maps,
    "recover_heads": lambda x: ranks.recover_heads(x, torch.eye(4), 2),
    "Transformer": lambda x: Transformer(10, 8, 2, 1)(x),
    "mask": lambda x: Transformer(10, 8, 2, 1)(torch.zeros(2, 3).long(), 0 if x is None else x),
    "Spikformer": lambda x: Spikformer(SpikformerConfig(channels=16, heads=2, blocks=1))(x),
    "gates": lambda x: GatedOutputProjection(3, 3)(x, torch.ones(4, 3)),
}  # fmt: skip
MATRICES = {
    "numerical_rank": ranks.numerical_rank,
    "affine_rank": ranks.affine_rank,
    "norm_rank": ranks.norm_rank,
    "head_ambiguity": lambda x: ranks.head_ambiguity(x, 2),
}
NO_TENSOR = {
    "list": [0.5, 0.25],
    "None": None,
    "text": "text",
    "array": np.ones((4, 3), np.float32),
}
UNUSABLE = {
    "sparse": lambda: X.to_sparse(),
    "compressed": lambda: X.to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([X, X[:2]]),
    "quantised": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
}
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(prototype|beta|nested|quantized|Sparse).*:UserWarning",
    "ignore:.*quantiz.*:DeprecationWarning",
)


def each_door(doors, kinds):
    """Every door with every kind of input; with one kind in the fast run, which take turns."""
    slow, count = pytest.mark.slow, len(kinds)
    cases = [
        pytest.param(door, kind, marks=[slow] * (n % count != at), id=f"{kind}-{door}")
        for n, door in enumerate(doors)
        for at, kind in enumerate(kinds)
    ]
    return pytest.mark.parametrize(("door", "what"), cases)


@each_door(DOORS, NO_TENSOR)
def test_what_is_no_tensor_is_refused_by_name(door, what):
    with pytest.raises(InputError, match=r"^\S+( \S+)? needs .* got \w+\. [A-Z]"):
        DOORS[door](NO_TENSOR[what])


@each_door(DOORS | MATRICES, UNUSABLE)
def test_a_tensor_that_is_not_dense_is_refused_by_name(door, what):
    with pytest.raises(UnsupportedError, match="needs .* as a dense tensor, got a .* Convert it"):
        (DOORS | MATRICES)[door](UNUSABLE[what]())


OTHERS = {
    "complex": X.to(torch.complex64), "eight bits": X.to(torch.float8_e4m3fn),
    "meta": X.to("meta"), "empty": torch.zeros(0), "no rows": X[:0], "no columns": X[:, :0],
    "a number": torch.tensor(1.0), "transposed": X.double().T, "half": X.half(), "bool": X.bool(),
    "whole": X.to(torch.int16), "NaN": torch.full((4, 3), torch.nan),
    "infinite": torch.full((4, 3), torch.inf),
}  # fmt: skip


@each_door(DOORS | MATRICES, OTHERS)
def test_other_types_sizes_and_values_are_served_or_refused_by_us(door, what):
    said = "it needs nothing"
    try:
        (DOORS | MATRICES)[door](OTHERS[what])
    except IsospikeError as error:
        said = str(error)
    assert " needs " in said


def test_a_parameter_struct_and_a_state_are_asked_for_by_name():
    with pytest.raises(
        InputError, match=r"run needs state as NeuronState, got Tensor. Pass Neuron"
    ):
        run(X, torch.zeros(3))
    with pytest.raises(InputError, match="LIF needs state as NeuronState, got tuple"):
        LIF().run(X, (torch.zeros(3),))
    for made in (lambda: run(X, None, 0.9), lambda: LIF(0.9)):
        with pytest.raises(
            InputError, match=r"needs params as NeuronParams, got float. Pass Neuro"
        ):
            made()
    for made in (lambda params: run(X, None, params), lambda params: LIF(params)):
        with pytest.raises(InputError, match="needs surrogate as Surrogate, got str"):
            made(NeuronParams(surrogate="sigmoid"))
    with pytest.raises(InputError, match="spike needs a Surrogate, got float"):
        spike(X, 4.0)
    node = object()
    for preset in (spikingjelly_lif, snntorch_leaky, norse_lif_box):
        with pytest.raises(InputError, match=f"{preset.__name__} needs .* as a number, got object"):
            preset(node)


@pytest.mark.parametrize("index", [np.int64, np.uint8, np.int32, lambda n: torch.tensor(n)])
@pytest.mark.parametrize("kind", [*CODES.values(), RankOrderCode])
def test_whole_numbers_of_other_libraries_are_numbers_of_steps(kind, index):
    code = kind(index(8))
    assert type(code.steps) is int
    assert (code, hash(code), repr(code)) == (kind(8), hash(kind(8)), repr(kind(8)))
    assert pickle.loads(pickle.dumps(code)) == copy.deepcopy(code) == kind(8)


@pytest.mark.parametrize("steps", [2.5, 4.0, True, np.bool_(True), np.float64(4), "8", None, [4]])
@pytest.mark.parametrize("kind", [*CODES.values(), RankOrderCode])
def test_what_is_no_whole_number_of_steps_is_refused(kind, steps):
    with pytest.raises(RangeError, match="needs a whole number of steps, got"):
        kind(steps)


def test_a_port_takes_a_number_of_steps_from_numpy():
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, vocab_size=20)  # fmt: skip
    batches = [{"input_ids": torch.arange(40).view(8, 5) % 20}]
    errors = []
    for steps in (6, np.int64(6)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = BertModel(config).eval()
        errors.append(isospike.port(model, batches, steps=steps).report.error)
    assert errors[0] == errors[1]


@pytest.mark.parametrize("of", [torch.tensor, np.array])
def test_numbers_of_other_libraries_are_the_symbols_that_they_equal(of, tmp_path):
    machine, other = SequenceMachine(grow=True), SequenceMachine(grow=True)
    right = machine.learn_sequence(of([3, 1, 4, 1, 5, 3, 1]))
    assert right.tolist() == other.learn_sequence([3, 1, 4, 1, 5, 3, 1]).tolist()
    assert machine.symbols == [3, 1, 4, 5]
    assert {type(symbol) for symbol in machine.symbols} == {int}
    machine.follow(of(3))
    assert of(4) in machine
    machine.save(tmp_path / "machine")
    assert SequenceMachine.load(tmp_path / "machine").symbols == [3, 1, 4, 5]


@pytest.mark.parametrize("symbol", [[1], {}, np.zeros(2), torch.zeros(2), (1, [2])], ids=str)
def test_a_symbol_that_cannot_be_a_key_is_refused_and_nothing_is_learned(symbol):
    machine = SequenceMachine("ab", grow=True)
    before = pickle.dumps(machine.state()[1])
    for call in (machine.learn, machine.follow, lambda s: s in machine):
        with pytest.raises(InputError, match="SequenceMachine needs hashable symbols, got a "):
            call(symbol)
    for call in (machine.learn_sequence, machine.follow_sequence, machine.match_sequence):
        with pytest.raises(InputError, match="SequenceMachine needs hashable symbols"):
            call(["c", symbol])
    for nothing in (None, float("nan")):
        with pytest.raises(InputError, match="needs symbols that equal themselves and are not Non"):
            machine.learn_sequence(["c", nothing])
    assert machine.symbols == ["a", "b"]
    assert pickle.dumps(machine.state()[1]) == before


def test_a_memory_asks_for_tensors_and_stays_as_it_was():
    memory = SparseDistributedMemory((3, 16), (4, 3, 64), (3, 16))
    with pytest.raises(InputError, match=r"write needs address as a torch.Tensor, got ndarray\. C"):
        memory.write(np.array([2, 0, 1]), np.array([2, 0, 1]))
    with pytest.raises(InputError, match="write needs data as a torch.Tensor, got list"):
        memory.write(ORDER, [2, 0, 1])
    assert memory.occupancy == 0


@pytest.mark.parametrize("computed_in", ["float32", np.float32, float])
def test_the_type_of_a_rank_is_a_torch_dtype(computed_in):
    for measure in (
        ranks.numerical_rank,
        ranks.affine_rank,
        lambda x, computed_in: ranks.norm_rank(x, "rms", computed_in),
        lambda x, computed_in: ranks.head_ambiguity(x, 1, computed_in),
        lambda x, computed_in: ranks.recover_heads(x, x.T, 1, computed_in),
    ):
        with pytest.raises(
            InputError, match="needs computed_in as a torch.dtype, got .* Use torch"
        ):
            measure(X, computed_in=computed_in)


@pytest.mark.parametrize("x", [None, "text", [[1.0, 2.0], [3.0]], [["a"]], object()], ids=str)
@pytest.mark.parametrize("measure", MATRICES)
def test_what_cannot_be_a_matrix_is_refused_by_name(measure, x):
    with pytest.raises(InputError, match=f"{measure} needs a tensor, an array or rows of numbers"):
        MATRICES[measure](x)


@pytest.mark.parametrize("name", BIASED)
def test_a_bias_takes_the_positions_of_one_row(name):
    encoding = position(name, width=8, heads=2, length=9)
    at = torch.arange(5)
    for queries, keys in ((at.expand(3, 5), at), (at, at[None]), (at[0], at)):
        with pytest.raises(ShapeError, match=r"needs (queries|keys) \[length\], got .* for each"):
            encoding.bias(queries, keys)
    with pytest.raises(RangeError, match="needs keys in whole numbers, got torch.float32"):
        encoding.bias(at, at.float())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # tables of the checks are no data for an order
def test_scikit_learns_checks_pass_but_for_two_messages():
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(isospike.ScoreSchurSort(), on_fail=None, on_skip=None)
    failed = {r["check_name"] for r in results if r["status"] == "failed"}
    # A TypeError for objects, and scikit-learn's own words for a table without columns.
    assert failed <= {"check_dtype_object", "check_estimators_empty_data_messages"}
    assert len(results) > 35
