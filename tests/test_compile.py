"""torch.compile: run without the jaxtyping hook, which Dynamo cannot trace (see pyproject.toml)."""

import pytest
import torch

import isospike
from isospike.codes import CODES


@pytest.mark.parametrize("name", ["signed-digit", "phase", "latency"])
def test_a_code_compiles_to_one_graph_and_gives_the_same_spikes(name):
    code = CODES[name](6)
    x = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    integers = code.integers(x)
    compiled = torch.compile(code.spell, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(integers), code.spell(integers))


def test_a_ported_model_compiles_and_gives_the_same_output():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config).eval()
    ids = torch.randint(0, 50, (8, 6), generator=torch.Generator().manual_seed(1))
    ported = isospike.port(model, [{"input_ids": ids}], steps=6).model
    with torch.no_grad():
        expected = ported(input_ids=ids).last_hidden_state
        compiled = torch.compile(ported, backend="aot_eager")
        assert torch.equal(compiled(input_ids=ids).last_hidden_state, expected)
