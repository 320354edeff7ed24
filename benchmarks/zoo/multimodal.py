"""Models that read text and images."""

from functools import partial

import torch

from benchmarks.zoo.inputs import FIRST, WORDS, images, text
from benchmarks.zoo.registry import Shelf

# fmt: off
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64}
WORDY = {**WIDTH, "vocab_size": WORDS, "max_position_embeddings": 64, "projection_dim": 16,
         **MARKS, "eos_token_id": 2}
SEEN = {**WIDTH, "image_size": 32, "patch_size": 8, "projection_dim": 16}
TOWERS = {"text_config": WORDY, "vision_config": SEEN, "projection_dim": 16}
LLAMA = {"model_type": "llama", **WIDTH, "vocab_size": WORDS, "num_key_value_heads": 2,
         "max_position_embeddings": 128, **MARKS}
IMAGE = 3  # the token that stands for a part of an image


def ended(rows, g):
    """Tokens that end with the mark whose state stands for the text."""
    batch = text(rows, g)
    batch["input_ids"][torch.arange(rows), batch["attention_mask"].sum(1) - 1] = 2
    return batch


def captions(rows, g):
    """Images and texts about them, one each."""
    return {**ended(rows, g), **images(rows, g)}


def shown(rows, g, parts=16, **more):
    """Tokens of text after those of an image of so many parts, padded on the left."""
    words = text(rows, g)
    ids = torch.cat([torch.full((rows, parts), IMAGE), words["input_ids"].flip(1)], 1)
    mask = torch.cat([torch.ones(rows, parts).long(), words["attention_mask"].flip(1)], 1)
    return {"input_ids": ids, "attention_mask": mask, **images(rows, g), **more}


words = Shelf("text and images", ended, **WORDY).add
words("CLIP text", "CLIPTextModelWithProjection")
words("SigLIP text", "SiglipTextModel")
pairs = Shelf("text and images", captions).add
pairs("CLIP", "CLIPModel", **TOWERS)
pairs("SigLIP", "SiglipModel", text_config=WORDY, vision_config=SEEN)
pairs("BLIP", "BlipModel", **TOWERS, image_text_hidden_size=16)
pairs("CLIPSeg", "CLIPSegForImageSegmentation", **TOWERS, extract_layers=[0, 1], reduce_dim=16,
      decoder_intermediate_size=32)
pairs("OWL-ViT", "OwlViTForObjectDetection", **{**TOWERS, "projection_dim": 32})
pairs("GroupViT", "GroupViTModel", text_config=WORDY, projection_dim=16,
      projection_intermediate_dim=32, vision_config={
          **SEEN, "depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]})


def looked(rows, g):
    """Images, texts, and which parts of each are there."""
    batch = {**text(rows, g), **images(rows, g)}
    return {**batch, "pixel_mask": torch.ones(rows, 32, 32, dtype=torch.long)}


Shelf("text and images", looked).add(
    "ViLT", "ViltModel", **SEEN, vocab_size=WORDS, max_position_embeddings=40)
Shelf("text and images", lambda n, g: {**text(n, g), **images(n, g)}).add(
    "GIT", "GitForCausalLM", **{**WORDY, "eos_token_id": None}, vision_config=SEEN)
vlm = Shelf("text and images", shown, shown, **MARKS).add
LLAVA = {"vision_config": {"model_type": "clip_vision_model", **SEEN}, "text_config": LLAMA,
         "image_token_index": IMAGE, "vision_feature_layer": -1}
vlm("LLaVA", "LlavaForConditionalGeneration", **LLAVA)
vlm("LLaVA text-only calibration", "LlavaForConditionalGeneration", text, text, **LLAVA)
vlm("PaliGemma", "PaliGemmaForConditionalGeneration", image_token_index=IMAGE, projection_dim=32,
    hidden_size=32, vision_config={"model_type": "siglip_vision_model", **SEEN,
                                   "vision_use_head": False},
    text_config={**LLAMA, "model_type": "gemma", "head_dim": 8})
vlm("BLIP-2", "Blip2ForConditionalGeneration", partial(shown, parts=4), partial(shown, parts=4),
    num_query_tokens=4, image_token_index=IMAGE, vision_config=SEEN, qformer_config={
        **WIDTH, "vocab_size": WORDS, "encoder_hidden_size": 32},
    text_config={"model_type": "opt", **WIDTH, "vocab_size": WORDS, "ffn_dim": 64,
                 "word_embed_proj_dim": 32, "max_position_embeddings": 64, **MARKS})


def tiled(rows, g):
    """One image a row, each of four parts."""
    batch = shown(rows, g, 4)
    return {**batch, "pixel_values": batch["pixel_values"][:, None]}


vlm("Idefics3/SmolVLM", "SmolVLMForConditionalGeneration", tiled, tiled, image_token_id=IMAGE,
    vision_config={**SEEN, "model_type": "smolvlm_vision"}, text_config=LLAMA, scale_factor=2)


def patches(rows, g):
    """An image of 4 x 4 patches a row, as a list of patches; two by two are a token."""
    batch = shown(rows, g, 4)
    ids = batch["input_ids"]
    ids = torch.cat([torch.full((rows, 1), 4), ids], 1)
    mask = torch.cat([torch.ones(rows, 1).long(), batch["attention_mask"]], 1)
    return {"input_ids": ids, "attention_mask": mask,
            "pixel_values": torch.randn(rows * 16, 3 * 2 * 4 * 4, generator=g),
            "image_grid_thw": torch.tensor([[1, 4, 4]]).repeat(rows, 1),
            "mm_token_type_ids": (ids == IMAGE).long()}


ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                              "mrope_section": [1, 1, 2]}}
QWEN = {"image_token_id": IMAGE, "vision_start_token_id": 4, "video_token_id": 98,
        "vision_end_token_id": 97}
