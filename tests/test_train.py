"""Training: data, recipes, a run by transformers' Trainer that goes on where it was killed."""

import errno
import gzip
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from isospike.errors import InputError, RangeError, ShapeError
from isospike.train.data import Batches, Data, Part, load_data
from isospike.train.recipe import RECIPES, Recipe, find_recipe, read_recipe

needs_accelerate = pytest.mark.skipif(
    find_spec("accelerate") is None, reason="accelerate is not installed"
)
needs_pillow = pytest.mark.skipif(find_spec("PIL") is None, reason="pillow is not installed")
SMALL = Recipe("isospike-integer-net", {"channels": [8], "levels": 4}, epochs=3, batch=8, steps=1)


def parts(count=24, side=8):
    """Two classes that a small network can tell: bright above, or below."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (count, 1, side, side), generator=g, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    for image, label in zip(images, labels, strict=True):
        image[0, : side // 2] += 120 * (1 - int(label))
        image[0, side // 2 :] += 120 * int(label)
    return Part(images, labels)


def data():
    return Data("halves", ("above", "below"), parts(), parts(16))


def write_idx(folder, part, images, labels):
    for name, array in (("images", images), ("labels", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(
            int(n).to_bytes(4, "big") for n in array.shape
        )
        file = folder / f"{part}-{name}-idx{array.ndim}-ubyte.gz"
        file.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


def write_events(folder, name, counts):
    total = sum(counts)
    np.savez(
        folder / name, x=np.arange(total) % 8, y=np.arange(total) % 5, p=np.arange(total) % 2,
        t_us=np.arange(total), offset=np.cumsum([0, *counts]), label=np.arange(len(counts)) % 3,
    )  # fmt: skip


def test_the_files_of_mnist_are_read(tmp_path):
    images = np.arange(2 * 4 * 4).reshape(2, 4, 4)
    for part in ("train", "t10k"):
        write_idx(tmp_path, part, images, np.array([1, 0]))
    read = load_data(tmp_path)
    assert torch.equal(read.train.images[:, 0], torch.from_numpy(images).byte())
    assert read.test.labels.tolist() == [1, 0]
    assert read.classes == ("0", "1")


def test_events_become_frames_of_equal_numbers_of_events(tmp_path):
    write_events(tmp_path, "train.npz", [9, 0, 40])
    write_events(tmp_path, "test.npz", [5])
    read = load_data(tmp_path, steps=4)
    assert read.train.images.shape == (3, 4, 2, 8, 8)
    assert read.train.images.sum((2, 3, 4)).tolist() == [[3, 2, 2, 2], [0] * 4, [10] * 4]


@needs_pillow
def test_a_broken_image_is_named_and_left_out_if_asked(tmp_path):
    from PIL import Image

    for part in ("train", "test"):
        for name, value in (("cat", 10), ("dog", 200)):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (value,) * 3).save(tmp_path / part / name / "a.png")
    broken = tmp_path / "train" / "cat" / "b.png"
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match="b.png, which holds none"):
        load_data(tmp_path)
    read = load_data(tmp_path, skip_broken=True)
    assert read.classes == ("cat", "dog")
    assert read.train.images[:, 0, 0, 0].tolist() == [10, 200]
    Image.new("RGB", (5, 4)).save(broken)
    with pytest.raises(ShapeError, match="images of one size"):
        load_data(tmp_path)
    broken.unlink()
    (tmp_path / "test" / "cow").mkdir()
    with pytest.raises(InputError, match="got 'cow' in test alone"):
        load_data(tmp_path)


def test_folders_that_hold_no_data_are_refused(tmp_path):
    with pytest.raises(InputError, match="needs a folder, got"):
        load_data(tmp_path / "none")
    with pytest.raises(InputError, match="none of them"):
        load_data(tmp_path)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="got none in train"):
        load_data(tmp_path)


def test_damaged_files_are_refused_by_name(tmp_path):
    for part in ("train", "t10k"):
        write_idx(tmp_path, part, np.zeros((2, 4, 4)), np.array([1, 0]))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="whole files of MNIST, got .*train-images"):
        load_data(tmp_path)
    write_idx(tmp_path, "train", np.zeros((3, 4, 4)), np.array([1, 0]))
    with pytest.raises(ShapeError, match="3 images and 2 labels in train"):
        load_data(tmp_path)
    write_idx(tmp_path, "train", np.zeros((2, 5, 4)), np.array([1, 0]))
    with pytest.raises(ShapeError, match="parts of one size"):
        load_data(tmp_path)


def test_archives_of_other_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "train.npz", weights=np.zeros(2))
    write_events(tmp_path, "test.npz", [5])
    with pytest.raises(InputError, match="got weights in"):
        load_data(tmp_path)
    (tmp_path / "train.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"train\.npz"):
        load_data(tmp_path)


def test_archives_whose_numbers_cannot_be_events_are_refused(tmp_path):
    good = {
        "x": np.arange(6), "y": np.arange(6), "p": np.arange(6) % 2, "t_us": np.arange(6),
        "offset": np.array([0, 6]), "label": np.array([0]),
    }  # fmt: skip
    np.savez(tmp_path / "test.npz", **good)
    for wrong, message in (
        ({"p": 2 * (np.arange(6) % 2) - 1}, "needs p from 0 to 1, got -1 to 1"),
        ({"x": np.arange(6) - 1}, "needs x from 0 to 7, got -1 to 4"),
    ):
        np.savez(tmp_path / "train.npz", **{**good, **wrong})
        with pytest.raises(RangeError, match=message):
            load_data(tmp_path)
    np.savez(tmp_path / "train.npz", **{k: v for k, v in good.items() if k != "p"})
    with pytest.raises(InputError, match="needs arrays blob"):
        load_data(tmp_path)


def test_events_are_read_by_their_time_in_the_frame_of_both_parts(tmp_path):
    same = {"p": np.array([0, 1, 0]), "offset": np.array([0, 3]), "label": np.array([0])}
    np.savez(
        tmp_path / "train.npz", x=np.array([0, 9, 2]), y=np.zeros(3, int),
        t_us=np.array([30, 10, 20]), **same,
    )  # fmt: skip
    np.savez(tmp_path / "test.npz", x=np.arange(3), y=np.zeros(3, int), t_us=np.arange(3), **same)
    read = load_data(tmp_path, steps=3)
    assert read.train.images.shape == read.test.images.shape == (1, 3, 2, 12, 12)
    assert read.train.images[0].nonzero().tolist() == [[0, 1, 0, 9], [1, 0, 0, 2], [2, 0, 0, 0]]


@needs_pillow
def test_archives_of_images_of_two_sizes_are_refused(tmp_path):
    import io

    from PIL import Image

    packed = []
    for side in (4, 5):
        file = io.BytesIO()
        Image.new("RGB", (side, 4)).save(file, "JPEG")
        packed.append(file.getvalue())
    offset = np.cumsum([0, *map(len, packed)])
    for part in ("train", "test"):
        np.savez(
            tmp_path / f"{part}.npz", blob=np.frombuffer(b"".join(packed), np.uint8),
            offset=offset, label=np.array([0, 1]),
        )  # fmt: skip
    with pytest.raises(ShapeError, match=r"one size, got \(3, 4, 4\) and \(3, 4, 5\) of image 1"):
        load_data(tmp_path)


def test_variation_depends_on_seed_epoch_and_image_alone():
    part = parts(20)
    make = lambda seed: Batches(part, torch.zeros(1), torch.ones(1), seed=seed, shift=2)  # noqa: E731
    one, other = make(0), make(1)
    whole = one.__getitems__(list(range(20)))["pixel_values"]
    assert torch.equal(one.__getitems__([7, 3])["pixel_values"], whole[[7, 3]])
    assert not torch.equal(other.__getitems__(list(range(20)))["pixel_values"], whole)
    one.epoch = 1
    later = one.__getitems__(list(range(20)))["pixel_values"]
    assert not torch.equal(later, whole)
    moved = {tuple(image.sum((0, 1)).tolist()) for image in (*whole, *later)}
    assert len(moved) > 25, "images are shifted and mirrored"


def test_a_recipe_is_read_as_it_was_written(tmp_path):
    for name, sizes in RECIPES.items():
        for size, recipe in sizes.items():
            file = tmp_path / f"{name}-{size}.toml"
            file.write_text(recipe.toml())
            assert read_recipe(file) == recipe
            assert find_recipe(str(file)) == recipe
    plain = replace(SMALL, shift=None)
    (tmp_path / "plain.toml").write_text(plain.toml())
    assert read_recipe(tmp_path / "plain.toml") == plain
    unset = replace(SMALL, config={"channels": [8], "divisor": None})
    (tmp_path / "unset.toml").write_text(unset.toml())
    assert read_recipe(tmp_path / "unset.toml").config == {"channels": [8]}


def test_recipes_that_cannot_be_followed_are_refused(tmp_path):
    for wrong, message in (
        ("model = 1 2", "needs a TOML file"),
        ("epochs = 3", "got 'no model'"),
        ('model = "a"\nmomentum = 1', "got 'momentum'"),
    ):
        (tmp_path / "r.toml").write_text(wrong)
        with pytest.raises(InputError, match=message):
            read_recipe(tmp_path / "r.toml")
    with pytest.raises(InputError, match="got 'resnet'"):
        find_recipe("resnet")
    with pytest.raises(InputError, match="got 'huge'"):
        find_recipe("qkformer", "huge")
    for wrong in (
        {"epochs": 0}, {"batch": 0}, {"steps": 0}, {"rate": 0.0}, {"rate": float("nan")},
        {"clamped": -0.1}, {"clamped": float("nan")}, {"epochs": float("nan")}, {"seed": -1},
        {"seed": 2**32}, {"warmup": 1.5}, {"decay": -1.0}, {"smoothing": 2.0}, {"shift": -1},
        {"rate": float("inf")},
    ):  # fmt: skip
        with pytest.raises(RangeError, match="train needs"):
            replace(SMALL, **wrong).check()
    for name, value in (("epochs", "3"), ("clamped", "all"), ("rate", True), ("decay", [1])):
        recipe = replace(SMALL)
        object.__setattr__(recipe, name, value)  # as a file may have it; types are checked in tests
        with pytest.raises(InputError, match=f"needs a number for {name}, got"):
            recipe.check()
    for name, value, wanted in (
        ("batch", 2.5, "a whole number"), ("steps", 1.5, "a whole number"),
        ("seed", 0.5, "a whole number"), ("shift", "2", "a whole number"),
        ("flip", "false", "true or false"), ("config", [1], "a table"),
    ):  # fmt: skip
        recipe = replace(SMALL)
        object.__setattr__(recipe, name, value)
        with pytest.raises(InputError, match=f"needs {wanted} for {name}, got"):
            recipe.check()
    with pytest.raises(InputError, match="an optimiser of sgd, adamw, muon"):
        replace(SMALL, optimiser="lion").check()


@needs_accelerate
def test_a_network_learns_and_is_saved_with_its_recipe(tmp_path):
    from transformers import AutoModelForImageClassification

    from isospike.train.fit import accuracy, batches, fit

    found = fit(replace(SMALL, epochs=12, flip=False, shift=None), data(), tmp_path)
    assert found.accuracy >= 0.9
    assert found.losses[-1] < found.losses[0]
    again = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert again.config.id2label == {0: "above", 1: "below"}
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.epochs == 12
    assert accuracy(again, batches(recipe, data())[1]) == found.accuracy


@needs_accelerate
@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
def test_a_run_that_was_killed_in_mid_epoch_ends_with_the_same_weights(
    tmp_path, monkeypatch, optimiser
):
    home = import_module("isospike.train.fit")

    # The sixth step of nine is the last without rounding.
    recipe = replace(SMALL, clamped=0.6, optimiser=optimiser)
    whole = home.fit(recipe, data(), tmp_path / "whole").model.state_dict()
    step = home._Trainer.training_step
    calls = []

    def killed(self, *args, **keywords):
        calls.append(1)
        if len(calls) == 5:  # the second of three steps of the second epoch
            raise KeyboardInterrupt
        return step(self, *args, **keywords)

    monkeypatch.setattr(home._Trainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        home.fit(recipe, data(), tmp_path / "cut")
    resumed = home.fit(recipe, data(), tmp_path / "cut", resume=True).model.state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@needs_accelerate
def test_neurons_round_from_the_step_on_that_the_recipe_names(tmp_path, monkeypatch):
    home = import_module("isospike.train.fit")

    step, seen = home._Trainer.training_step, []

    def watched(self, model, *args, **keywords):
        seen.append({part.rounds for part in model.modules() if hasattr(part, "rounds")})
        return step(self, model, *args, **keywords)

    monkeypatch.setattr(home._Trainer, "training_step", watched)
    home.fit(replace(SMALL, clamped=0.6), data(), tmp_path)
    assert seen == [{False}] * 6 + [{True}] * 3


@needs_accelerate
def test_a_loss_that_is_no_number_stops_the_run_by_name(tmp_path):
    from isospike.train.fit import fit

    with pytest.raises(RangeError, match="needs a finite loss, got nan at step"):
        fit(replace(SMALL, rate=1e30), data(), tmp_path)


@needs_accelerate
def test_a_loss_that_is_no_number_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    home = import_module("isospike.train.fit")

    whole = home.fit(SMALL, data(), tmp_path / "whole").model.state_dict()
    loss, calls = home._Trainer.compute_loss, []

    def broken(self, *args, **keywords):
        calls.append(1)
        found = loss(self, *args, **keywords)
        return found * float("nan") if len(calls) == 5 else found  # the second epoch's second

    monkeypatch.setattr(home._Trainer, "compute_loss", broken)
    with pytest.raises(RangeError, match=r"got nan at step 4\. The last checkpoint is kept"):
        home.fit(SMALL, data(), tmp_path / "cut")
    assert [p.name for p in tmp_path.glob("cut/checkpoint-*")] == ["checkpoint-3"]
    resumed = home.fit(SMALL, data(), tmp_path / "cut", resume=True).model.state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@needs_accelerate
def test_a_full_disk_within_a_checkpoint_keeps_the_one_before(tmp_path, monkeypatch):
    home = import_module("isospike.train.fit")

    whole = home.fit(SMALL, data(), tmp_path / "whole").model.state_dict()
    save = home._Trainer._save_rng_state
    full = []

    def last_of_a_checkpoint(self, place):
        if "checkpoint-6" in place and not full:
            full.append(place)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, place)

    monkeypatch.setattr(home._Trainer, "_save_rng_state", last_of_a_checkpoint)
    with pytest.raises(InputError, match=r"checkpoint-6, got a full disk\. The checkpoint before"):
        home.fit(SMALL, data(), tmp_path / "cut")
    assert [p.name for p in tmp_path.glob("cut/checkpoint-*")] == ["checkpoint-3"]
    resumed = home.fit(SMALL, data(), tmp_path / "cut", resume=True).model.state_dict()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@needs_accelerate
def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path):
    from isospike.train.fit import find_checkpoint

    assert find_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-best").mkdir()  # is none of ours
    for step, state in ((9, "{}"), (10, '{"epoch": 1}'), (100, '{"epo'), (200, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert find_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def command(folder, out, *options, ranks=1):
    """``isospike train`` in processes of its own."""
    own = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return subprocess.Popen(
        [sys.executable, *(start if ranks > 1 else []), "-m", "isospike", "train",
         str(folder / "mine.toml"), str(folder), "--out", str(out), *options],
        env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def set_up(folder, recipe, count):
    """Files of a recipe and of its data."""
    for part in ("train", "t10k"):
        some = parts(count)
        write_idx(folder, part, some.images[:, 0].numpy(), some.labels.numpy())
    (folder / "mine.toml").write_text(recipe.toml())


def finish(process):
    """Wait for the end of a command that is to end well."""
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@needs_accelerate
@pytest.mark.slow
def test_kill_9_in_mid_epoch_and_then_resume_gives_the_same_weights(tmp_path):
    set_up(tmp_path, replace(SMALL, epochs=6), 1200)
    finish(command(tmp_path, tmp_path / "whole"))
    process = command(tmp_path, tmp_path / "cut")
    while not (tmp_path / "cut" / "checkpoint-300").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it was killed before its end"
    finish(command(tmp_path, tmp_path / "cut", "--resume"))
    ends = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut")]
    assert all(torch.equal(ends[1][name], value) for name, value in ends[0].items())


@needs_accelerate
@pytest.mark.slow
def test_two_processes_train_the_weights_that_one_trains(tmp_path):
    set_up(tmp_path, replace(SMALL, epochs=2, batch=16, rate=0.02), 80)
    for ranks in (1, 2):
        finish(command(tmp_path, tmp_path / str(ranks), ranks=ranks))
    one, two = (load_file(tmp_path / str(r) / "model.safetensors") for r in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_shared_normalisation_is_torchs_where_nobody_shares(momentum, monkeypatch):
    from isospike.train.norms import share_norms

    monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: None)
    g = torch.Generator().manual_seed(0)
    theirs, ours = (nn.BatchNorm2d(3, momentum=momentum) for _ in range(2))
    share_norms(nn.Sequential(ours))
    for norm in (theirs, ours):
        nn.init.uniform_(norm.weight, 1, 2, generator=g.manual_seed(1))
    x = 5 + torch.randn(4, 3, 2, 2, generator=g)
    y, z = (v.clone().requires_grad_() for v in (x, x))
    up = torch.randn(4, 3, 2, 2, generator=g)
    for norm, value in ((theirs, y), (ours, z)):
        norm(value)
        (norm(value) * up).sum().backward()
    torch.testing.assert_close(z.grad, y.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    assert torch.equal(ours.eval()(x), nn.BatchNorm2d.forward(ours, x))


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    from isospike.train.fit import fit

    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RangeError, match="3 processes share evenly, got 8"):
        fit(SMALL, data(), tmp_path)


@needs_accelerate
def test_a_training_is_resumed_by_its_own_recipe_alone(tmp_path, monkeypatch):
    home = import_module("isospike.train.fit")
    stop = home._Trainer.training_step

    def interrupted(self, *arguments, **keywords):
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return stop(self, *arguments, **keywords)

    monkeypatch.setattr(home._Trainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        home.fit(SMALL, data(), tmp_path)
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"to resume, got another with rate = 0\.2"):
        home.fit(replace(SMALL, rate=0.2), data(), tmp_path, resume=True)
    with pytest.raises(InputError, match=r"without an unfinished training, got .*checkpoint-3"):
        home.fit(SMALL, data(), tmp_path)
    home.fit(replace(SMALL, epochs=2), data(), tmp_path, resume=True)
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    home.fit(replace(SMALL, epochs=1), data(), tmp_path)  # a new one takes the folder
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


@needs_accelerate
def test_images_too_small_for_the_recipe_are_refused_before_training(tmp_path):
    from isospike.train.fit import fit

    tiny = Data("dots", ("a", "b"), parts(9, side=2), parts(8, side=2))
    with pytest.raises(RangeError, match="a shift below the sides, got 2"):
        fit(SMALL, tiny, tmp_path)
    with pytest.raises(ShapeError, match="IntegerNet needs sides above 2 pixels"):
        fit(replace(SMALL, shift=None), tiny, tmp_path)
    tiny = Data("dots", ("a", "b"), parts(9, side=3), parts(8, side=3))
    with pytest.raises(InputError, match="two images or larger ones to normalise"):
        fit(replace(SMALL, shift=None), tiny, tmp_path)


@needs_accelerate
def test_what_cannot_be_trained_is_refused(tmp_path):
    from isospike.train.fit import fit

    with pytest.raises(InputError, match="a checkpoint to resume from, got none"):
        fit(SMALL, data(), tmp_path, resume=True)
    with pytest.raises(InputError, match="a model of isospike.models, got 'resnet-18-tiny'"):
        fit(replace(SMALL, model="resnet-18-tiny"), data(), tmp_path)


@needs_accelerate
def test_the_command_trains_and_prints_the_accuracy(tmp_path):
    from typer.testing import CliRunner

    from isospike.cli import app

    for part in ("train", "t10k"):
        images, labels = parts(16).images[:, 0].numpy(), parts(16).labels.numpy()
        write_idx(tmp_path, part, images, labels)
    (tmp_path / "mine.toml").write_text(replace(SMALL, seed=3).toml())
    arguments = ["train", str(tmp_path / "mine.toml"), str(tmp_path), "--epochs", "1", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert 0 <= json.loads(done.stdout)["accuracy"] <= 1
    assert read_recipe(tmp_path / "out" / "recipe.toml").seed == 3
    assert read_recipe(tmp_path / "out" / "recipe.toml").epochs == 1
