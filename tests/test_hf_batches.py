"""Rows and tokens of batches."""

import torch

from isospike.hf import batches


def text(rows, tokens, masked=True):
    ids = torch.arange(1, rows * tokens + 1).view(rows, tokens)
    mask = (torch.arange(tokens) < torch.arange(1, rows + 1)[:, None]).long()
    return {"input_ids": ids, **({"attention_mask": mask} if masked else {})}


def test_rows_and_sizes_are_those_of_the_tensors():
    batch = {**text(3, 4), "use_cache": False, "scale": torch.tensor(2.0)}
    assert batches.batch_size(batch) == 3
    part = batches.rows_of(batch, slice(1, 3))
    assert part["input_ids"].tolist() == batch["input_ids"][1:].tolist()
    assert part["use_cache"] is False
    assert part["scale"] == 2


def test_a_mask_says_which_tokens_count():
    mask = batches.token_mask(text(2, 3))
    assert mask.tolist() == [[True, False, False], [True, True, False]]
    x = torch.arange(12).view(2, 3, 2)
    assert batches.token_rows(x, mask).tolist() == [[0, 1], [6, 7], [8, 9]]
    assert batches.token_rows(x, None).shape == (6, 2)
    assert batches.count_tokens(text(2, 3)) == 3
    assert batches.count_tokens(text(2, 3, masked=False)) == 6


def test_the_first_output_is_the_first_tensor_with_an_axis():
    x = torch.ones(2, 3)
    assert batches.first_output(x) is x
    assert batches.first_output((torch.tensor(1.0), x)) is x
