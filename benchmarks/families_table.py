"""The model families of docs/families.md, each shrunk to a config.json that draws in milliseconds.

Every structural feature of a family is kept: each kind of layer it has, windows and switches below the longest sequence
of `LENGTHS`, grouped heads, experts, shared layers, relative positions, softcaps, states carried along the sequence. What
only makes a model large is small: 64 channels, 2 to 6 layers, 320 ids. Weights are drawn wide, so that attention is far
from uniform and what attends to what shows in the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

#: The sequences, in the caller's order, in batches of BATCH: two mixed batches that cross every window and switch of the
#: table (16 to 48), and one that stays below them all.
LENGTHS, BATCH = (7, 33, 96, 20, 61, 12, 90, 3, 70, 48, 5, 9, 14, 11, 6), 5

WIDTH, IDS, POSITIONS, WINDOW, SWITCH = 64, 320, 128, 16, 48


@dataclass(frozen=True)
class Family:
    """A family's name in the document, its shrunk config.json, what is asked of it, and which features were kept.

    faint: drawn at 0.02, as most classes are: attention is nearly uniform, and what leaks is small.
    """

    name: str
    config: Mapping[str, Any]
    output: str
    kept: str
    faint: bool = False


def _family(name: str, architecture: str, output: str, kept: str, **more: Any) -> Family:
    """Return a family. The model type is the name's first word; more: entries of config.json beyond the common ones."""
    common = {
        "model_type": name.split(maxsplit=1)[0],
        "architectures": [architecture],
        "vocab_size": IDS,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": POSITIONS,
        "initializer_range": 0.12,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = {entry: value for entry, value in {**common, **more}.items() if value is not None}
    return Family(name, config, output, kept)


def _decoder(name: str, architecture: str, kept: str = "", **more: Any) -> Family:
    return _family(name, f"{architecture}ForCausalLM", "last-logits", kept, **more)


def _hidden(name: str, architecture: str, kept: str = "", **more: Any) -> Family:
    return _family(name, f"{architecture}Model", "hidden", kept, **more)


def _pooled(name: str, architecture: str, kept: str = "", **more: Any) -> Family:
    return _family(name, f"{architecture}Model", "pooled", kept, **more)


def _scores(name: str, architecture: str, kept: str = "", **more: Any) -> Family:
    labels = {"id2label": {str(i): f"label {i}" for i in range(3)}, "label2id": {f"label {i}": i for i in range(3)}}
    return _family(f"{name} scores", f"{architecture}ForSequenceClassification", "scores", kept, **{**labels, **more})


def _faint(kind: str, architecture: str, **more: Any) -> Family:
    family = _decoder(f"{kind} faint", architecture, **more, initializer_range=0.02)
    return replace(family, kept="drawn narrow: leaks are small", faint=True)


_GROUPED = {"num_key_value_heads": 2, "head_dim": 16}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GPT = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": POSITIONS, "n_ctx": POSITIONS}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
    **_GROUPED,
}


def _longrope() -> dict[str, Any]:
    """Two sets of rope factors, and a switch between them below the longest sequence."""
    short, long = [1.0 + 0.1 * i for i in range(8)], [2.0 + 0.5 * i for i in range(8)]
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 10000.0}
    return {
        "rope_parameters": {**rope, "original_max_position_embeddings": SWITCH},
        "original_max_position_embeddings": SWITCH,
    }


