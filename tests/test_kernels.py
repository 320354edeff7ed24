"""Binary products and the memory they run in."""

import math
import os
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isospike.codes.code import CODES, linear_code
from isospike.kernels.product.int8 import (
    LARGEST_WEIGHT,
    add_product,
    can_pack,
    new_membrane,
    pack,
    paired,
    spell_words,
    spike_steps,
)
from isospike.kernels.runtime import buffers as memory
from isospike.kernels.runtime import threads as team
from isospike.kernels.runtime.buffers import KEPT, LARGE, blocks, fresh, scratch
from isospike.kernels.runtime.threads import share


def random_integers(code, shape, seed):
    draw = torch.Generator().manual_seed(seed)
    low = -code.levels if code.neurons == 2 else 0
    return torch.randint(low, code.levels + 1, shape, generator=draw).float()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("steps", [2, 7, 8, 9, 16, 17])
def test_words_spell_what_the_code_spells(name, steps):
    code = linear_code(name, steps)
    integers = random_integers(code, (5, 3), seed=steps)
    expected = code.spell(integers)
    seen = list(spike_steps(code, spell_words(code, integers)))
    assert len(seen) == steps
    total = torch.zeros(5, 3, dtype=torch.float64)
    for t, (weight, spikes) in enumerate(
        (w, s.clone()) for w, s in spike_steps(code, spell_words(code, integers))
    ):
        shown = spikes.view(5, 3, code.neurons).movedim(-1, 0).double()
        assert torch.equal((shown != 0).float(), expected[t].view(code.neurons, 5, 3))
        assert len(shown.unique()) <= 2, "one step's spikes are all alike"
        sign = torch.tensor([1.0, -1.0][: code.neurons], dtype=torch.float64)
        total += weight * (sign[:, None, None] * shown).sum(0)
    assert torch.equal(total.float(), integers), "the weighted spikes add up to the integer"


def test_by_hand_a_pair_of_three_steps():
    # 3 = 4 - 1: ON at step 0, OFF at step 2; in the word ON is the low byte, OFF the high one.
    code = linear_code("signed-digit", 3)
    words = spell_words(code, torch.tensor([[3.0, -3.0]]))
    assert words.tolist() == [[0b001 + (0b100 << 8), 0b100 + (0b001 << 8)]]
    steps = [(w, s.tolist()) for w, s in spike_steps(code, words)]
    assert steps == [(4.0, [[1, 0, 0, 1]]), (1.0, [[0, 0, 0, 0]]), (0.25, [[0, 4, 4, 0]])]


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
    weight = torch.randint(-LARGEST_WEIGHT, LARGEST_WEIGHT + 1, (outputs, channels), generator=draw)
    # Small enough together that float32 counts exactly.
    weight = weight >> int(torch.randint(0, 16, (), generator=draw)) >> 6
    step = torch.exp2(torch.randint(-20, 3, (outputs, 1), generator=draw).float())
    if not can_pack(weight.float()):
        pytest.skip("this build of torch has no eight-bit product")
    code = linear_code(name, steps)
    integers = random_integers(code, (rows, channels), seed)
    packed = pack(weight * step, step, code.neurons)
    membrane = new_membrane(packed, rows)
    for scale, spikes in spike_steps(code, spell_words(code, integers)):
        add_product(membrane, spikes, packed, scale)
    high, low = membrane.chunk(2, -1)
    expected = (integers.double() @ weight.double().t()) * step.double().t()
    assert torch.equal((high + low).double(), expected)


@pytest.mark.parametrize("value", [LARGEST_WEIGHT, -LARGEST_WEIGHT, 127, 128, -128, -129, 0])
def test_every_weight_of_two_bytes_fits_in_either_sign(value):
    packed = pack(torch.tensor([[float(value)]]), torch.ones(1, 1), 2)
    membrane = new_membrane(packed, 2)
    add_product(membrane, torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8), packed, 1.0)
    assert membrane.sum(1).tolist() == [value, -value]


