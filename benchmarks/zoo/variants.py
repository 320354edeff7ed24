"""BERT, Llama and others in another number type, with other masks, in wrappers, with adapters."""

import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.zoo.inputs import FIRST, TOKENS, WORDS, images, left, text, unpadded
from benchmarks.zoo.registry import Shelf, from_config, scattered

SIZES = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
MARKS = {"bos_token_id": 1, "eos_token_id": None}
DEEP = {**SIZES, **MARKS, "num_key_value_heads": 2}
WIDE = {**MARKS, "pad_token_id": 0, "vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4}
SEEN = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "intermediate_size": 64, "patch_size": 8}  # fmt: skip

bert = partial(from_config, "BertModel", SIZES)
llama = partial(from_config, "LlamaForCausalLM", DEEP)
plain = Shelf("variants", text).built
write = Shelf("variants", text, left).built


def rounded(build, kind):
    """A model in another type of numbers."""
    return build().to(kind)


def with_attention(name):
    """A BERT that attends by a function of transformers."""
    model = bert()
    model.set_attn_implementation(name)
    return model


def plus(inputs=text, **more):
    """Inputs with further arguments, each a function of the batch."""

    def both(rows, g):
        batch = inputs(rows, g)
        return {**batch, **{name: make(batch) for name, make in more.items()}}

    return both


def places(batch):
    """Positions of tokens, padding on the right, one row for each of the batch."""
    return torch.arange(TOKENS).expand(len(batch["input_ids"]), -1).clone()


def embedded(rows, g):
    """Vectors in place of tokens."""
    batch = text(rows, g)
    x = torch.randn(rows, TOKENS, 32, generator=g) * 0.3
    return {"inputs_embeds": x, "attention_mask": batch["attention_mask"]}


def causal(batch):
    """A mask of queries and keys: what is before, and no padding but a token's own."""
    mask = batch.pop("attention_mask").bool()
    seen = torch.ones(TOKENS, TOKENS).tril().bool() & mask[:, None, None, :]
    return seen | torch.eye(TOKENS).bool()


def masked(rows, g):
    """Tokens with such a mask."""
    batch = text(rows, g)
    seen = causal(batch)
    return {**batch, "attention_mask": seen}


def packed(rows, g):
    """Two texts in each row, told apart by their positions alone."""
    ids = torch.randint(FIRST, WORDS, (rows, TOKENS), generator=g)
    split = torch.randint(3, TOKENS - 3, (rows, 1), generator=g)
    at = torch.arange(TOKENS).expand(rows, -1)
    return {"input_ids": ids, "position_ids": torch.where(at < split, at, at - split)}


def compiled():
    """A compiled BERT."""
    return torch.compile(bert().eval(), backend="eager")


def quantized():
    """A BERT with weights of eight bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {nn.Linear}
        return torch.ao.quantization.quantize_dynamic(scattered(bert()), kinds, torch.qint8)


def sentences():
    """A SentenceTransformer of a small BERT and a tokenizer of made-up words."""
    import transformers as t
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules.transformer import Transformer
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    with TemporaryDirectory() as folder:
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(95))]
        place = Path(folder) / "vocab.txt"
        place.write_text("\n".join(names))
        t.BertTokenizerFast(vocab={name: i for i, name in enumerate(names)}).save_pretrained(folder)
        bert().save_pretrained(folder)
        module = Transformer(folder)
        return SentenceTransformer(modules=[module, Pooling(32)], device="cpu")


class Wrapper(nn.Module):
    """A SentenceTransformer that takes its inputs by name."""

    def __init__(self):
        super().__init__()
        self.inner = sentences()

    def forward(self, input_ids, attention_mask):
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.inner(features)["sentence_embedding"]


def inner_model():
    """The transformers model inside a SentenceTransformer."""
    module = sentences()[0]
    return getattr(module, "auto_model", None) or module.model


def adapted(build, merged=False, **more):
    """A model with low-rank adapters."""
    import peft

    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "query", "value"], **more)
    model = scattered(peft.get_peft_model(build(), config))
    return model.merge_and_unload() if merged else model


def register() -> None:
    """Register them, each with its inputs."""
    half, brief = torch.bfloat16, torch.float16
    plain("BERT bfloat16", partial(rounded, bert, half))
    write("Llama bfloat16", partial(rounded, llama, half))
    plain("BERT float16", partial(rounded, bert, brief))
    write("Llama float64", partial(rounded, llama, torch.float64))
    vit = partial(from_config, "ViTModel", SEEN)
    plain("ViT bfloat16", partial(rounded, vit, half), images)
    plain("BERT eager", partial(with_attention, "eager"))
    plain("BERT sdpa", partial(with_attention, "sdpa"))
    plain("BERT compiled", compiled)
    gpt2 = partial(from_config, "GPT2LMHeadModel", WIDE)
    write("GPT-2 left padding calibration", gpt2, left)
    write("Llama left padding calibration", llama, left)
    write("Llama with position_ids [B,T]", llama, plus(position_ids=places))
    write("Llama with position_ids [1,T]", llama, plus(position_ids=lambda b: places(b)[:1]))
    write("Llama with labels", llama, plus(labels=lambda b: b["input_ids"]))
    write("Llama without mask", llama, unpadded)
    plain("Llama 4-D mask", llama, masked)
    plain("Llama inputs_embeds", llama, embedded)
    short = plus(return_dict=lambda b: False)
    plain("BERT return_dict=False", bert, short)
    everything = plus(output_hidden_states=lambda b: True, output_attentions=lambda b: True)
    plain("BERT output_hidden_states+attentions", partial(with_attention, "eager"), everything)
    plain("BERT bool mask", bert, plus(attention_mask=lambda b: b["attention_mask"].bool()))
    plain("BERT float mask", bert, plus(attention_mask=lambda b: b["attention_mask"].float()))
    static = plus(left, cache_implementation=lambda b: "static")
    write("Llama static-cache generate", llama, text, static)
    plain("Llama packed position_ids", llama, packed)
    plain("SentenceTransformer (input=dict)", sentences, lambda n, g: {"input": text(n, g)})
    plain("SentenceTransformer in a wrapper", Wrapper)
    plain("SentenceTransformer[0].auto_model", inner_model)
    write("PEFT LoRA Llama", partial(adapted, llama))
    write("PEFT LoRA Llama merged", partial(adapted, llama, merged=True))
    plain("PEFT LoRA BERT", partial(adapted, bert))
    write("PEFT DoRA Llama", partial(adapted, llama, use_dora=True))
    plain("dynamic int8 BERT", quantized)


register()
