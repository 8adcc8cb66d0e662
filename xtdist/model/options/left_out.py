"""Keywords of x-transformers that xtdist does not have, and why."""

from __future__ import annotations

from collections.abc import Mapping

LEFT_OUT: Mapping[str, str] = {
    "attn_custom_attn_fn": "a function is not data, so no config could describe the model",
    "attn_onnxable": "the causal mask needs no special form for export here",
    "attn_attend_sdp_kwargs": "torch chooses the kernel; torch.nn.attention.sdpa_kernel overrides",
    "attn_flash_pack_seq": "packed documents are separated by the documents input, on any backend",
    "attn_hybrid_module": "a module is not data, so no config could describe the model",
    "ff_custom_activation": "a function is not data, so no config could describe the model",
}
