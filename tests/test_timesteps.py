"""How many steps a network needs: the parts of the study on data without a network's whims."""

import math

import pytest
import torch
from test_train import write_events, write_idx

from isospike.errors import InputError, RangeError
from isospike.experiments import timesteps as study
from isospike.theory.laws import published_steps
from isospike.train.timesteps import (
    FAMILIES,
    Scores,
    build_small,
    dimensions,
    noise,
    places,
    rate_errors,
    relative_error,
    run_at_times,
    scores_at,
    small_images,
    train_small,
)


def test_images_become_small_and_even(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    for part in ("train", "t10k"):
        write_idx(tmp_path, part, rng.integers(0, 256, (20, 28, 28)), np.arange(20) % 10)
    found = small_images(tmp_path, 15, 10)
    assert found.train.shape == (15, 1, 16, 16)
    assert len(found.test_labels) == 10
    assert abs(float(found.train.mean())) < 1e-5
    assert abs(float(found.train.std()) - 1) < 1e-3
    for count, tests in ((21, 1), (20, 21), (0, 1), (1, 0)):
        with pytest.raises(RangeError, match=f"from 1 to 20, .* at most 40, got {count} and"):
            small_images(tmp_path, count, tests)
    tall = rng.integers(0, 256, (20, 40, 24))
    for part in ("train", "t10k"):
        write_idx(tmp_path, part, tall, np.arange(20) % 10)
    found = small_images(tmp_path, 14, 10)
    assert found.train.shape == (14, 1, 16, 16)
    filled = found.train == found.train[0, 0, 0, 0]  # 4 columns of means on either side
    assert filled.all((0, 1, 2)).tolist() == [True] * 2 + [False] * 12 + [True] * 2


def test_test_images_that_are_borrowed_are_not_trained_on(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 4)):
        write_idx(tmp_path, part, rng.integers(0, 256, (count, 28, 28)), np.zeros(count))
    found = small_images(tmp_path, 20, 14)
    apart = (found.train.flatten(1)[:, None] - found.test.flatten(1)).abs().amax(-1)
    assert apart.min() > 0


