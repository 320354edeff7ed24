"""Embeddings on spikes from Python, and text models of Hugging Face."""

import pytest
import torch
from folders import WORDS, quiet_transformers  # noqa: F401 - a fixture

import isospike
from isospike.hf.load import find_model, find_port, load
from isospike.porting.embed import load_text_port

SENTENCES = ["w1 w2 w3", "w4", " ".join(WORDS[:20])]


def test_a_folder_and_a_model_in_memory_give_the_same_unit_vectors(ported):
    rows = isospike.embed(ported, SENTENCES)
    assert rows.shape == (3, 24)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    text_model = load_text_port(ported)
    again = isospike.embed(text_model.model, SENTENCES, tokenizer=text_model.tokenizer)
    assert torch.equal(rows, again)


def test_the_order_of_sentences_does_not_matter(ported):
    rows = isospike.embed(str(ported), SENTENCES)
    torch.testing.assert_close(isospike.embed(ported, SENTENCES[::-1]), rows.flip(0))


@pytest.mark.parametrize(
    ("sentences", "line"),
    [([], "embed needs sentences of at least one token, got no sentence")],
)
def test_what_cannot_be_embedded_is_refused(sentences, line, ported):
    with pytest.raises(isospike.InputError, match=line):
        isospike.embed(ported, sentences)


def test_a_model_in_memory_needs_a_tokenizer(ported):
    with pytest.raises(isospike.InputError, match="embed needs a tokenizer"):
        isospike.embed(torch.nn.Linear(2, 2), SENTENCES)


def test_a_text_model_is_found_loaded_and_fed(bert, gpt2):
    source = find_model(bert)
    assert (source.place, source.name, source.label, source.is_port) == (
        str(bert), "bert", "bert", False
    )  # fmt: skip
    text_model = load(gpt2)
    assert text_model.longest == 32
    assert text_model.model.can_generate()
    (batch,) = text_model.batches(SENTENCES)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 20)
    pieces = text_model.pieces(" ".join(WORDS * 9), 2, 8)
    assert pieces["input_ids"].shape == (2, 8)


def test_a_port_is_found_and_not_taken_for_a_model(ported, bert):
    assert find_port(ported).is_port
    assert find_model(ported, ports=True).is_port
    with pytest.raises(isospike.UnsupportedError, match="which runs on spikes already"):
        find_model(ported)
    with pytest.raises(isospike.InputError, match="which holds none"):
        find_port(bert)