QWEN2 = {**QWEN, "text_config": {**LLAMA, "model_type": "qwen2_vl_text", **ROTARY},
         "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4,
                           "mlp_ratio": 2, "patch_size": 4}}
vlm("Qwen2-VL", "Qwen2VLForConditionalGeneration", patches, patches, **QWEN2)
vlm("Qwen2-VL text only", "Qwen2VLForConditionalGeneration", text, text, **QWEN2)
vlm("Qwen2.5-VL", "Qwen2_5_VLForConditionalGeneration", patches, patches, **QWEN,
    text_config={**LLAMA, "model_type": "qwen2_5_vl_text", **ROTARY},
    vision_config={"depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 64,
                   "out_hidden_size": 32, "patch_size": 4, "window_size": 16,
                   "fullatt_block_indexes": [1]})


def pointed(rows, g):
    """Images and a point in each."""
    return {**images(rows, g),
            "input_points": torch.randint(0, 32, (rows, 1, 1, 2), generator=g).float(),
            "input_labels": torch.ones(rows, 1, 1, dtype=torch.long)}


Shelf("text and images", pointed).add(
    "SAM", "SamModel",
    vision_config={**SEEN, "output_channels": 32, "window_size": 2, "global_attn_indexes": [1],
                   "mlp_dim": 64, "num_pos_feats": 16},
    prompt_encoder_config={"hidden_size": 32, "image_size": 32, "patch_size": 8,
                           "mask_input_channels": 4},
    mask_decoder_config={"hidden_size": 32, "mlp_dim": 64, "num_hidden_layers": 1,
                         "num_attention_heads": 4, "iou_head_hidden_dim": 32})


def captioned(rows, g):
    """Images and the tokens of a decoder."""
    target = torch.randint(FIRST, WORDS, (rows, 6), generator=g)
    return {**images(rows, g), "decoder_input_ids": target}


def captioner(decoder):
    """A ViT and a decoder of text."""
    import transformers as t

    config = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        t.ViTConfig(**WIDTH, image_size=32, patch_size=8), decoder(t))
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return t.VisionEncoderDecoderModel(config=config)


def gpt2(t):
    return t.GPT2Config(vocab_size=WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                        add_cross_attention=True, is_decoder=True, **MARKS)


def trocr(t):
    return t.TrOCRConfig(vocab_size=WORDS, d_model=32, decoder_layers=2, decoder_ffn_dim=64,
                         decoder_attention_heads=4, max_position_embeddings=64,
                         cross_attention_hidden_size=32, is_decoder=True, **MARKS)


both = Shelf("text and images", captioned, images)
both.built("ViT-GPT2 captioner", partial(captioner, gpt2))
both.built("TrOCR", partial(captioner, trocr))


def bytes_of_text(rows, g):
    """Bytes, padded on the right."""
    batch = text(rows, g)
    return {"inputs": batch["input_ids"], "attention_mask": batch["attention_mask"]}


Shelf("text and images", bytes_of_text).add(
    "Perceiver", "PerceiverForMaskedLM", num_latents=8, d_latents=32, d_model=32,
    num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=4,
    qk_channels=32, v_channels=32, vocab_size=WORDS, max_position_embeddings=12)
