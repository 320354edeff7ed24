"""Texts of every length as batches by length."""

import pytest
import torch
from folders import WORDS, make_folder

from isospike.errors import InputError, RangeError
from isospike.hf.groups import group_by_length
from isospike.hf.load import load

TEXTS = [" ".join(WORDS[i % 20 + j % 25] for j in range(i)) for i in range(1, 60)]


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def text_model(request, tmp_path_factory):
    return load(make_folder(tmp_path_factory.mktemp("groups") / request.param, request.param))


def lengths(batch):
    return batch["attention_mask"].sum(1).tolist()


def test_each_octave_of_lengths_has_its_batch_up_to_the_models_longest(text_model):
    batches = group_by_length(text_model, TEXTS, 400)
    longest = text_model.longest
    assert [batch["input_ids"].shape[1] for batch in batches][-1] == longest
    assert len(batches) > 2
    before = 0
    for batch in batches:
        assert before < min(lengths(batch))
        before = max(lengths(batch))
        assert before == batch["input_ids"].shape[1] <= longest
        assert before <= 2 * min(lengths(batch)) or before <= 8
        with torch.inference_mode():
            text_model.model(**batch)
    shares = [sum(lengths(batch)) for batch in batches]
    assert 300 < sum(shares) < 500
    assert max(shares) < 2 * min(shares)


def test_rows_are_the_texts_and_a_long_one_is_cut_into_windows(text_model):
    long = " ".join(WORDS[i % 31] for i in range(3 * text_model.longest))
    batches = group_by_length(text_model, [long], 10 * text_model.longest)
    written = text_model.tokenizer.decode(batches[-1]["input_ids"][0], skip_special_tokens=True)
    assert long.startswith(written)
    texts = [text.strip() for text in TEXTS[:20]]
    batches = group_by_length(text_model, texts, 10_000)
    read = text_model.tokenizer.batch_decode(
        [row for batch in batches for row in batch["input_ids"]], skip_special_tokens=True
    )
    assert set(texts) <= set(read)


def test_a_short_text_is_read_again_until_every_position_is_seen(text_model):
    batches = group_by_length(text_model, [WORDS[0]], 8)
    assert lengths(batches[-1]) == [text_model.longest]


def test_a_smaller_limit_and_texts_without_a_token_are_respected(text_model):
    batches = group_by_length(text_model, ["", *TEXTS], 200, longest=16)
    assert max(batch["input_ids"].shape[1] for batch in batches) == 16
    assert all(n > 0 for batch in batches for n in lengths(batch))
    assert group_by_length(text_model, TEXTS, 200)[0]["input_ids"].tolist() == (
        group_by_length(text_model, TEXTS, 200)[0]["input_ids"].tolist()
    )


def test_numbers_and_texts_that_do_not_do_are_refused(text_model):
    with pytest.raises(RangeError, match="group_by_length needs tokens of at least 8, got 7"):
        group_by_length(text_model, TEXTS, 7)
    with pytest.raises(RangeError, match="group_by_length needs longest of at least 8, got 1"):
        group_by_length(text_model, TEXTS, longest=1)
    with pytest.raises(InputError, match="needs a tokenizer that knows the text"):
        group_by_length(text_model, ["zzz yyy", "qqq"])
    with pytest.raises(InputError, match="group_by_length needs at least one text, got none"):
        group_by_length(text_model, [])
