"""Embeddings on spikes from Python, and text models of Hugging Face."""

import json

import pytest
import torch
from folders import (
    WORDS,
    call,
    copy,
    make_tokenizer,
    quiet_transformers,  # noqa: F401 - a fixture
)
from ports import default

import isospike
from isospike.hf.load import find_model, find_port, load
from isospike.hf.pooling import MODES, Pooling, read_pooling
from isospike.porting.embed import embed_text, load_text_port

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


# ----------------------------------------------------------------------- pooling


def sentence_model(bert, folder, mode="cls", **more):
    """A model folder as sentence-transformers writes it, without that package."""
    copy(bert, folder)
    kinds = more.pop("kinds", ("Transformer", "Pooling", "Normalize"))
    modules = [
        {"idx": i, "path": "" if i == 0 else f"{i}_{kind}", "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": {f"pooling_mode_{mode}": True},
        "sentence_bert_config.json": {"max_seq_length": 6, "do_lower_case": False},
        "config_sentence_transformers.json": {"default_prompt_name": None, **more},
    }.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def by_hand(mode, hidden):
    """The embedding of one sentence, from its definition."""
    steps = torch.arange(1, len(hidden) + 1, dtype=hidden.dtype)
    return {
        "cls_token": hidden[0], "lasttoken": hidden[-1], "max_tokens": hidden.max(0).values,
        "mean_tokens": hidden.mean(0), "mean_sqrt_len_tokens": hidden.sum(0) / len(hidden) ** 0.5,
        "weightedmean_tokens": (steps @ hidden) / steps.sum(),
    }[mode]  # fmt: skip


@pytest.mark.parametrize(
    "mode",
    ["cls_token", "lasttoken", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens",
     "weightedmean_tokens"],
)  # fmt: skip
def test_a_float_model_is_pooled_as_its_folder_says(mode, bert, tmp_path):
    text_model = load(sentence_model(bert, tmp_path / "model", mode))
    assert text_model.longest_embedded == 6
    found = embed_text(text_model, SENTENCES)
    assert found.cut == 1
    for row, norm, sentence in zip(found.vectors, found.norms, SENTENCES, strict=True):
        ids = text_model.tokenizer(sentence, truncation=True, max_length=6)["input_ids"]
        with torch.no_grad():
            hidden = text_model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        vector = by_hand(mode, hidden)
        torch.testing.assert_close(norm, vector.norm(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(row, vector / vector.norm(), atol=1e-5, rtol=0)


def test_a_port_pools_as_the_model_it_was_made_of(bert, text, tmp_path):
    model = sentence_model(bert, tmp_path / "model", "cls_token")
    out = tmp_path / "port"
    done = call("port", model, "--text", text, "--out", out, "--sentences", 8, "--no-curve")
    assert done.exit_code == 0, done.stderr
    text_model = load_text_port(out)
    assert text_model.pooling == Pooling("cls", max_tokens=6)
    found = isospike.embed(out, ["w1 w2 w3"])
    with torch.no_grad():
        hidden = text_model.model(**text_model.batch(["w1 w2 w3"])).last_hidden_state[0, 0]
    torch.testing.assert_close(found[0], hidden / hidden.norm(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kinds": ("Transformer", "Pooling", "Dense")}, "got the module Dense"),
        ({"default_prompt_name": "query"}, "got the prompt 'query'"),
        ({"mode": "median"}, "got the mode"),
    ],
)
def test_an_embedding_that_takes_more_than_pooling_is_refused_by_name(given, says, bert, tmp_path):
    folder = sentence_model(bert, tmp_path / "model", **given)
    if "mode" in given:
        (folder / "1_Pooling/config.json").write_text('{"pooling_mode": ["cls", "max"]}')
        says = "got the mode 'cls with max'"
    with pytest.raises(isospike.UnsupportedError, match=says):
        embed_text(load(folder), SENTENCES)


def test_damaged_files_of_sentence_transformers_are_refused(bert, tmp_path):
    folder = sentence_model(bert, tmp_path / "model")
    (folder / "modules.json").write_text("[" * 100_000)
    with pytest.raises(isospike.InputError, match=r"embed needs .*modules.json as it was saved"):
        load(folder)


def test_a_port_without_its_tokenizer_or_with_another_is_refused(ported, tmp_path):
    folder = copy(ported, tmp_path / "port")
    make_tokenizer(words=[*WORDS, "cats"], pad_token="[PAD]").save_pretrained(folder)
    with pytest.raises(isospike.InputError, match="needs the tokenizer that the port was saved w"):
        load_text_port(folder)
    make_tokenizer(words=["a", "b"], pad_token="[PAD]").save_pretrained(folder)  # all unknown
    with pytest.raises(isospike.InputError, match="needs the tokenizer that the port was saved w"):
        load_text_port(folder)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (folder / name).unlink()
    with pytest.raises(isospike.InputError, match="needs a tokenizer beside the port, got none"):
        load_text_port(folder)


def test_a_tokenizer_saved_beside_a_port_is_found(tmp_path):
    default().model.save_pretrained(tmp_path / "port")
    make_tokenizer(pad_token="[PAD]", unk_token="[UNK]").save_pretrained(tmp_path / "port")
    assert isospike.embed(tmp_path / "port", SENTENCES).shape == (3, 24)


def test_files_of_sentence_transformers_go_with_a_port(bert, text, tmp_path):
    model = sentence_model(bert, tmp_path / "model", "cls_token", kinds=("Transformer", "Dense"))
    (model / "1_Dense").mkdir()
    (model / "1_Dense" / "model.safetensors").write_bytes(b"weights")
    pooling = read_pooling(str(model))
    folder = default().save(tmp_path / "port", pooling=pooling)
    assert read_pooling(str(folder)) == pooling
    assert (folder / "1_Dense" / "model.safetensors").read_bytes() == b"weights"
    assert default().save(folder).is_dir()  # replaced
    assert not (folder / "1_Dense").exists()


@pytest.mark.parametrize("mode", MODES)
def test_a_pooling_made_by_hand_is_read_back(mode, tmp_path):
    pooling = Pooling(mode, max_tokens=7, lower=True)
    folder = default().save(tmp_path / "port", pooling=pooling)
    assert read_pooling(str(folder)) == pooling


def test_a_module_outside_the_folder_is_refused(bert, tmp_path):
    folder = sentence_model(bert, tmp_path / "model")
    (folder / "modules.json").write_text('[{"type": "Dense", "path": "../secret"}]')
    with pytest.raises(isospike.InputError, match=r"embed needs modules.json as it was saved"):
        read_pooling(str(folder))


def test_batches_and_lengths_can_be_chosen(ported):
    rows = isospike.embed(ported, SENTENCES)
    torch.testing.assert_close(isospike.embed(ported, SENTENCES, batch_size=1), rows)
    short = isospike.embed(ported, ["w1 w2 w3", "w1 w2 w3 w4"], tokens=4)
    torch.testing.assert_close(short[1], short[0])
    with pytest.raises(isospike.RangeError, match="embed needs tokens from 1 to 32, which is what"):
        isospike.embed(ported, SENTENCES, tokens=33)
    with pytest.raises(isospike.RangeError, match="embed needs batch_size of at least 1, got 0"):
        isospike.embed(ported, SENTENCES, batch_size=0)
