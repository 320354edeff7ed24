from dataclasses import replace

import numpy as np
import pytest
import torch

from isospike.codes.orders import nof_m, significance
from isospike.errors import InputError, RangeError, UnsupportedError
from isospike.memory import Backoff, Combined, SequenceMachine, Shift, Store
from isospike.models.transformer import Transformer
from isospike.positions import RandomizedOrdered, Sinusoidal, position
from isospike.protocol import MachineOperations, OnlineSequence, TransformerOperations, run_online

LETTERS = "abcdefgh"
SMALL = Store(locations=512, connections=6, active=7)


def combined(**more):
    return Combined(code=(5, 64), context_code=(8, 96), **more)


def shift(**more):
    return Shift(code=(5, 64), **more)


def machine(context=None, store=SMALL, **more):
    return SequenceMachine(LETTERS, context=context or combined(), store=store, **more)


def transformer(name="rope", seed=0):
    model = Transformer(8, 16, 2, 2, position(name, width=16, heads=2, length=40))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def words(seed, count, length):
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(list(LETTERS), length)) for _ in range(count)]


def following(word):
    """After each letter of a word the next one is predicted, none after the last."""
    return OnlineSequence(word, [*word[1:], None])


# Exact relations.


def exact(rule):
    """A machine whose sums are exact: alpha is 1/2."""
    return machine(combined(weight=0.3, alpha=0.5), replace(SMALL, rule=rule, alpha=0.5))


def features(memory):
    """phi of the present context: the active locations with their significance, made without the
    kernels: nof_m(A x; w, alpha). With alpha = 1/2 every sum is exact, and so are ties."""
    matrix = memory._decoder.matrix().double()
    context = torch.from_numpy(memory._state.context.copy())
    excited = matrix @ significance(context, matrix.shape[1], 0.5)
    return significance(nof_m(excited, len(memory._state.active)), len(matrix), 0.5)


def test_a_machine_that_adds_is_linear_attention():
    """Its prediction is sum_m k(C, C_m) [symbol m = s] / sum_m k(C, C_m), k = phi . phi: attention
    over all contexts so far, with a sparse random feature map in place of the exponential."""
    operations = MachineOperations(exact("add"), floor=0.0)
    memory = operations._memory
    keys, values = [], []
    for step, letter in enumerate("abcabdabcahgfabcdabf"):
        code = operations.encode(letter)
        if step:
            phi = features(memory)
            kernel = torch.stack([phi @ key for key in keys]) if keys else torch.zeros(0)
            share = operations.decode(operations.retrieve())
            if kernel.sum() > 0:
                one_hot = torch.eye(8, dtype=torch.float64)[values]
                attention = kernel @ one_hot / kernel.sum()
                np.testing.assert_allclose(share, attention, rtol=0, atol=1e-6)
            keys.append(phi)
            values.append(code)
            operations.store(code)
        operations.context(code)
    assert len(keys) == 19


def test_a_machine_that_keeps_the_maximum_is_a_maximum_per_location():
    """y_j = sum_k phi_k(C) max_m phi_k(C_m) [symbol m = j]: not a sum over the past any more."""
    operations = MachineOperations(exact("max"), floor=0.0)
    memory = operations._memory
    pool = torch.zeros(512, 8, dtype=torch.float64)
    for step, letter in enumerate("abcabdabcahgfabcdabf"):
        code = operations.encode(letter)
        if step:
            phi = features(memory)
            answer = phi @ pool
            if answer.sum() > 0:
                share = operations.decode(operations.retrieve())
                np.testing.assert_allclose(share, answer / answer.sum(), rtol=0, atol=1e-6)
            pool[:, code] = torch.maximum(pool[:, code], phi)
            operations.store(code)
        operations.context(code)


