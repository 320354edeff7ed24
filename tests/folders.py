"""Small models and ports as folders, texts for them, and calls of the command line."""

import errno
import random
import shutil
from pathlib import Path

import models
import pytest
from typer.testing import CliRunner

from isospike.cli import app

WORDS = [f"w{i}" for i in range(models.VOCABULARY - 4)]
SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}


def make_tokenizer(encoder=True, unknown=True, words=WORDS, **special):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = {**SPECIAL, **{word: i for i, word in enumerate(words, len(SPECIAL))}}
    kind = models.WordLevel(known, unk_token="[UNK]") if unknown else models.BPE(known, [])
    raw = Tokenizer(kind)
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    if encoder:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, cls_token="[CLS]", **special)


def make_folder(path, name, **config):
    """A tiny random model and its tokenizer, saved by transformers."""
    models.make(name, **config).save_pretrained(path)
    encoder = name == "bert"
    special = {"pad_token": "[PAD]", "sep_token": "[SEP]"} if encoder else {"eos_token": "[SEP]"}
    make_tokenizer(encoder, unk_token="[UNK]", **special).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def quiet_transformers():
    """What a command sets in transformers ends with the test; for files that call commands."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def bert(home):
    return make_folder(home / "bert", "bert")


@pytest.fixture(scope="session")
def gpt2(home):
    return make_folder(home / "gpt2", "gpt2")


@pytest.fixture(scope="session")
def text(home):
    chance = random.Random(0)
    lines = [" ".join(chance.choices(WORDS, k=chance.randint(8, 20))) for _ in range(30)]
    path = home / "text.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def ported(home, bert, text):
    """A port of the encoder, to read only."""
    out = home / "ported"
    assert (
        call("port", bert, "--text", text, "--out", out, "--steps", 6, "--no-curve").exit_code == 0
    )
    return out


@pytest.fixture(scope="session")
def writer(home, gpt2, text):
    """A port of the causal language model, to read only."""
    out = home / "writer"
    assert call("port", gpt2, "--text", text, "--out", out, "--no-curve").exit_code == 0
    return out


def call(*arguments, **settings):
    return CliRunner().invoke(app, [str(a) for a in arguments], **settings)


def said(done, status=2):
    """The one line of an error; nothing else was printed anywhere."""
    assert done.exit_code == status, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def files(folder):
    """Every file below a folder with its content."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def copy(source, target):
    return Path(shutil.copytree(source, target))


def truncate(model):
    (weights,) = model.glob("[im]*.safetensors")  # of a model, or of a port
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])


def run_out_of_disk(target):
    raise OSError(errno.ENOSPC, "No space left on device", str(target))
