"""Binary products and the memory they run in."""

import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import isospike.kernels
from isospike import codes
from isospike.codes import CODES
from isospike.kernels.product import int8
from isospike.kernels.product.int8 import (
    MAX_PAIRED_SPIKE,
    MAX_WEIGHT,
    add_product,
    can_pack,
    largest_spike,
    new_membrane,
    pack_byte,
    pack_float32,
    pack_grid,
)
from isospike.kernels.product.trains import pack_trains, spike_steps
from isospike.kernels.runtime import buffers, threads
from isospike.kernels.runtime.buffers import (
    KEPT,
    LARGE,
    Purpose,
    cache_blocks,
    empty_pooled,
    workspace,
)
from isospike.kernels.runtime.threads import parallel_for

CPU = torch.device("cpu")


def random_integers(code, shape, seed):
    draw = torch.Generator().manual_seed(seed)
    low = -code.levels if code.neurons == 2 else 0
    return torch.randint(low, code.levels + 1, shape, generator=draw).float()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("steps", [2, 7, 8, 9, 16, 17])
def test_packed_trains_hold_the_spikes_of_the_code(name, steps):
    code = codes.code(name, steps)
    integers = random_integers(code, (5, 3), seed=steps)
    expected = code.encode_integers(integers)
    seen = list(spike_steps(code, pack_trains(code, integers)))
    assert len(seen) == steps * code.neurons
    expected = expected.view(-1, 5, 3)
    total = torch.zeros(5, 3, dtype=torch.float64)
    for t, step in enumerate(spike_steps(code, pack_trains(code, integers))):
        assert torch.equal((step.spikes != 0).float(), expected[t])
        assert len(step.spikes.unique()) <= 2, "one step's spikes are all alike"
        assert int(step.spikes.max()) <= MAX_PAIRED_SPIKE, "every machine counts it exactly"
        total += step.weight * step.dense(torch.float64)
    assert torch.equal(total.float(), integers), "the weighted spikes add up to the integer"


def test_by_hand_a_pair_of_three_steps():
    # 3 = 4 - 1: ON at step 0, OFF at step 2.
    code = codes.code("signed-digit", 3)
    trains = pack_trains(code, torch.tensor([[3.0, -3.0]]))
    assert trains.tolist() == [[[0b001, 0b100]], [[0b100, 0b001]]]
    steps = [(w, s.tolist()) for w, s in spike_steps(code, trains)]
    on, off = steps[::2], steps[1::2]
    assert on == [(4.0, [[1, 0]]), (1.0, [[0, 0]]), (0.25, [[0, 4]])]
    assert off == [(-4.0, [[0, 1]]), (-1.0, [[0, 0]]), (-0.25, [[4, 0]])]


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 40),
    channels=st.integers(1, 70),
    outputs=st.integers(1, 20),
    steps=st.integers(1, 8),
    name=st.sampled_from(["signed-digit", "phase"]),
)
def test_stepped_products_in_bytes_equal_the_integer_product(
    seed, rows, channels, outputs, steps, name
):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randint(-MAX_WEIGHT, MAX_WEIGHT + 1, (outputs, channels), generator=draw)
    # Small enough together that float32 counts exactly.
    weight = weight >> int(torch.randint(0, 16, (), generator=draw)) >> 6
    step = torch.exp2(torch.randint(-20, 3, (outputs, 1), generator=draw).float())
    if not largest_spike():
        pytest.skip("no eight-bit product is worth it here")
    code = codes.code(name, steps)
    integers = random_integers(code, (rows, channels), seed)
    trains = pack_trains(code, integers)
    packed = pack_grid(weight * step, step)
    high, low = summed(packed, spike_steps(code, trains), rows).chunk(2, -1)
    expected = (integers.double() @ weight.double().t()) * step.double().t()
    assert torch.equal((high + low).double(), expected)
    if int(weight.abs().max()) < 128:
        scattered = step.expand(-1, 3).contiguous()[:, :1]
        one = summed(pack_byte(weight * step, scattered), spike_steps(code, trains), rows)
        assert torch.equal(one.double(), expected)


def summed(packed, steps, rows):
    """What the steps of trains add up to."""
    membrane = new_membrane(packed, rows)
    for step in steps:
        add_product(membrane, step.spikes, packed, step.weight)
    return membrane