@pytest.mark.parametrize("name", ["rope", "sinusoidal", "alibi", "none", "fire"])
def test_the_transformer_predicts_token_by_token_what_one_pass_predicts(name):
    model = transformer(name)
    operations = TransformerOperations(model, LETTERS)
    word = words(1, 1, 30)[0]
    with torch.no_grad():
        whole = model(torch.tensor([[LETTERS.index(c) for c in word]]))[0].double().softmax(-1)
    for i, letter in enumerate(word):
        operations.context(operations.encode(letter))
        share = operations.decode(operations.retrieve())
        np.testing.assert_allclose(share, whole[i], rtol=1e-3, atol=1e-5)
        operations.store(operations.encode("a"))  # of which it takes no notice


def test_the_machines_operations_are_the_machine():
    ours, plain = MachineOperations(machine()), machine()
    word = words(2, 1, 200)[0]
    right = plain.learn_sequence(word)
    plain.reset_context()
    ours.reset_context()
    guesses = []
    for letter in word:
        share = ours.decode(ours.retrieve())
        guesses.append(LETTERS[share.argmax()] == letter and share.max() > share.min())
        code = ours.encode(letter)
        ours.store(code)
        ours.context(code)
    assert np.array_equal(guesses, right)


def test_a_machine_of_wheel_neurons_answers_the_same():
    text = [following("abcdefghhgfe" * 3)] * 2
    plain, spiking = (
        run_online(MachineOperations(machine(layers=layers)), text)
        for layers in ("abstract", "wheel")
    )
    assert (plain.bits, plain.accuracy) == (spiking.bits, spiking.accuracy)


# Where the equivalence stops.


def test_the_cache_grows_and_the_machines_state_does_not():
    ours, peer = MachineOperations(machine()), TransformerOperations(transformer(), LETTERS)
    sizes = {}
    for operations in (ours, peer):
        seen = []
        for word in words(0, 1, 30):
            for letter in word:
                operations.context(operations.encode(letter))
                operations.store(operations.encode("a"))
                seen.append(operations.state)
        sizes[operations] = seen
    assert len(set(sizes[ours])) == 1
    assert sizes[peer] == [2 * 2 * 16 * (i + 1) for i in range(30)]  # layers, k and v, width


def test_what_has_left_the_context_is_gone_and_what_is_in_the_cache_is_not():
    """Two pasts that differ long ago: the machine stands in the same context, attention sees."""
    recent = "hgfedcbahgfedcbahgfedcba"
    register = MachineOperations(machine(shift()))
    peer = TransformerOperations(transformer("none"), LETTERS)
    answers = {}
    for operations in (register, peer):
        for past in ("a", "b"):
            operations.reset_memory()
            for letter in past + recent:
                operations.context(operations.encode(letter))
                operations.store(None)
            operations.context(operations.encode("a"))
            if operations is register:
                answers[operations, past] = operations._memory._state.active.copy()
            else:
                answers[operations, past] = operations.decode(operations.retrieve())
    assert np.array_equal(answers[register, "a"], answers[register, "b"])
    assert np.abs(answers[peer, "a"] - answers[peer, "b"]).max() > 1e-6


# The harness.


def test_one_harness_scores_both():
    text = [following(word) for word in ["abcdefgh" * 4] * 3]
    ours = run_online(MachineOperations(machine()), text, skip=1)
    assert (ours.scored, ours.accuracy, ours.sequence_accuracy) == (62, 1, 1)
    assert ours.bits < 0.5
    model = transformer()
    theirs = run_online(TransformerOperations(model, LETTERS), text)
    assert theirs.scored == 93
    assert theirs.state == theirs.largest_state == 2 * 2 * 16 * 32
    inputs = torch.tensor([[LETTERS.index(c) for c in text[0][0]]])
    with torch.no_grad():
        share = model(inputs)[0, :-1].double().softmax(-1)
    target = inputs[0, 1:]
    bits = -share.gather(1, target[:, None]).log2().mean().item()
    assert theirs.bits == pytest.approx(bits, abs=1e-4)
    assert theirs.accuracy == pytest.approx((share.argmax(1) == target).double().mean().item())


