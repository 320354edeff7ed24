"""Padding of a model that reads two sequences counts nowhere: not in ranges, not in a report."""

import pytest
import torch
from models import seeded
from torch import nn
from transformers import BartConfig, BartModel

import isospike

LENGTHS = {"": 9, "decoder_": 6}
PADS = {"": 5, "decoder_": 4}  # more than half as much again
LOUD = 39  # a token that is padding alone, of values that are far too large


class Gated(nn.Module):
    """Two sequences, a gate on each, written with functions of torch."""

    def __init__(self):
        super().__init__()
        self.table, self.up = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.gate, self.down = nn.Linear(16, 16), nn.Linear(16, 16)
        self.table.weight.data[LOUD] *= 100

    def forward(self, input_ids, attention_mask, decoder_input_ids, decoder_attention_mask):
        source, target = self.table(input_ids), self.table(decoder_input_ids)
        source = torch.sigmoid(self.gate(source)) * self.up(source)
        known = attention_mask[..., None] * source
        target = target + known.sum(1, keepdim=True) / attention_mask.sum(1)[:, None, None]
        return (self.down(torch.exp(-target.square()) * self.up(target)),)


def bart():
    config = BartConfig(
        vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        max_position_embeddings=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=2,
    )  # fmt: skip
    return BartModel(config).eval()


def batch(seed, padded):
    draw, found = torch.Generator().manual_seed(seed), {}
    for prefix, length in LENGTHS.items():
        ids = torch.randint(3, LOUD, (24, length), generator=draw)
        mask = torch.ones_like(ids)
        if padded:
            pads = ids.new_full((24, PADS[prefix]), LOUD)
            ids, mask = torch.cat([ids, pads], 1), torch.cat([mask, torch.zeros_like(pads)], 1)
        found |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}
    return found


@pytest.fixture(scope="module", params=[Gated, bart])
def ports(request):
    """Ports of one model, calibrated and measured on the same texts without and with padding."""
    return [
        isospike.port(
            seeded(request.param), [batch(0, padded), batch(1, padded)], steps=6,
            functions="spiking", evaluation=[batch(2, padded)],
        )
        for padded in (False, True)
    ]  # fmt: skip


def test_padding_does_not_change_how_circuits_encode(ports):
    plain, padded = (
        {name: m.digits for name, m in port.model.named_modules() if hasattr(m, "digits")}
        for port in ports
    )
    assert plain == padded
    assert len(plain) >= 2
    assert ports[1].report.error == pytest.approx(ports[0].report.error, rel=1e-3)


def test_padding_does_not_count_in_what_circuits_do(ports):
    plain, padded = (
        {c.name: (c.neurons, c.spikes, c.synaptic_ops) for c in port.report.circuits}
        for port in ports
    )
    assert plain.keys() == padded.keys()
    assert any("activation" in c.kind for c in ports[0].report.circuits)
    for name, counted in plain.items():
        assert padded[name] == pytest.approx(counted, rel=1e-3), name