@pytest.mark.parametrize("value", [MAX_WEIGHT, -MAX_WEIGHT, 127, 128, -128, -129, 0])
def test_every_weight_of_two_bytes_fits_in_either_sign(value):
    packed = pack_grid(torch.tensor([[float(value)]]), torch.ones(1, 1))
    membrane = new_membrane(packed, 2)
    add_product(membrane, torch.tensor([[2], [0]], dtype=torch.uint8), packed, 1.0, zero=1)
    assert membrane.sum(1).tolist() == [value, -value]


def test_a_machine_counts_bytes_up_to_its_largest_spike():
    largest = largest_spike()
    assert largest in (0, MAX_PAIRED_SPIKE, 255)
    weight = torch.randint(-MAX_WEIGHT, MAX_WEIGHT, (6, 33)).float()
    weight[0], weight[1] = 127, -128
    assert can_pack(weight, 1) == (largest > 0)
    assert can_pack(weight, 2) == (largest > MAX_PAIRED_SPIKE), "where a plane is soon multiplied"
    if not largest:
        pytest.skip("no eight-bit product is worth it here")
    spikes = torch.full((5, 33), largest, dtype=torch.uint8)
    out = torch.zeros(5, 6)
    add_product(out, spikes, pack_float32(weight))
    torch.testing.assert_close(
        out.double(), spikes.double() @ weight.double().t(), rtol=1e-6, atol=0
    )


def test_with_avx2_alone_no_product_of_bytes_is_taken(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert largest_spike.__wrapped__() in (0, 255), "it would take longer than float32's"


@pytest.mark.parametrize("missing", [AttributeError, RuntimeError])
def test_a_machine_without_the_eight_bit_product_packs_nothing(monkeypatch, missing):
    def product(*arguments):
        raise missing

    monkeypatch.setattr(int8, "add_product", product)
    assert largest_spike.__wrapped__() == 0
    monkeypatch.setattr(int8, "largest_spike", lambda: 0)
    assert not can_pack(torch.zeros(2, 2), 1)


def test_the_compiler_is_imported_when_it_is_first_needed():
    names = "models, neurons, porting, products"
    code = f"import sys; from isospike import {names}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("largest", "spans"),
    [(0, {1: 0, 126: 0}), (128, {128: 1, 129: 0, 254: 0}), (255, {255: 1, 256: 2, 511: 2, 512: 0})],
)
def test_integers_enter_in_as_many_bytes_as_are_worth_it(monkeypatch, largest, spans):
    monkeypatch.setattr(int8, "largest_spike", lambda: largest)
    assert {span: int8.byte_passes(span) for span in spans} == spans


@given(st.integers(0, 50), st.integers(1, 10**8))
def test_blocks_cover_every_row_once_in_nearly_equal_parts(count, elements):
    x = torch.empty(count, 2)
    slices = list(cache_blocks(x, elements))
    assert [i for s in slices for i in range(count)[s]] == list(range(count))
    sizes = [s.stop - s.start for s in slices]
    if sizes:
        parts = min(count, math.ceil(elements / buffers.BLOCK))
        assert max(sizes) == math.ceil(count / parts)
        assert max(sizes) - min(sizes) <= parts


def test_a_workspace_is_kept_for_a_purpose_and_never_shared_by_threads():
    def ask(purpose, size):
        return workspace(purpose, (size,), torch.float32, CPU).data_ptr()

    first = ask(Purpose.QUERY, 100)
    assert ask(Purpose.QUERY, 50) == first
    assert ask(Purpose.KEY, 100) != first
    other = []
    thread = threading.Thread(target=lambda: other.append(ask(Purpose.QUERY, 100)))
    thread.start()
    thread.join()
    assert other[0] != first


def test_a_traced_program_has_no_workspaces(monkeypatch):
    kept = workspace(Purpose.SCORES, (3,), torch.float32, CPU).fill_(5)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    traced = workspace(Purpose.SCORES, (1000,), torch.float32, CPU)
    monkeypatch.undo()
    assert traced.data_ptr() != kept.data_ptr()
    assert workspace(Purpose.SCORES, (3,), torch.float32, CPU).tolist() == [5, 5, 5]