def test_resetting_the_memory_empties_the_store():
    for operations in (
        MachineOperations(machine()),
        MachineOperations(machine(Backoff(synapses=4096), None)),
        MachineOperations(machine(shift(), replace(SMALL, rule="decay"))),
    ):
        run_online(operations, [following("abcabc")])
        operations.context(operations.encode("a"))
        assert operations.decode(operations.retrieve()).argmax() == 1
        before = operations.state
        operations.reset_memory()
        operations.context(operations.encode("a"))
        share = operations.decode(operations.retrieve())
        assert share == pytest.approx(np.full(8, 1 / 8))
        assert operations.state == before


def test_a_machine_that_does_not_learn_stays_as_it_is():
    operations = MachineOperations(machine())
    run_online(operations, [following("abcabcabc")])
    before = operations._memory._state.counters.copy()
    first = run_online(operations, [following("cbacba")], learn=False)
    assert np.array_equal(operations._memory._state.counters, before)
    assert run_online(operations, [following("cbacba")], learn=False) == first


def test_a_target_may_be_stored_and_not_scored():
    word = "abcdabcd"
    late = [False] * 4 + [True] * 3 + [False]
    operations = MachineOperations(machine(shift(depth=1)))
    found = run_online(
        operations, [OnlineSequence(word, [*word[1:], None], late)], reset_memory=True
    )
    assert (found.scored, found.accuracy) == (3, 1)


def test_resetting_the_memory_is_not_resetting_the_context():
    twice = [following("abcdefgh")] * 2
    kept = run_online(MachineOperations(machine()), twice, skip=1)
    gone = run_online(MachineOperations(machine()), twice, skip=1, reset_memory=True)
    assert kept.accuracy == 1
    assert gone.accuracy < 0.5


def test_answers_are_probabilities():
    for operations in (
        MachineOperations(machine()),
        TransformerOperations(transformer(), LETTERS),
    ):
        assert operations.decode(operations.retrieve()) == pytest.approx(np.full(8, 1 / 8))
        for letter in "abab":
            operations.context(operations.encode(letter))
            share = operations.decode(operations.retrieve())
            assert share.shape == (8,)
            assert share.min() > 0
            assert share.sum() == pytest.approx(1)
            operations.store(operations.encode("b"))


# Errors.


def test_mistakes_are_named():
    ours = MachineOperations(machine())
    for operations in (ours, TransformerOperations(transformer(), LETTERS)):
        with pytest.raises(InputError, match="symbol of the alphabet of 8, got 'z'"):
            operations.encode("z")
        with pytest.raises(InputError, match="of one length, got 2, 1 and 1"):
            run_online(operations, [OnlineSequence("ab", "a")])
        with pytest.raises(InputError, match="at least one target to score, got none"):
            run_online(operations, [OnlineSequence("ab", [None, None])])
        with pytest.raises(InputError, match="scored targets of the alphabet of 8, got 'z'"):
            run_online(operations, [OnlineSequence("ab", "zz")])
    with pytest.raises(RangeError, match=r"a floor in \[0, 1\], got 2"):
        MachineOperations(machine(), 2.0)
    for wrong in (SequenceMachine(grow=True), SequenceMachine()):
        with pytest.raises(
            UnsupportedError, match="fixed alphabet, got one that is empty or grows"
        ):
            MachineOperations(wrong)
    with pytest.raises(UnsupportedError, match="a causal transformer, got one that looks ahead"):
        TransformerOperations(Transformer(8, 16, 2, causal=False))
    with pytest.raises(InputError, match="needs 8 symbols, one a token, got 3"):
        TransformerOperations(transformer(), "abc")
    model = Transformer(8, 16, 2, 1, RandomizedOrdered(Sinusoidal(16), 40))
    peer = TransformerOperations(model, LETTERS)
    with pytest.raises(UnsupportedError, match="RandomizedOrdered needs the whole sequence"):
        run_online(peer, [following("abc")])