def test_paired_puts_off_beside_on():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert paired(weight, 1).tolist() == weight.tolist()
    assert paired(weight, 2).tolist() == [[1, -1, 2, -2], [3, -3, 4, -4]]
    assert paired(weight, 2, 0).tolist() == [[1, 2], [-1, -2], [3, 4], [-3, -4]]


@given(st.integers(0, 50), st.integers(1, 10**8))
def test_blocks_cover_every_row_once_in_nearly_equal_parts(count, elements):
    x = torch.empty(count, 2)
    slices = list(blocks(x, elements))
    assert [i for s in slices for i in range(count)[s]] == list(range(count))
    sizes = [s.stop - s.start for s in slices]
    if sizes:
        parts = min(count, math.ceil(elements / memory.BLOCK))
        assert max(sizes) == math.ceil(count / parts)
        assert max(sizes) - min(sizes) <= parts


def test_scratch_is_kept_for_a_purpose_and_never_shared_by_threads():
    def ask(purpose, size):
        return scratch(purpose, (size,), torch.float32, torch.device("cpu")).data_ptr()

    first = ask("a", 100)
    assert ask("a", 50) == first
    assert ask("b", 100) != first
    other = []
    thread = threading.Thread(target=lambda: other.append(ask("a", 100)))
    thread.start()
    thread.join()
    assert other[0] != first


def test_scratch_asked_for_in_inference_mode_can_be_used_outside():
    with torch.inference_mode():
        scratch("inference", (3,), torch.float32, torch.device("cpu"))
    kept = scratch("inference", (3,), torch.float32, torch.device("cpu"))
    assert not kept.is_inference()
    assert torch.equal(kept.fill_(2), torch.full((3,), 2.0))


CPU = torch.device("cpu")


def test_large_memory_is_used_again_only_when_nothing_refers_to_it():
    a = fresh((LARGE,), torch.uint8, CPU)
    b = fresh((LARGE,), torch.uint8, CPU)
    place, part = a.data_ptr(), a[5:9]
    assert place != b.data_ptr()
    assert place % 64 == 0
    del a
    assert fresh((LARGE,), torch.uint8, CPU).data_ptr() != place, "a part is still held"
    del part
    again = fresh((LARGE // 4,), torch.float32, CPU)
    assert again.data_ptr() == place, "the same bytes, whatever their type"
    assert fresh((2, LARGE), torch.uint8, CPU).data_ptr() != place


def test_idle_memory_is_bounded_and_the_size_longest_idle_goes_first():
    idle = memory._Idle()
    for size in (KEPT // 4, KEPT // 2, KEPT // 4, KEPT // 4 + 1):
        idle.give(memory.np.empty(size, memory.np.uint8))
    assert idle.bytes == sum(size * len(held) for size, held in idle.held.items()) <= KEPT
    assert not idle.held.get(KEPT // 2)
    assert len(idle.held[KEPT // 4]) == 2


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize(("count", "parts"), [(0, 1), (1, 1), (10, 3), (1000, 2), (7, 7)])
def test_a_team_does_everything_once(monkeypatch, openmp, count, parts):
    if not openmp:
        monkeypatch.setattr(team, "_openmp", lambda: None)
    ranges = []
    share(lambda tag, start, stop: ranges.append((tag, start, stop)), ("it",), count, parts)
    done = [i for tag, start, stop in ranges for i in range(start, stop) if tag == "it"]
    assert sorted(done) == list(range(count))


@pytest.mark.parametrize("openmp", [True, False])
def test_what_a_team_raises_reaches_the_caller(monkeypatch, openmp):
    if not openmp:
        monkeypatch.setattr(team, "_openmp", lambda: None)

    def fails(start, stop):
        if start > 5:
            raise KeyError(start)

    with pytest.raises(KeyError):
        share(fails, (), 12, 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_a_team_too():
    share(lambda start, stop: None, (), 8, 2)
    child = os.fork()
    if child == 0:
        ranges = []
        share(lambda start, stop: ranges.append((start, stop)), (), 8, 2)
        os._exit(0 if (0, 4) in ranges and (4, 8) in ranges else 1)
    assert os.waitpid(child, 0)[1] == 0
