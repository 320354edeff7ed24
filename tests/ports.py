"""Ports of the tiny models, made once for all tests of a process, and their folders."""

import functools
import hashlib
import json

import models

import isospike

ARCHITECTURES = ("bert", "vit", "gpt2", "llama")
TEXT = ("bert", "gpt2", "llama")


@functools.cache
def float_model(name):
    return models.make(name)


@functools.cache
def ported(name, code="signed-digit", steps=8):
    """A port calibrated on 192 inputs; shared by tests, which leave it as it was."""
    batches = models.batches(name, rows=192, held=16)
    return isospike.port(float_model(name), batches, code=code, steps=steps)


def quick(model=None, name="bert", **arguments):
    """A port calibrated on few inputs."""
    return isospike.port(model or float_model(name), models.batches(name), **arguments)


@functools.cache
def default(name="bert"):
    """A port with no arguments; shared likewise."""
    return quick(name=name)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def sign(folder):
    """Write the digests of the folder's files, as somebody who means harm can."""
    digests = {
        name: hashlib.sha256(data).hexdigest()
        for name, data in contents(folder).items()
        if name != "isospike.json"
    }
    (folder / "isospike.json").write_text(json.dumps({"sha256": digests}))


def edit(folder, change):
    """Apply ``change`` to the folder's config, and make the digests right."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    sign(folder)


def one_line(caught):
    assert "\n" not in str(caught.value)
