"""Text encoders and their heads."""

from functools import partial

import torch

from benchmarks.zoo.inputs import WORDS, text
from benchmarks.zoo.registry import Shelf, from_config

# fmt: off
SIZES = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
}
shelf = Shelf("text encoders", text, **SIZES)
add = shelf.add

add("BERT", "BertModel")
add("BERT seq-cls", "BertForSequenceClassification")
add("BERT tok-cls", "BertForTokenClassification")
add("BERT MLM", "BertForMaskedLM")
add("BERT QA", "BertForQuestionAnswering")
add("BERT next-sentence", "BertForNextSentencePrediction")
shelf.built("BERT no pooler", lambda: from_config("BertModel", SIZES, add_pooling_layer=False))
add("RoBERTa", "RobertaModel")
add("RoBERTa seq-cls", "RobertaForSequenceClassification")
add("DistilBERT", "DistilBertModel", hidden_dim=64)
add("DistilBERT seq-cls", "DistilBertForSequenceClassification", hidden_dim=64)
add("XLM-R", "XLMRobertaModel")
add("XLM-R tok-cls", "XLMRobertaForTokenClassification")
add("CamemBERT MLM", "CamembertForMaskedLM")
add("ALBERT", "AlbertModel", embedding_size=16)
add("ALBERT 1 layer", "AlbertModel", embedding_size=16, num_hidden_layers=1)
add("ELECTRA", "ElectraModel", embedding_size=16)
add("ELECTRA seq-cls", "ElectraForSequenceClassification", embedding_size=16)
V3 = {"relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
      "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
      "max_relative_positions": -1}
add("DeBERTa-v2/v3", "DebertaV2Model", **V3)
add("DeBERTa-v2 no-rel", "DebertaV2Model")
add("DeBERTa", "DebertaModel", relative_attention=True, pos_att_type=["c2p", "p2c"],
    position_biased_input=False, max_relative_positions=16)
add("MPNet", "MPNetModel")
MODERN = {"global_attn_every_n_layers": 2, "local_attention": 6, "cls_token_id": 1,
          "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
add("ModernBERT", "ModernBertModel", **MODERN)
add("ModernBERT seq-cls", "ModernBertForSequenceClassification", **MODERN)
add("ModernBERT tok-cls", "ModernBertForTokenClassification", **MODERN)
add("ModernBERT MLM", "ModernBertForMaskedLM", **MODERN)
add("NomicBERT", "NomicBertModel")
add("EuroBERT", "EuroBertModel")
add("EuroBERT MLM", "EuroBertForMaskedLM")
add("MobileBERT", "MobileBertModel", embedding_size=16, intra_bottleneck_size=16)
add("ConvBERT", "ConvBertModel", embedding_size=16)
add("Longformer", "LongformerModel", attention_window=4)
add("BigBird full", "BigBirdModel", attention_type="original_full")
add("BigBird sparse", "BigBirdModel", partial(text, tokens=32), attention_type="block_sparse",
    block_size=4, num_random_blocks=1)
few = Shelf("text encoders", text, vocab_size=WORDS, pad_token_id=0).add
few("Funnel", "FunnelModel", d_model=32, n_head=4, d_head=8, d_inner=64, block_sizes=[1, 1],
    num_decoder_layers=1)
add("RoFormer", "RoFormerModel", embedding_size=32)
add("FNet", "FNetModel", lambda n, g: {"input_ids": text(n, g)["input_ids"]})
ESM = {"mask_token_id": 4, "position_embedding_type": "rotary", "token_dropout": True}
add("ESM", "EsmModel", **ESM)
add("ESM MLM", "EsmForMaskedLM", **ESM)
add("XLM-RoBERTa-XL", "XLMRobertaXLModel")
add("Data2VecText", "Data2VecTextModel")
add("SqueezeBERT", "SqueezeBertModel", embedding_size=32)


def boxes(rows, g):
    """Tokens and their boxes on a page."""
    batch = text(rows, g)
    corner = torch.randint(0, 50, (*batch["input_ids"].shape, 2), generator=g)
    size = torch.randint(1, 20, corner.shape, generator=g)
    return {**batch, "bbox": torch.cat([corner, corner + size], -1)}


add("LayoutLM", "LayoutLMModel", boxes, max_2d_position_embeddings=100)
add("LayoutLMv3 text", "LayoutLMv3Model", boxes, max_2d_position_embeddings=100,
    coordinate_size=6, shape_size=4, visual_embed=False, rel_pos_bins=8, rel_2d_pos_bins=8)
add("I-BERT", "IBertModel")
add("DPR", "DPRQuestionEncoder")
few("XLNet", "XLNetModel", d_model=32, n_layer=2, n_head=4, d_inner=64)
add("CANINE", "CanineModel", partial(text, tokens=32), downsampling_rate=4,
    local_transformer_stride=8, num_hash_buckets=64, num_hash_functions=2)
add("ERNIE", "ErnieModel")
add("RemBERT", "RemBertModel", input_embedding_size=16, output_embedding_size=16)
add("JinaBERT v3", "JinaEmbeddingsV3Model")
add("ALIGN text", "AlignTextModel")
add("BLIP text", "BlipTextModel", is_decoder=False)
add("LUKE", "LukeModel", entity_vocab_size=20, entity_emb_size=16)


def markup(rows, g):
    """Tokens and their places in a page's tree."""
    batch = text(rows, g)
    shape = (*batch["input_ids"].shape, 8)
    return {**batch, "xpath_tags_seq": torch.randint(0, 10, shape, generator=g),
            "xpath_subs_seq": torch.randint(0, 10, shape, generator=g)}


add("MarkupLM", "MarkupLMModel", markup, max_depth=8, xpath_unit_hidden_size=8,
    max_xpath_tag_unit_embeddings=16, max_xpath_subs_unit_embeddings=16, tag_pad_id=11,
    subs_pad_id=11)
add("YOSO", "YosoModel", use_expectation=True, num_hash=8, hash_code_len=4)
add("Megatron-BERT", "MegatronBertModel")
add("XMOD", "XmodModel", languages=["en_XX"], default_language="en_XX")
add("Flaubert", "FlaubertModel", emb_dim=32, n_layers=2, n_heads=4)
add("EmbeddingGemma/Gemma3 bidirectional", "Gemma3TextModel", num_key_value_heads=1, head_dim=8,
    use_bidirectional_attention=True, sliding_window=4)
few("Reformer", "ReformerModel", attention_head_size=8, attn_layers=["local", "lsh"],
    axial_pos_shape=[4, 4], axial_pos_embds_dim=[16, 16], feed_forward_size=64, hidden_size=32,
    max_position_embeddings=16, num_attention_heads=4, num_buckets=2, local_attn_chunk_length=4,
    lsh_attn_chunk_length=4, hash_seed=0, is_decoder=True)
