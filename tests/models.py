"""Tiny random transformers of the four architectures, and inputs for them."""

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from isospike.kernels.product.trains import spike_steps
from isospike.porting.run import run_of

VOCABULARY = 50
LONGEST = 9


def make(name, seed=0, **config):
    """A random ``bert``, ``vit``, ``gpt2`` or ``llama`` (rotary positions, grouped queries)."""
    import transformers as t

    cls, config_cls, sizes = {
        "bert": (t.BertModel, t.BertConfig, {
            "vocab_size": VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 32,
        }),
        "vit": (t.ViTForImageClassification, t.ViTConfig, {
            "image_size": 16, "patch_size": 4, "num_channels": 3, "hidden_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40,
            "num_labels": 7,
        }),
        "gpt2": (t.GPT2LMHeadModel, t.GPT2Config, {
            "vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3,
            "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
        }),
        "llama": (t.LlamaForCausalLM, t.LlamaConfig, {
            "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40,
            "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": None,
            "pad_token_id": 0,
        }),
    }[name]  # fmt: skip
    return seeded(lambda: scatter(cls(config_cls(**{**sizes, **config}))).eval(), seed)


def seeded(build, seed=0):
    """``build()`` with torch's global generator seeded, and left as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def scatter(model):
    """Weights as wide as a trained model's: drawn at 0.02, every block is near the identity."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.15)
        elif parameter.detach().abs().sum() == 0:
            nn.init.normal_(parameter, std=0.05)
    return model


def batch(name, rows=16, seed=1, padded=True):
    """Inputs of a model; text is padded on the right and both ends of the length range occur."""
    generator = torch.Generator().manual_seed(seed)
    if name == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (rows, LONGEST), generator=generator)
    lengths = torch.randint(3, LONGEST + 1, (rows,), generator=generator)
    lengths[0] = LONGEST
    if rows > 1:
        lengths[1] = 3
    if not padded:
        lengths[:] = LONGEST
    mask = (torch.arange(LONGEST) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def batches(name, rows=32, held=8, seed=1):
    """One batch to calibrate on and one to hold back."""
    return [batch(name, rows, seed), batch(name, held, seed + 1)]


def first(output):
    """The first tensor of a model's output."""
    return output if isinstance(output, torch.Tensor) else output[0]


def run(model, inputs, execution=None):
    """The first output, without gradients; a port's execution is put back afterwards."""
    switched = nullcontext() if execution is None else run_of(model).switched(execution=execution)
    with torch.no_grad(), switched:
        return first(model(**inputs))


def switch(model, **settings):
    """Other settings for a port, for good."""
    run_of(model).mode = replace(run_of(model).mode, **settings)


def valid(inputs):
    """Index of the unpadded tokens of an output."""
    return inputs["attention_mask"].bool() if "attention_mask" in inputs else slice(None)


def relative(expected, got):
    """Relative root-mean-square error."""
    return float((expected - got).norm() / expected.norm())


def train(site, x):
    """The spikes of a site, ``[steps, *x.shape]`` or ``[steps, 2, *x.shape]``, 0 or 1."""
    trains = site.trains(x).value
    fired = torch.stack([step.spikes != 0 for step in spike_steps(site.code, trains)]).long()
    return fired.unflatten(0, (-1, 2)) if site.code.neurons == 2 else fired