def test_a_workspace_asked_for_in_inference_mode_can_be_used_outside():
    isospike.kernels.empty_cache()
    with torch.inference_mode():
        workspace(Purpose.SCORES, (3,), torch.float32, CPU)
    kept = workspace(Purpose.SCORES, (3,), torch.float32, CPU)
    assert not kept.is_inference()
    assert torch.equal(kept.fill_(2), torch.full((3,), 2.0))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int32, torch.bool]
)
def test_a_poisoned_workspace_shows_whoever_kept_its_last_contents(monkeypatch, dtype):
    monkeypatch.setattr(buffers, "POISON", True)
    kept = workspace(Purpose.SCORES, (2, 3), dtype, CPU).zero_()
    workspace(Purpose.KEY, (2, 3), dtype, CPU)
    assert not kept.any(), "another purpose"
    workspace(Purpose.SCORES, (1, 3), dtype, CPU)
    if dtype == torch.bool:
        assert not kept.any(), "no value of a bool is out of place"
    elif dtype.is_floating_point:
        assert kept[0].isnan().all()
    else:
        assert (kept[0] == torch.iinfo(dtype).max).all()
    assert not kept[1].any(), "only what is handed out"


def test_large_memory_is_used_again_only_when_nothing_refers_to_it():
    a = empty_pooled((LARGE,), torch.uint8, CPU)
    b = empty_pooled((LARGE,), torch.uint8, CPU)
    place, part = a.data_ptr(), a[5:9]
    assert place != b.data_ptr()
    assert place % 64 == 0
    del a
    assert empty_pooled((LARGE,), torch.uint8, CPU).data_ptr() != place, "a part is still held"
    del part
    again = empty_pooled((LARGE // 4,), torch.float32, CPU)
    assert again.data_ptr() == place, "the same bytes, whatever their type"
    assert empty_pooled((2, LARGE), torch.uint8, CPU).data_ptr() != place


def test_idle_memory_is_bounded_and_the_size_longest_idle_goes_first():
    idle = buffers._Pool()
    for size in (KEPT // 4, KEPT // 2, KEPT // 4, KEPT // 4 + 1):
        idle.give(buffers.np.empty(size, buffers.np.uint8))
    assert idle.bytes == sum(size * len(held) for size, held in idle.held.items()) <= KEPT
    assert not idle.held.get(KEPT // 2)
    assert len(idle.held[KEPT // 4]) == 2


def test_an_emptied_cache_forgets_memory_and_keeps_results():
    result = empty_pooled((LARGE,), torch.uint8, CPU).fill_(7)
    space = workspace(Purpose.SCORES, (LARGE,), torch.uint8, CPU).fill_(8)
    empty_pooled((3 * LARGE,), torch.uint8, CPU)
    assert buffers._pool.bytes >= 3 * LARGE, "nothing refers to it"
    isospike.kernels.empty_cache()
    assert buffers._pool.bytes == 0
    assert not buffers._workspaces.tensors
    assert (result == 7).all()
    assert (space == 8).all()
    del result
    assert buffers._pool.bytes >= LARGE, "it is filled anew"


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize(("count", "parts"), [(0, 1), (1, 1), (10, 3), (1000, 2), (7, 7)])
def test_a_team_does_everything_once(monkeypatch, openmp, count, parts):
    if not openmp:
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    ranges = []
    parallel_for(lambda tag, start, stop: ranges.append((tag, start, stop)), ("it",), count, parts)
    done = [i for tag, start, stop in ranges for i in range(start, stop) if tag == "it"]
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("openmp", [True, False])
def test_what_a_team_raises_reaches_the_caller(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(threads, "_openmp", lambda: None)

    def fails(start, stop):
        if start > 5:
            raise KeyError(start)

    with pytest.raises(KeyError):
        parallel_for(fails, (), 12, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_team_too():
    parallel_for(lambda start, stop: None, (), 8, 2)
    child = os.fork()
    if child == 0:
        ranges = []
        parallel_for(lambda start, stop: ranges.append((start, stop)), (), 8, 2)
        os._exit(0 if (0, 4) in ranges and (4, 8) in ranges else 1)
    assert os.waitpid(child, 0)[1] == 0
