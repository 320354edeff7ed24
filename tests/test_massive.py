"""A first token whose activations are 1,000 times those of the others costs these nothing."""

import models
import pytest
import torch
import transformers

import isospike

CHANNEL = 7


def llama(size, seed=0):
    """A model whose first token has one entry of so many times the others' in every block."""
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=96, max_position_embeddings=32, bos_token_id=1,
    )  # fmt: skip
    model = models.seeded(
        lambda: models.scatter(transformers.LlamaForCausalLM(config)).eval(), seed
    )
    with torch.no_grad():
        rows = model.model.embed_tokens.weight
        rows[1, CHANNEL] = size * rows.abs().mean()
    return model


def text(rows, seed):
    ids = torch.randint(3, 50, (rows, 12), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 1
    return {"input_ids": ids}


def error_of_others(model, **how):
    port = isospike.port(model, [text(24, 1)], evaluation=[text(4, 2)], **how).model
    batch = text(16, 3)
    with torch.no_grad():
        return models.relative(model(**batch).logits[:, 1:], port(**batch).logits[:, 1:])


@pytest.mark.slow
def test_a_massive_token_does_not_cost_the_others():
    # The error of one model alone moves by a tenth either way.
    plain, massive = (
        [error_of_others(llama(size, seed)) for seed in range(4)] for size in (1, 1000)
    )
    assert sum(massive) < 1.1 * sum(plain)


def test_the_integers_of_the_others_do_not_see_a_massive_token():
    port = isospike.port(llama(1000), [text(24, 1)], evaluation=[text(4, 2)]).model
    batch = text(2, 3)
    seen = {}
    hook = port.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda m, args, y: seen.setdefault(len(seen), y)
    )
    with torch.no_grad():
        port(**batch)
        port.model.embed_tokens.weight[1, CHANNEL] *= 100
        port(**batch)
    hook.remove()
    assert torch.equal(seen[0][:, 1:], seen[1][:, 1:])
