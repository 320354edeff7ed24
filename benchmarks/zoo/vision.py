"""Models that read images or films alone."""

from functools import partial

import torch

from benchmarks.zoo.inputs import images
from benchmarks.zoo.registry import Shelf

# fmt: off
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "image_size": 32, "patch_size": 8, "num_channels": 3,
         "num_labels": 5}
add = Shelf("vision", images, **SIZES).add
free = Shelf("vision", images, num_labels=5).add  # other names for the sizes
large = partial(images, size=64)

add("ViT", "ViTModel")
add("ViT cls", "ViTForImageClassification")
add("DeiT", "DeiTForImageClassification")
add("CLIP vision", "CLIPVisionModel")
add("CLIP vision proj", "CLIPVisionModelWithProjection", projection_dim=16)
add("SigLIP vision", "SiglipVisionModel")
add("DINOv2", "Dinov2Model", mlp_ratio=2)
add("DINOv2 swiglu", "Dinov2Model", mlp_ratio=2, use_swiglu_ffn=True)
add("DINOv2 with registers", "Dinov2WithRegistersModel", mlp_ratio=2, num_register_tokens=2)
add("DINOv3 ViT", "DINOv3ViTModel", num_register_tokens=2)
add("BEiT rel bias", "BeitForImageClassification", use_relative_position_bias=True)
add("BEiT shared rel bias", "BeitModel", use_shared_relative_position_bias=True)
add("Data2VecVision", "Data2VecVisionModel", use_relative_position_bias=True)
add("I-JEPA", "IJepaModel")
add("ViTMAE", "ViTMAEForPreTraining", decoder_hidden_size=32, decoder_num_hidden_layers=1,
    decoder_num_attention_heads=4, decoder_intermediate_size=64, mask_ratio=0.5)
add("YOLOS", "YolosForObjectDetection", image_size=[32, 32], num_detection_tokens=5)
Shelf("vision", images, **{**SIZES, "num_hidden_layers": 4}).add(
    "DPT", "DPTForDepthEstimation", backbone_out_indices=[0, 1, 2, 3], fusion_hidden_size=16,
    neck_hidden_sizes=[8, 8, 8, 8])
add("SAM vision encoder", "SamVisionModel", output_channels=16, window_size=2, mlp_dim=64,
    global_attn_indexes=[1])
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4, "mlp_ratio": 2.0}
free("Swin", "SwinModel", **SWIN)
free("Swin cls", "SwinForImageClassification", **SWIN)
free("SwinV2", "Swinv2Model", **SWIN, pretrained_window_sizes=[0, 0])
free("Hiera", "HieraModel", image_size=[32, 32], patch_size=[3, 3], patch_stride=[2, 2],
     patch_padding=[1, 1], embed_dim=8, depths=[1, 1], num_heads=[1, 2], num_query_pool=1,
     masked_unit_size=[4, 4], masked_unit_attention=[True, False])
PYRAMID = {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1],
           "hidden_sizes": [16, 32], "patch_sizes": [7, 3], "strides": [4, 2],
           "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]}
free("SegFormer", "SegformerForSemanticSegmentation", **PYRAMID, decoder_hidden_size=16)
free("PVTv2", "PvtV2Model", **PYRAMID, image_size=32)
MOBILE = {"image_size": 64, "hidden_sizes": [16, 24, 32], "mlp_ratio": 2.0, "expand_ratio": 2.0,
          "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 40]}
free("MobileViT", "MobileViTModel", large, **MOBILE)
free("MobileViTV2", "MobileViTV2Model", large, image_size=64, width_multiplier=0.25,
     n_attn_blocks=[1, 1, 1], base_attn_unit_dims=[32, 48, 64])
free("ConvNeXt", "ConvNextModel", image_size=32, hidden_sizes=[16, 16, 32, 32],
     depths=[1, 1, 1, 1], patch_size=2, layer_scale_init_value=0.1)
free("DINOv3 ConvNeXt", "DINOv3ConvNextModel", image_size=32, hidden_sizes=[16, 16, 32, 32],
     depths=[1, 1, 1, 1])
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}
free("ResNet", "ResNetForImageClassification", **RESNET)
free("PoolFormer", "PoolFormerModel", hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1],
     mlp_ratio=2.0)
free("FocalNet", "FocalNetModel", image_size=32, patch_size=4, embed_dim=16, hidden_sizes=[16, 32],
     depths=[1, 1], focal_levels=[1, 1], focal_windows=[3, 3], mlp_ratio=2.0)
free("SwiftFormer", "SwiftFormerModel", image_size=32, depths=[1, 1], embed_dims=[16, 32],
     downsamples=[True, True], mlp_ratio=2, layer_scale_init_value=0.1)
free("UperNet-Swin", "UperNetForSemanticSegmentation", hidden_size=16, use_auxiliary_head=False,
     pool_scales=[1, 2], backbone_config={
         "model_type": "swin", **SWIN, "out_features": ["stage1", "stage2"]})
DETECTOR = {"num_queries": 5, "encoder_layers": 1, "encoder_ffn_dim": 64, "decoder_layers": 2,
            "encoder_attention_heads": 4, "decoder_ffn_dim": 64, "decoder_attention_heads": 4,
            "d_model": 32, "num_labels": 5}
CONVOLUTIONS = {"backbone_config": {"model_type": "resnet", **RESNET, "out_features": ["stage4"]}}
WINDOWS = {"backbone_config": {"model_type": "swin", **SWIN, "out_features": ["stage2"]}}


def masked(rows, g):
    """Images of which some end early."""
    mask = torch.ones(rows, 64, 64, dtype=torch.long)
    mask[0, 48:] = 0
    return {**large(rows, g), "pixel_mask": mask}


free("DETR", "DetrForObjectDetection", masked, **DETECTOR, **CONVOLUTIONS)
free("DETR (Swin backbone)", "DetrForObjectDetection", **DETECTOR, **WINDOWS)
free("Conditional DETR (Swin backbone)", "ConditionalDetrForObjectDetection", **DETECTOR, **WINDOWS)
free("RT-DETR", "RTDetrForObjectDetection", large, num_queries=5, encoder_hidden_dim=32, d_model=32,
     encoder_in_channels=[16, 16, 32], feat_strides=[8, 16, 32], encoder_ffn_dim=64,
     encoder_attention_heads=4, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=64,
     decoder_n_points=2, decoder_layers=2, decoder_attention_heads=4, num_denoising=0,
     backbone_config={"model_type": "rt_detr_resnet", "embedding_size": 8,
                      "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
                      "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]})


def film(rows, g, frames=4):
    """Frames, ``[rows, frames, 3, 32, 32]``."""
    return {"pixel_values": torch.randn(rows, frames, 3, 32, 32, generator=g)}


video = Shelf("vision", film, **{**SIZES, "num_frames": 4}).add
video("VideoMAE", "VideoMAEModel", tubelet_size=2)
video("ViViT", "VivitModel", tubelet_size=[2, 8, 8])
video("TimeSformer", "TimesformerModel")
