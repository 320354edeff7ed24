"""Decoders."""

from benchmarks.zoo.inputs import WORDS, left, text
from benchmarks.zoo.registry import Shelf

# fmt: off
SIZES = {
    "vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None,
}
OLD = {**SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
old = Shelf("decoders", text, left, **OLD).add
add = Shelf("decoders", text, left, **SIZES, num_key_value_heads=2).add
head = Shelf("decoders", text, None, **SIZES, num_key_value_heads=2).add

old("GPT-2", "GPT2LMHeadModel")
old("GPT-2 inverse-layer scale", "GPT2LMHeadModel", scale_attn_by_inverse_layer_idx=True)
Shelf("decoders", text, None, **OLD).add("GPT-2 seq-cls", "GPT2ForSequenceClassification")
old("GPT-BigCode", "GPTBigCodeForCausalLM")
old("OpenAI GPT", "OpenAIGPTLMHeadModel")
old("CTRL", "CTRLLMHeadModel", dff=64)
old("GPT-Neo", "GPTNeoForCausalLM", num_layers=2, num_heads=4, window_size=4,
    attention_types=[[["global", "local"], 1]])
add("GPT-NeoX/Pythia", "GPTNeoXForCausalLM")
old("GPT-J", "GPTJForCausalLM", rotary_dim=4)
old("CodeGen", "CodeGenForCausalLM", rotary_dim=4)
add("OPT", "OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=32)
add("OPT-350m (post-norm, proj)", "OPTForCausalLM", ffn_dim=64, word_embed_proj_dim=16,
    do_layer_norm_before=False)
old("BLOOM", "BloomForCausalLM")
old("MPT", "MptForCausalLM", d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=64)
add("Llama", "LlamaForCausalLM")
add("Llama llama3-rope", "LlamaForCausalLM", rope_parameters={
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16})
add("Llama yarn-rope", "LlamaForCausalLM", rope_parameters={
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 16})
add("Llama dynamic-rope long", "LlamaForCausalLM", max_position_embeddings=8, rope_parameters={
    "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
add("Llama tied", "LlamaForCausalLM", tie_word_embeddings=True)
head("Llama seq-cls", "LlamaForSequenceClassification")
add("Mistral sliding", "MistralForCausalLM", sliding_window=4, head_dim=8)
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2,
       "moe_intermediate_size": 16}
add("Mixtral", "MixtralForCausalLM", **MOE, head_dim=8)
add("Qwen2", "Qwen2ForCausalLM")
add("Qwen2 sliding", "Qwen2ForCausalLM", use_sliding_window=True, sliding_window=4,
    max_window_layers=1)
add("Qwen3", "Qwen3ForCausalLM", head_dim=8)
add("Qwen3-MoE", "Qwen3MoeForCausalLM", **MOE, head_dim=8)
add("Qwen2-MoE, all layers dense", "Qwen2MoeForCausalLM", mlp_only_layers=[0, 1])
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}
add("Qwen3-Next", "Qwen3NextForCausalLM", **MOE, **LINEAR, head_dim=8,
    shared_expert_intermediate_size=16, layer_types=["linear_attention", "full_attention"])
add("Qwen3.5 text", "Qwen3_5ForCausalLM", **LINEAR, head_dim=8,
    layer_types=["linear_attention", "full_attention"])
add("Gemma", "GemmaForCausalLM", head_dim=8)
add("Gemma2", "Gemma2ForCausalLM", head_dim=8, query_pre_attn_scalar=8, sliding_window=4)
add("Gemma2 no attn softcap", "Gemma2ForCausalLM", head_dim=8, query_pre_attn_scalar=8,
    sliding_window=4, attn_logit_softcapping=None)
add("Gemma3 text", "Gemma3ForCausalLM", head_dim=8, query_pre_attn_scalar=8, sliding_window=4,
    layer_types=["sliding_attention", "full_attention"])
add("Gemma3n text", "Gemma3nForCausalLM", head_dim=8, sliding_window=4, num_hidden_layers=4,
    layer_types=["sliding_attention", "full_attention"] * 2, vocab_size_per_layer_input=WORDS,
    hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=2, altup_num_inputs=2,
    intermediate_size=[64] * 4, activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0])
add("Gemma4 text", "Gemma4ForCausalLM", head_dim=8, global_head_dim=8, sliding_window=4,
    layer_types=["sliding_attention", "full_attention"], vocab_size_per_layer_input=WORDS,
    hidden_size_per_layer_input=8, num_kv_shared_layers=0)
add("Phi", "PhiForCausalLM")
add("Phi qk-norm", "PhiForCausalLM", qk_layernorm=True)
add("Phi-3", "Phi3ForCausalLM", sliding_window=4)
add("PhiMoE", "PhimoeForCausalLM", **MOE)
add("Falcon (new decoder)", "FalconForCausalLM", new_decoder_architecture=True, num_kv_heads=2,
    alibi=False)
add("Falcon-7b (multi-query)", "FalconForCausalLM", multi_query=True, parallel_attn=True,
    new_decoder_architecture=False, alibi=False)
add("Falcon alibi", "FalconForCausalLM", alibi=True, new_decoder_architecture=False,
    multi_query=False, parallel_attn=False, bias=True)
add("StableLM", "StableLmForCausalLM")
add("SmolLM3", "SmolLM3ForCausalLM", no_rope_layers=[1, 0])
add("OLMo", "OlmoForCausalLM", clip_qkv=1.0)
add("OLMo2", "Olmo2ForCausalLM")
add("OLMo3", "Olmo3ForCausalLM", sliding_window=4,
    layer_types=["sliding_attention", "full_attention"])
add("OLMoE", "OlmoeForCausalLM", **MOE)
add("Cohere", "CohereForCausalLM", use_qk_norm=True)
add("Cohere2", "Cohere2ForCausalLM", sliding_window=4, head_dim=8,
    layer_types=["sliding_attention", "full_attention"])
add("Granite", "GraniteForCausalLM", attention_multiplier=0.5, embedding_multiplier=2.0,
    residual_multiplier=0.5, logits_scaling=2.0)
add("Granite-MoE", "GraniteMoeForCausalLM", **MOE)
add("Starcoder2", "Starcoder2ForCausalLM", sliding_window=4)
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
          "v_head_dim": 8, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1,
          "n_routed_experts": 4, "n_shared_experts": 1}