DECODERS = (
    _decoder("llama", "Llama", "grouped heads", **_GROUPED),
    _decoder("llama dynamic rope", "Llama", "dynamic rope", **_GROUPED, max_position_embeddings=SWITCH * 2,
             rope_parameters={**_ROPE, "rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": SWITCH}),
    _decoder("llama3 rope", "Llama", "rope scaled by frequency", model_type="llama", **_GROUPED,
             rope_parameters={**_ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                              "high_freq_factor": 4.0, "original_max_position_embeddings": SWITCH}),
    _decoder("mistral", "Mistral", "window", **_GROUPED, sliding_window=WINDOW),
    _decoder("ministral", "Ministral", "windows and full layers", **_GROUPED, **_SLIDING),
    _decoder("mixtral", "Mixtral", "experts, window", **_GROUPED, num_local_experts=8, sliding_window=WINDOW),
    _decoder("mixtral deep", "Mixtral", "experts, 8 layers", **_GROUPED, num_local_experts=8, num_hidden_layers=8),
    _decoder("qwen2", "Qwen2", "windows and full layers", **_GROUPED, use_sliding_window=True, max_window_layers=1,
             **_SLIDING),
    _decoder("qwen2_moe", "Qwen2Moe", "experts, a shared one", num_key_value_heads=2, num_experts=8,
             moe_intermediate_size=32, shared_expert_intermediate_size=64, num_experts_per_tok=2),
    _decoder("qwen3", "Qwen3", "norms of queries and keys", **_GROUPED),
    _decoder("qwen3_moe", "Qwen3Moe", "experts", **_GROUPED, num_experts=8, moe_intermediate_size=32,
             num_experts_per_tok=2),
    _decoder("qwen3_next", "Qwen3Next", "gated delta rule, experts", num_experts=8, moe_intermediate_size=32,
             shared_expert_intermediate_size=32, num_experts_per_tok=2, **_DELTA),
    _decoder("qwen3_5_text", "Qwen3_5", "gated delta rule", **_DELTA),
    _decoder("gemma", "Gemma", "one key-value head", num_key_value_heads=1, head_dim=16),
    _decoder("gemma2", "Gemma2", "softcaps, windows and full layers", **_GROUPED, **_SLIDING, query_pre_attn_scalar=16),
    _decoder("gemma3_text", "Gemma3", "windows and full layers, two ropes", **_GROUPED, **_SLIDING,
             query_pre_attn_scalar=16),
    _decoder("gemma3n_text", "Gemma3n", "layers that share keys, per-layer inputs, sparse activations", **_GROUPED,
             num_hidden_layers=4, num_kv_shared_layers=2, vocab_size_per_layer_input=IDS, hidden_size_per_layer_input=16,
             altup_num_inputs=2, laurel_rank=8, intermediate_size=[128] * 4, sliding_window=WINDOW,
             activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0], layer_types=["sliding_attention", "full_attention"] * 2),
    _decoder("gemma4_text", "Gemma4", "two head sizes, layers that share keys", num_key_value_heads=2, head_dim=16,
             num_hidden_layers=4, num_kv_shared_layers=2, vocab_size_per_layer_input=IDS, hidden_size_per_layer_input=16,
             global_head_dim=32, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"] * 2),
    _decoder("phi", "Phi", "a part of a head rotates", partial_rotary_factor=0.5),
    _decoder("phi3", "Phi3", "longrope with its switch inside the lengths", num_key_value_heads=2, **_longrope()),
    _decoder("phimoe", "Phimoe", "experts", model_type="phimoe", num_key_value_heads=2, num_local_experts=8,
             router_jitter_noise=0.0),
    _decoder("gpt2", "GPT2", "learned positions", architectures=["GPT2LMHeadModel"], **_GPT),
    _decoder("gpt_neo", "GPTNeo", "local and global layers", num_layers=2, num_heads=4, window_size=WINDOW,
             attention_types=[[["global", "local"], 1]]),
    _decoder("gpt_neox", "GPTNeoX", "a part of a head rotates", rotary_pct=0.5),
    _decoder("gptj", "GPTJ", "interleaved rope", **_GPT, rotary_dim=8),
    _decoder("gpt_bigcode", "GPTBigCode", "one key-value head, learned positions", **_GPT, multi_query=True),
    _decoder("opt", "OPT", "learned positions with an offset", ffn_dim=128, word_embed_proj_dim=WIDTH, init_std=0.12),
    _decoder("bloom", "Bloom", "ALiBi", n_layer=2, n_head=4),
    _decoder("mpt", "Mpt", "ALiBi", d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=POSITIONS),
    _decoder("falcon", "Falcon", "rope, one key-value head"),
    _decoder("falcon alibi", "Falcon", "ALiBi", alibi=True, multi_query=False, num_kv_heads=4),
    _decoder("falcon new", "Falcon", "grouped heads, two norms", new_decoder_architecture=True, num_kv_heads=2),
    _decoder("falcon_h1", "FalconH1", "attention beside a state space", **_GROUPED, **_MAMBA, mamba_d_ssm=128),
    _decoder("stablelm", "StableLm", "a part of a head rotates", num_key_value_heads=2, partial_rotary_factor=0.5),
    _decoder("starcoder2", "Starcoder2", "window", num_key_value_heads=2, sliding_window=WINDOW),
    _decoder("olmo", "Olmo", "norms without weights", num_key_value_heads=2),
    _decoder("olmo2", "Olmo2", "norms after each part", num_key_value_heads=2),
    _decoder("olmo3", "Olmo3", "windows and full layers", num_key_value_heads=2, **_SLIDING),
    _decoder("olmoe", "Olmoe", "experts", num_experts=8, num_experts_per_tok=2),
    _decoder("cohere", "Cohere", "parallel layers", num_key_value_heads=2),
    _decoder("cohere2", "Cohere2", "windows, full layers without positions", **_GROUPED, **_SLIDING),
    _decoder("granite", "Granite", "multipliers", num_key_value_heads=2, attention_multiplier=0.25,
             residual_multiplier=0.5),
    _decoder("granitemoe", "GraniteMoe", "experts", num_key_value_heads=2, attention_multiplier=0.25,
             num_local_experts=8),
    _decoder("granitemoehybrid", "GraniteMoeHybrid", "state space and attention, experts", num_key_value_heads=2,
             attention_multiplier=0.25, num_local_experts=8, shared_intermediate_size=64, **_MAMBA,
             layer_types=["linear_attention", "full_attention"]),
    _decoder("deepseek_v2", "DeepseekV2", "latent attention, experts", **_LATENT),
    _decoder("deepseek_v3", "DeepseekV3", "latent attention, experts in groups", **_LATENT),
    _decoder("dbrx", "Dbrx", "experts", d_model=WIDTH, n_heads=4, n_layers=2, max_seq_len=POSITIONS,
             attn_config={"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
             ffn_config={"hidden_size": WIDTH, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2}),
    _decoder("jamba", "Jamba", "state space, attention, experts", num_key_value_heads=2, num_hidden_layers=4,
             attn_layer_period=2, attn_layer_offset=1, num_experts=4, mamba_d_state=8, mamba_dt_rank=8,
             use_mamba_kernels=False),
    _decoder("mamba", "Mamba", "state space", state_size=8, time_step_rank=4),
    _decoder("falcon_mamba", "FalconMamba", "state space", state_size=8, time_step_rank=4),
    _decoder("mamba2", "Mamba2", "state space in chunks", num_heads=8, head_dim=16, state_size=16, n_groups=2,
             chunk_size=16),
    _decoder("rwkv", "Rwkv", "a decaying state", attention_hidden_size=WIDTH, context_length=POSITIONS),
    _decoder("recurrent_gemma", "RecurrentGemma", "recurrence, local attention", num_hidden_layers=3, num_key_value_heads=1,
             lru_width=WIDTH, attention_window_size=WINDOW, head_dim=16),
    _decoder("zamba2", "Zamba2", "state space, a shared attention layer", num_hidden_layers=4, n_mamba_heads=8,
             mamba_d_state=16, chunk_size=16, num_key_value_heads=4, use_mamba_kernels=False, num_mem_blocks=1,
             adapter_rank=8, layers_block_type=["linear_attention", "hybrid"] * 2),
    _decoder("bamba", "Bamba", "state space and attention", num_key_value_heads=2, **_MAMBA, attn_layer_indices=[1]),
    _decoder("lfm2", "Lfm2", "short convolutions and attention", num_key_value_heads=2, block_auto_adjust_ff_dim=False,
             layer_types=["conv", "full_attention"]),
    _decoder("minimax", "MiniMax", "linear attention, experts", **_GROUPED, num_local_experts=4, block_size=16,
             layer_types=["linear_attention", "full_attention"]),
    _decoder("codegen", "CodeGen", "interleaved rope", **_GPT, rotary_dim=8),
    _decoder("persimmon", "Persimmon", "norms of queries and keys, a part rotates", partial_rotary_factor=0.5),
    _decoder("biogpt", "BioGpt", "learned positions from the mask"),
    _faint("biogpt", "BioGpt"),
    _decoder("xglm", "XGLM", "sinusoidal positions", d_model=WIDTH, ffn_dim=128, num_layers=2, attention_heads=4,
             init_std=0.12),
    _decoder("ctrl", "CTRL", "sinusoidal positions", architectures=["CTRLLMHeadModel"], **_GPT, dff=128),
    _decoder("openai-gpt", "OpenAIGPT", "learned positions", architectures=["OpenAIGPTLMHeadModel"], **_GPT),
    _faint("opt", "OPT", ffn_dim=128, word_embed_proj_dim=WIDTH, init_std=0.02),
    _decoder("bart", "Bart", "the decoder alone", d_model=WIDTH, decoder_layers=2, encoder_layers=2, encoder_ffn_dim=128,
             decoder_ffn_dim=128, decoder_attention_heads=4, encoder_attention_heads=4, is_decoder=True, init_std=0.12,
             is_encoder_decoder=False),
    _decoder("bert decoder", "Bert", "set up to be a decoder", architectures=["BertLMHeadModel"], is_decoder=True),
    _decoder("nemotron", "Nemotron", "a part of a head rotates", **_GROUPED),
    _decoder("glm", "Glm", "interleaved rope", **_GROUPED),
    _decoder("glm4", "Glm4", "norms around each part", **_GROUPED),
    _decoder("exaone4", "Exaone4", "windows and full layers", num_key_value_heads=2, sliding_window_pattern=2, **_SLIDING),
    _decoder("smollm3", "SmolLM3", "layers without positions", num_key_value_heads=2, no_rope_layers=[1, 0]),
    _decoder("gpt_oss", "GptOss", "attention sinks, windows and full layers, experts, yarn", **_GROUPED, **_SLIDING,
             num_local_experts=4, num_experts_per_tok=2, intermediate_size=64,
             rope_parameters={**_ROPE, "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
                              "truncate": False, "original_max_position_embeddings": SWITCH}),
    _decoder("llama4_text", "Llama4", "chunked attention, experts, layers without positions", **_GROUPED,
             num_local_experts=4, attention_chunk_size=WINDOW, no_rope_layers=[1, 0], intermediate_size_mlp=128,
             moe_layers=[0, 1], layer_types=["chunked_attention", "full_attention"]),
    _decoder("ernie4_5", "Ernie4_5", "interleaved rope", **_GROUPED),
    _decoder("modernbert-decoder", "ModernBertDecoder", "windows and full layers", sliding_window=WINDOW,
             local_attention=2 * WINDOW, cls_token_id=1, sep_token_id=2,
             layer_types=["full_attention", "sliding_attention"]),
    _decoder("diffllama", "DiffLlama", "differential attention", num_key_value_heads=2),
    _decoder("doge", "Doge", "a mask that is learned", num_key_value_heads=2),
    _decoder("xlnet", "XLNet", "relative positions", architectures=["XLNetLMHeadModel"], d_model=WIDTH, n_layer=2, n_head=4,
             d_head=16, d_inner=128, mem_len=0, max_position_embeddings=None),
    _decoder("git", "Git", "the text side", vision_config={"hidden_size": 32, "num_hidden_layers": 1, "image_size": 32,
             "num_attention_heads": 2, "intermediate_size": 32}),
)  # fmt: skip

_FROM_PAD = {"pad_token_id": 1, "bos_token_id": 0, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}

ENCODERS = (
    _hidden("bert", "Bert", "learned positions"),
    _pooled("roberta", "Roberta", "positions from the pad id", **_FROM_PAD),
    _hidden("xlm-roberta", "XLMRoberta", "positions from the pad id", **_FROM_PAD),
    _pooled("camembert", "Camembert", "positions from the pad id", **_FROM_PAD),
    _hidden("xlm-roberta-xl", "XLMRobertaXL", "norms first", **_FROM_PAD),
    _hidden("roberta-prelayernorm", "RobertaPreLayerNorm", "norms first", **_FROM_PAD),
    _hidden("data2vec-text", "Data2VecText", "positions from the pad id", **_FROM_PAD),
    _hidden("distilbert", "DistilBert", "learned positions", dim=WIDTH, hidden_dim=128, n_layers=2, n_heads=4),
    _pooled("albert", "Albert", "one layer used three times", embedding_size=32, num_hidden_layers=3),
    _hidden("electra", "Electra", "small embeddings", embedding_size=32),
    _pooled("mpnet", "MPNet", "relative positions", **_FROM_PAD),
    _hidden("deberta", "Deberta", "relative positions in content", relative_attention=True, max_relative_positions=-1,
            pos_att_type=["c2p", "p2c"], position_biased_input=False, pooler_hidden_size=WIDTH),
    _hidden("deberta-v2", "DebertaV2", "relative positions in buckets, a convolution", relative_attention=True,
            position_buckets=16, pos_att_type=["c2p", "p2c"], position_biased_input=False, share_att_key=True,
            norm_rel_ebd="layer_norm", pooler_hidden_size=WIDTH, conv_kernel_size=3),
    _hidden("modernbert", "ModernBert", "windows and full layers, two ropes", local_attention=2 * WINDOW, cls_token_id=1,
            sep_token_id=2, layer_types=["full_attention", "sliding_attention"]),
    _pooled("eurobert", "EuroBert", "grouped heads, rope", num_key_value_heads=2, head_dim=16, mask_token_id=3),
    _pooled("nomic_bert", "NomicBert", "rope"),
    _hidden("gte", "Gte", "rope"),
    _hidden("jina_embeddings_v3", "JinaEmbeddingsV3", "rope", pad_token_id=1),
    _hidden("convbert", "ConvBert", "convolutions beside attention", embedding_size=WIDTH, conv_kernel_size=5,
            head_ratio=2),
    _pooled("fnet", "FNet", "a Fourier transform over the row"),
    _hidden("big_bird", "BigBird", "blocks, here under the least length for them", attention_type="block_sparse",
            block_size=16, num_random_blocks=1, sep_token_id=3),
    _hidden("big_bird sparse", "BigBird", "blocks, until a short batch switches them off for good",
            attention_type="block_sparse", block_size=8, num_random_blocks=1, sep_token_id=3),
    _hidden("big_bird full", "BigBird", "full attention", attention_type="original_full", sep_token_id=3),
    _hidden("longformer", "Longformer", "windows", **{**_FROM_PAD, "attention_window": [WINDOW, WINDOW], "sep_token_id": 2}),
    _hidden("funnel", "Funnel", "pooled blocks, relative positions", d_model=WIDTH, n_head=4, d_head=16, d_inner=128,
            num_hidden_layers=None, block_sizes=[1, 1], block_repeats=[1, 1], num_decoder_layers=1, initializer_std=0.12),
    _hidden("nystromformer", "Nystromformer", "a convolution beside attention", num_landmarks=8, segment_means_seq_len=8,
            conv_kernel_size=9),
    _hidden("roformer", "RoFormer", "rope", embedding_size=WIDTH),
    _hidden("rembert", "RemBert", "embeddings of two sizes", input_embedding_size=32, output_embedding_size=48),
    _hidden("esm", "Esm", "rope, mask-token scaling", position_embedding_type="rotary", mask_token_id=3, token_dropout=True,
            pad_token_id=1, bos_token_id=0, emb_layer_norm_before=False),
    _hidden("esm learned", "Esm", "positions from the pad id", position_embedding_type="absolute", mask_token_id=3,
            **_FROM_PAD),
    _hidden("ibert", "IBert", "integer-only layers, off", **_FROM_PAD),
    _hidden("layoutlm", "LayoutLM", "ids alone", max_2d_position_embeddings=64),
    _hidden("luke", "Luke", "words alone", **{**_FROM_PAD, "entity_vocab_size": 32, "entity_emb_size": 16}),
    _hidden("mobilebert", "MobileBert", "trigrams, bottlenecks", embedding_size=32, intra_bottleneck_size=32,
            true_hidden_size=32),
    _hidden("squeezebert", "SqueezeBert", "grouped convolutions", embedding_size=WIDTH, q_groups=2, k_groups=2, v_groups=2,
            intermediate_groups=2, output_groups=2),
    _hidden("xlm", "XLM", "lengths from the pad id", emb_dim=WIDTH, n_layers=2, n_heads=4, embed_init_std=0.3, init_std=0.12,
            mask_token_id=3, pad_index=0),
    _hidden("flaubert", "Flaubert", "lengths from the pad id", emb_dim=WIDTH, n_layers=2, n_heads=4, embed_init_std=0.3,
            init_std=0.12, mask_token_id=3, pad_index=0),
    _hidden("megatron-bert", "MegatronBert", "norms first"),
    _hidden("ernie", "Ernie", "task ids", use_task_id=True),
    _hidden("yoso", "Yoso", "hashed attention, by expectation", num_hash=4, hash_code_len=4),
    _hidden("mra", "Mra", "attention in blocks of two sizes", block_per_row=2),
    _hidden("reformer", "Reformer", "local and hashed layers", is_decoder=False, attn_layers=["local", "lsh"],
            attention_head_size=16, axial_pos_embds_dim=[32, 32], axial_pos_shape=[8, 16], feed_forward_size=128,
            local_attn_chunk_length=16, lsh_attn_chunk_length=16, num_buckets=4, hash_seed=0),
    _hidden("neomme", "NeoMME", "windows and full layers", num_key_value_heads=2, head_dim=16, embedding_rank=32,
            sliding_window=WINDOW),
    _hidden("t5", "T5Encoder", "the encoder alone, relative positions", d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2,
            num_heads=4),
)  # fmt: skip

CLASSIFIERS = (
    _scores("llama", "Llama", "the last token, found by the pad id", **_GROUPED),
    _scores("qwen3", "Qwen3", "the last token, found by the pad id", **_GROUPED),
    _scores("gpt2", "GPT2", "the last token, found by the pad id", **_GPT),
    _scores("bert", "Bert", "a pooler's head"),
    _scores("roberta", "Roberta", "a head of its own", **_FROM_PAD),
    _scores("distilbert", "DistilBert", "a head of its own", dim=WIDTH, hidden_dim=128, n_layers=2, n_heads=4),
    _scores(
        "deberta-v2",
        "DebertaV2",
        "a pooler of its own, relative positions",
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["c2p", "p2c"],
        position_biased_input=False,
        pooler_hidden_size=WIDTH,
    ),
    _scores(
        "modernbert",
        "ModernBert",
        "the mean",
        local_attention=2 * WINDOW,
        cls_token_id=1,
        sep_token_id=2,
        layer_types=["full_attention", "sliding_attention"],
        classifier_pooling="mean",
    ),
)

FAMILIES = {family.name: family for family in (*DECODERS, *ENCODERS, *CLASSIFIERS)}
