"""Keywords of x-transformers that xtdist does not have, and why."""

from __future__ import annotations

from collections.abc import Mapping

NOT_DATA = "a module or function is not data, so no config could describe the model"
STACK = "the stack sets it; give it without the prefix"
LEAKS = "it mixes in statistics of the whole sequence, which shows tokens their future"

ELSEWHERE = (
    "all keywords are in xtdist/model/OPTIONS.md; what x-transformers lacks (mixtures of experts, "
    "RoPE scaling, recomputation …) has none: it is set in a ModelConfig or YAML"
)
LEFT_OUT: Mapping[str, str] = {
    "causal": "Decoder and Encoder say it",
    "attn_attend_sdp_kwargs": "torch chooses the kernel; torch.nn.attention.sdpa_kernel overrides",
    "attn_causal": STACK,
    "attn_custom_attn_fn": NOT_DATA,
    "attn_dim": STACK,
    "attn_dim_context": "a self attention has no context; give cross_attn_dim_context",
    "attn_dim_out": "a layer's output joins the stream, which has one width",
    "attn_flash_pack_seq": "packed documents are separated by documents=, on every backend",
    "attn_heads": STACK,
    "attn_hybrid_module": NOT_DATA,
    "attn_hybrid_mask_kwarg": NOT_DATA,
    "attn_hybrid_fold_axial_dim": NOT_DATA,
    "attn_hybrid_learned_mix": NOT_DATA,
    "attn_inverted_attention": "x-transformers ignores it; softmax over queries hides nothing",
    "attn_learned_value_residual_mix": STACK,
    "attn_onnxable": "the causal mask needs no special form for export here",
    "attn_orthog_projected_values": LEAKS,
    "attn_orthog_projected_values_per_head": LEAKS,
    "attn_output_proj_depth": "depth_scale_residual sets it",
    "attn_project_out": "a layer's output is always projected into the stream",
    "attn_qkv_receive_diff_residuals": STACK,
    "attn_rotate_num_heads": STACK,
    "ff_custom_activation": NOT_DATA,
    "ff_dim": "the stack sets it",
    "ff_dim_out": "a layer's output joins the stream, which has one width",
    "ff_output_proj_depth": "depth_scale_residual sets it",
}

NOT_IN_GRAPH = "a function that is called within would end in no config and no compiled graph; "

LEFT_OUT_OF_FORWARD: Mapping[str, str] = {
    "cache_age": "a cache grows by all tokens that are new",
    "causal": "Decoder and Encoder say it; attn_mask hides more",
    "flash_pack_seq_context_kwargs": "documents are separated by documents=, on every backend",
    "flash_pack_seq_kwargs": "documents are separated by documents=, on every backend",
    "transform_block_inputs": NOT_IN_GRAPH + "use a forward pre-hook of layers.sublayers[i]",
    "transform_token_embeds": NOT_IN_GRAPH + "use a forward hook of token_embedding, or give "
    "token_emb=",
}
"""Arguments of a forward pass."""

EXPERIMENT = "an experiment of its own, not part of training or serving language models"

LEFT_OUT_CLASSES: Mapping[str, str] = {
    "AdaptiveRMSNorm": "norm.kind=adaptive_rmsnorm (use_adaptive_rmsnorm=True)",
    "Attention": "Encoder(only_attn=True, depth=1, …)",
    "BeliefStateWrapper": EXPERIMENT,
    "DPO": "preferences are no objective here; AutoregressiveWrapper trains on sequences",
    "EntropyBasedTokenizer": "a dataset has one tokenizer (xtdist/data/tokenizer)",
    "FeedForward": "xtdist.nn.feedforward, by its config",
    "MultiInputTransformerWrapper": "TransformerWrapper(embed_num_tokens={name: tokens, …})",
    "NeoMLP": EXPERIMENT,
    "NextLatentWrapper": EXPERIMENT,
    "RMSNorm": "xtdist.nn.norm, by its config",
    "TransformerBlock": "Encoder(depth=1, …), Decoder(depth=1, …)",
    "XLAutoregressiveWrapper": "TransformerWrapper(max_mem_len=…) hands memories on from one "
    "segment to the next (mems=, return_mems=True); the loop over segments is the caller's",
    "XValAutoregressiveWrapper": EXPERIMENT,
    "XValTransformerWrapper": EXPERIMENT,
}
"""Classes at the top of x-transformers. Of the wrappers that xtdist has, all arguments are here."""
