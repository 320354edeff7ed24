"""Small sequence machines for several files of tests, what they hold, and files of them."""

import json
import tempfile
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save as to_bytes

from isospike.errors import InputError
from isospike.memory import (
    Combined,
    Layer,
    SequenceMachine,
    Shift,
    Store,
    files,
)

CONTEXTS = {context.name: context for context in (Combined(), Layer(), Shift())}
LETTERS = "abcdefghijklmnopqrstuvwxyz "
TEXT = "the quick brown fox jumps over a lazy dog"


def each_context(test):
    """The test, once for each context that addresses a store."""
    return pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)(test)


def small(symbols=LETTERS, context=CONTEXTS["combined"], *, store=None, **more):
    store = store or Store(locations=1024)
    return SequenceMachine(symbols, context=context, store=store, **more)


def content(machine):
    """All that a machine has learned, and where it stands."""
    with tempfile.TemporaryDirectory() as folder:
        machine.save(Path(folder) / "m")
        return (Path(folder) / "m").read_bytes()


def one_by_one(machine, sequence):
    """What :meth:`learn_sequence` is: predict, learn, and again."""
    right = []
    for symbol in sequence:
        right.append(machine.predict().symbol == symbol)
        machine.learn(symbol)
    return right


def followed(machine, sequence):
    """Every prediction along a sequence, with the one after it."""
    machine.reset_context()
    out = [machine.predict(50)]
    for symbol in sequence:
        machine.follow(symbol)
        out.append(machine.predict(50))
    return out


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        SequenceMachine.load(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def rewritten(saved, path, change):
    """Write the file ``saved`` after ``change(about, tensors)``."""
    path.write_bytes(saved)
    with safe_open(path, "np") as file:
        about = json.loads(file.metadata()["isospike"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about, tensors)
    about.pop("sha256", None)
    about["sha256"] = files._digest(about, tensors)
    path.write_bytes(to_bytes(tensors, metadata={"isospike": json.dumps(about)}))
    return path