add("DeepSeek-V2", "DeepseekV2ForCausalLM", **LATENT, first_k_dense_replace=2)
add("DeepSeek-V3 dense", "DeepseekV3ForCausalLM", **LATENT, first_k_dense_replace=2)
add("DeepSeek-V3 MoE", "DeepseekV3ForCausalLM", **LATENT, **MOE, first_k_dense_replace=1)
add("DeepSeek-V3.2 dense", "DeepseekV32ForCausalLM", **LATENT, first_k_dense_replace=2,
    index_topk=6, index_n_heads=2, index_head_dim=8)
add("GLM-MoE-DSA dense", "GlmMoeDsaForCausalLM", **LATENT, first_k_dense_replace=2,
    mlp_layer_types=["dense", "dense"], index_topk=6, index_n_heads=2, index_head_dim=8)
add("GPT-OSS", "GptOssForCausalLM", **MOE, head_dim=8, sliding_window=4,
    layer_types=["sliding_attention", "full_attention"])
add("Llama4 text", "Llama4ForCausalLM", head_dim=8, intermediate_size_mlp=64, moe_layers=[],
    attention_chunk_size=4, no_rope_layers=[1, 0], num_local_experts=2)
add("GLM", "GlmForCausalLM", head_dim=8)
add("GLM4", "Glm4ForCausalLM", head_dim=8)
add("Nemotron", "NemotronForCausalLM", head_dim=8)
add("Exaone4", "Exaone4ForCausalLM", sliding_window=4, sliding_window_pattern=2,
    layer_types=["sliding_attention", "full_attention"])
add("HunYuan dense", "HunYuanDenseV1ForCausalLM", head_dim=8)
add("Ernie4.5", "Ernie4_5ForCausalLM", head_dim=8)
add("Seed-OSS", "SeedOssForCausalLM", head_dim=8)
add("Arcee", "ArceeForCausalLM", head_dim=8)
add("Apertus", "ApertusForCausalLM")
add("NanoChat", "NanoChatForCausalLM")
add("LFM2", "Lfm2ForCausalLM", layer_types=["conv", "full_attention"],
    block_ff_dim=64, block_auto_adjust_ff_dim=False)
add("BitNet", "BitNetForCausalLM")
add("Helium", "HeliumForCausalLM", head_dim=8)
add("DiffLlama", "DiffLlamaForCausalLM")
add("Doge", "DogeForCausalLM")
add("Persimmon", "PersimmonForCausalLM")
add("XGLM", "XGLMForCausalLM", d_model=32, num_layers=2, attention_heads=4, ffn_dim=64)
add("BioGPT", "BioGptForCausalLM")
add("BERT decoder", "BertLMHeadModel", is_decoder=True)
add("ModernBERT decoder", "ModernBertDecoderForCausalLM", local_attention=6,
    layer_types=["sliding_attention", "full_attention"])
STATE = {"state_size": 8, "conv_kernel": 4, "expand": 2}
add("Mamba", "MambaForCausalLM", **STATE, time_step_rank=4)
add("Mamba2", "Mamba2ForCausalLM", **STATE, num_heads=4, head_dim=16, n_groups=1, chunk_size=4)
add("RWKV", "RwkvForCausalLM", attention_hidden_size=32, context_length=64)
add("RecurrentGemma", "RecurrentGemmaForCausalLM", num_hidden_layers=3, lru_width=32,
    attention_window_size=6, block_types=["recurrent", "recurrent", "attention"])
add("Jamba", "JambaForCausalLM", **MOE, attn_layer_period=2, attn_layer_offset=1,
    expert_layer_period=2, expert_layer_offset=1, mamba_d_state=8, mamba_dt_rank=4)
add("Bamba", "BambaForCausalLM", attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16,
    mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4)
add("Mllama text", "MllamaForCausalLM", cross_attention_layers=[])