def test_events_have_one_mean_for_any_number_of_frames(tmp_path):
    write_events(tmp_path, "train.npz", [400, 320])
    write_events(tmp_path, "test.npz", [160])
    few, many = (small_images(tmp_path, 2, 1, steps) for steps in (2, 8))
    assert few.train.shape[:2] == (2, 2)
    assert many.train.shape[:2] == (2, 8)
    torch.testing.assert_close(few.train.mean(1), many.train.mean(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_network_learns_which_half_is_bright(family):
    x = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.arange(40) % 2
    x[labels == 0, :, :8] += 2
    x[labels == 1, :, 8:] += 2
    data = type(noise(1))(x, labels, x, labels)
    model = train_small(family, data, steps=2, epochs=40, seed=0)
    right = (scores_at(model, x, 2).argmax(1) == labels).float().mean()
    assert right > 0.9


def test_frozen_attention_stays_as_it_was_drawn():
    data = noise(8)
    start = build_small("QKFormer", data, seed=3).state_dict()
    end = train_small("QKFormer", data, steps=4, epochs=4, seed=3, frozen=True).state_dict()
    moved = {name for name, value in start.items() if not torch.equal(value, end[name])}
    assert "stages.0.blocks.0.mixer.v.conv.weight" not in start
    assert "stages.1.blocks.0.mixer.q.conv.weight" not in moved
    assert {"stages.1.blocks.0.mixer.v.conv.weight", "head.weight"} <= moved


def test_drawing_a_network_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    one, two = (build_small("Max-Former", noise(2), seed=1).state_dict() for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(InputError, match="build_small needs a family of QKFormer, .*got 'Former'"):
        build_small("Former", noise(2), seed=0)


def test_an_error_is_none_at_the_reference_itself():
    y = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert relative_error(y, y) == 0
    assert relative_error(y.mean(0).expand(6, 3), y) == pytest.approx(1)
    model = build_small("Spike-Driven", noise(4), seed=0).eval()
    found = run_at_times(model, lambda steps: noise(4), (1, 32))
    assert found["error"]["32"] == 0
    assert torch.equal(Scores(model, 2)(noise(4).test), scores_at(model, noise(4).test, 2)), (
        "one call for both"
    )


def test_dimensions_are_those_of_the_rows():
    data = noise(40)
    flat = data.train.clone()
    flat[:, :, 1:] = 0  # one line of 16 pixels
    flat[:, :, :, 3:] = 0
    model = build_small("SpikingResformer", data, seed=0).eval()
    assert list(places(model)) == ["tokens", "layer 1", "layer 2"]
    found = dimensions(model, flat, steps=2)
    assert found["pixels"]["pca"] == 3
    assert found["pixels"]["width"] == 256
    assert found["layer 2"]["width"] == 48


def test_observed_spikes_over_those_of_a_theory():
    model = train_small("QKFormer", noise(20), steps=4, epochs=2, seed=0)
    found = rate_errors(model, noise(20), lambda steps: noise(20), 4)
    assert found["ratio"] == pytest.approx(4 * found["eps"] ** 2 / found["spread"])
    assert 0 < found["rate"] < 1


# The rules.


def test_the_fewest_steps_are_within_an_interval_of_the_best():
    right = {1: 0.5, 2: 0.79, 4: 0.8, 8: 0.81}
    assert study.fewest(right, images=100) == 2
    assert study.fewest(right, images=10**6) == 8
    assert study.fewest({1: 0.0, 2: 0.0}, images=9) == 1


def test_predictions_are_judged_in_powers_of_two():
    assert study.determination([1, 4, 16], [1, 4, 16]) == 1
    assert study.determination([4, 4, 4], [1, 4, 16]) == 0
    assert math.isnan(study.determination([4, 4], [4, 4]))
    assert study.correlation([3, 9, 27], [1, 2, 4]) == pytest.approx(1)
    assert math.isnan(study.correlation([0, 1], [1, 2]))


def cell(d, needed, width=100.0):
    """A network of which the error falls as 1 / T and ``needed`` steps are enough."""
    right = {str(t): 0.9 if t >= needed else 0.1 for t in study.TIMES}
    errors = {str(t): needed / t for t in study.TIMES}
    at = {"pca": d, "participation": d, "two_nn": d, "width": width}
    return {
        "right": right, "error": errors, "seen": errors, "tests": 100,
        "dimensions": {"pixels": at, "tokens": at, "layer 1": at, "layer 2": at},
    }  # fmt: skip


def test_rules_find_what_was_put_in():
    usual = {("F", f"data {d}"): [cell(float(d), d // 8)] for d in (8, 16, 32)}
    needed = {pair: study.fewest(
        {t: cells[0]["right"][str(t)] for t in study.TIMES}, 100) for pair, cells in usual.items()
    }  # fmt: skip
    assert list(needed.values()) == [1, 2, 4]
    rules = study.predictions(usual, needed)
    assert list(rules["c d of the pixels, c fitted elsewhere"].values()) == [1, 2, 4]
    law = next(rule for name, rule in rules.items() if name.startswith("our law"))
    assert list(law.values()) == [1, 2, 4]
    assert rules["C d / eps^2 as written, eps = .1"]["F", "data 8"] == published_steps(8.0, 0.1)
    assert set(rules["always 4"].values()) == {4}
    tables, numbers = study.rule_tables(usual, needed, needed)
    assert numbers["always 4, fixed: mean |T - fewest T|"] == pytest.approx(5 / 3)
    assert numbers["r^2 of pca of pixels with the fewest T"] == pytest.approx(1)
    assert [len(table.head) for table in tables] == [5, 4]


def test_a_verdict_follows_the_numbers():
    rule, usual = "c d of the pixels, c fitted elsewhere", "always 4"
    off = "fixed: mean |T - fewest T|"
    numbers = {
        f"{rule}, {off}": 1.0, f"{usual}, {off}": 2.0, "share where 4 steps suffice, fixed": 1.0,
        "best r^2 of a dimension with the fewest T": 0.9,
    }  # fmt: skip
    assert study.decide(numbers) == study.HOLDS
    assert study.decide({**numbers, f"{rule}, {off}": 3.0}) == study.CORRECTED
    assert study.decide({**numbers, "best r^2 of a dimension with the fewest T": 0.1,
                         "share where 4 steps suffice, fixed": 0.5}) == study.FAILS  # fmt: skip
