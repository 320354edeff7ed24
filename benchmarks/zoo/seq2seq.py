"""Encoder-decoders of text."""

from functools import partial

import torch

from benchmarks.zoo.inputs import FIRST, WORDS, seq2seq, text
from benchmarks.zoo.registry import Shelf

# fmt: off
MARKS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
         "decoder_start_token_id": 1}
T5 = {**MARKS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
BART = {
    **MARKS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64, "forced_eos_token_id": None,
}
t5 = Shelf("encoder-decoders", seq2seq, text, **T5).add
encoder = Shelf("encoder-decoders", text, None, **T5).add
bart = Shelf("encoder-decoders", seq2seq, text, **BART).add


def whole(rows, g):
    """A decoder as long as its encoder."""
    batch = text(rows, g)
    target = torch.randint(FIRST, WORDS, batch["input_ids"].shape, generator=g)
    return {**batch, "decoder_input_ids": target}


def marked(rows, g):
    """Tokens that end with the mark by which a row is classified."""
    batch = text(rows, g)
    last = batch["attention_mask"].sum(1) - 1
    batch["input_ids"][torch.arange(rows), last] = 2
    return batch


t5("T5", "T5ForConditionalGeneration")
encoder("T5 encoder", "T5EncoderModel")
t5("FLAN-T5 (gated)", "T5ForConditionalGeneration", feed_forward_proj="gated-gelu",
   tie_word_embeddings=False)
t5("mT5", "MT5ForConditionalGeneration")
encoder("UMT5 encoder", "UMT5EncoderModel")
t5("LongT5", "LongT5ForConditionalGeneration", local_radius=4)
t5("Switch Transformers", "SwitchTransformersForConditionalGeneration", num_experts=4,
   num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_decoder_layers=2)
bart("BART", "BartForConditionalGeneration")
bart("BART, decoder as long as encoder", "BartForConditionalGeneration", whole)
Shelf("encoder-decoders", marked, None, **{**BART, "eos_token_id": 2}).add(
    "BART seq-cls", "BartForSequenceClassification")
bart("mBART", "MBartForConditionalGeneration")
bart("MarianMT", "MarianMTModel")
bart("Pegasus", "PegasusForConditionalGeneration")
bart("M2M100/NLLB", "M2M100ForConditionalGeneration")
bart("Blenderbot", "BlenderbotForConditionalGeneration")
bart("LED", "LEDForConditionalGeneration", attention_window=4, max_encoder_position_embeddings=64,
     max_decoder_position_embeddings=64)
bart("BigBird-Pegasus", "BigBirdPegasusForConditionalGeneration", partial(seq2seq, tokens=32),
     partial(text, tokens=32), attention_type="block_sparse", block_size=4, num_random_blocks=1)
bart("PLBart", "PLBartForConditionalGeneration")
bart("Nllb-MoE", "NllbMoeForConditionalGeneration", num_experts=4, encoder_sparse_step=2,
     decoder_sparse_step=2, expert_capacity=64)
Shelf("encoder-decoders", seq2seq, text).add(
    "FSMT", "FSMTForConditionalGeneration", langs=["en", "de"], src_vocab_size=WORDS,
    tgt_vocab_size=WORDS,
    **{n: v for n, v in BART.items() if n not in ("vocab_size", "decoder_start_token_id")})


def two_berts():
    """An encoder and a decoder, both BERT."""
    import transformers as t

    sizes = {"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    encoder = t.BertConfig(**sizes)
    decoder = t.BertConfig(**sizes, is_decoder=True, add_cross_attention=True)
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return t.EncoderDecoderModel(config=config)


def half_bart():
    """The encoder of a BART, taken out of it."""
    import transformers as t

    return t.BartModel(t.BartConfig(**BART)).get_encoder()


berts = Shelf("encoder-decoders", seq2seq, text)
berts.built("EncoderDecoder BERT2BERT", two_berts)
Shelf("encoder-decoders", text).built("BartEncoder half", half_bart)
