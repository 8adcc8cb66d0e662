"""transformers' Llama with the weights of our model of the same shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xtdist.model import TransformerWrapper
from xtdist.nn.position.config import RotaryConfig

HALVES = RotaryConfig(layout="halves")
"""The rotary positions that our model must have."""


def llama(model: TransformerWrapper) -> Any:
    """Raises AssertionError where its logits are not ours."""
    config = model.config
    heads, head, kv_heads = config.heads, config.attention.dim_head, config.attention.kv_heads
    assert config.position == HALVES
    peer = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.num_tokens,
            hidden_size=config.dim,
            intermediate_size=model.layers.sublayers[1].branch.proj_out.weight.shape[1],
            num_hidden_layers=config.depth,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            head_dim=head,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm.eps,
            rope_parameters={"rope_type": "default", "rope_theta": HALVES.theta},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).eval()
    peer.load_state_dict(_state(model, [heads * head, (kv_heads or heads) * head]))
    ids = torch.arange(20)[None] % config.num_tokens
    with torch.no_grad():
        assert torch.allclose(peer(ids).logits, model(ids), atol=1e-5)
    return peer


def _state(model: TransformerWrapper, widths: list[int]) -> dict[str, Tensor]:
    state = {
        "model.embed_tokens.weight": model.token_embedding.weight,
        "model.norm.weight": model.layers.final_norm.effective_gain(),
        "lm_head.weight": model.head.weight,
    }
    for number, part in enumerate(model.layers.sublayers):
        at, branch = f"model.layers.{number // 2}.", part.branch
        if number % 2 == 0:
            q, k, v = branch.projection.weight.split([*widths, widths[1]])
            own = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
            own |= {"self_attn.o_proj": branch.to_out.weight}
            own |= {"input_layernorm": part.norm.effective_gain()}
        else:
            up, gate = branch.proj_in.weight.chunk(2)
            own = {"mlp.up_proj": up, "mlp.gate_proj": gate}
            own |= {"mlp.down_proj": branch.proj_out.weight}
            own |= {"post_attention_layernorm": part.norm.effective_gain()}
        state |= {f"{at}{name}.weight": weight for name, weight in own.items()}
    return {name: weight.detach().contiguous() for name, weight in state.items()}
