"""The same weights in our model and in others that continue text: x-transformers, transformers'
Llama and CTranslate2, each as a function from prompts to new tokens."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from common import Case, build_pair
from einops import rearrange
from torch import Tensor, nn

from xtdist.decode import ContrastiveParams, EngineConfig, GenerationParams, generate
from xtdist.nn.attention.module import Attention
from xtdist.nn.feedforward.dense import FeedForward

Tokens = list[list[int]]
THETA = 10_000.0
EPS = 1e-12
CONTRAST = {"alpha": 0.1, "beta": 0.5}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Llama: rotary positions on whole heads, RMSNorm, SwiGLU of width ``inner``, an untied
    head."""

    dim: int = 512
    depth: int = 8
    heads: int = 8
    inner: int = 1376
    vocabulary: int = 8192
    longest: int = 4352

    @property
    def touched(self) -> int:
        """Weights that every step reads: all but the embedding."""
        layer = 4 * self.dim**2 + 3 * self.dim * self.inner + 2 * self.dim
        return self.depth * layer + self.dim + self.vocabulary * self.dim

    @property
    def kept(self) -> int:
        """Numbers that a token leaves in the cache."""
        return 2 * self.depth * self.dim

    def case(self, depth: int | None = None) -> Case:
        """In x-transformers' words."""
        head = self.dim // self.heads
        layers: dict[str, Any] = {
            "dim": self.dim,
            "depth": depth or self.depth,
            "heads": self.heads,
            "attn_dim_head": head,
            "attn_flash": True,
            "rotary_pos_emb": True,
            "rotary_emb_dim": head,
            "use_rmsnorm": True,
            "ff_glu": True,
            "ff_swish": True,
            "ff_no_bias": True,
            "ff_mult": self.inner / self.dim,
        }
        return Case(
            name="llama", layers=layers, vocabulary=self.vocabulary, seq_len=self.longest, batch=1
        )


class Peer(Protocol):
    """Continues every prompt by ``new`` tokens, greedily or by the best of ``beams``."""

    def __call__(self, prompts: Tokens, new: int, *, beams: int = 1) -> Tokens: ...


OURS, COMPILED = "xtdist", "xtdist, compiled"


class Ours:
    """``xtdist.decode.generate``."""

    def __init__(self, model: Any, amateur: Any = None, *, compiled: bool = False) -> None:
        self.model, self.amateur, self.compiled = model, amateur, compiled

    def __call__(self, prompts: Tokens, new: int, *, beams: int = 1) -> Tokens:
        contrast = None if self.amateur is None else ContrastiveParams(**CONTRAST)
        params = GenerationParams(
            max_tokens=new, temperature=0.0, num_beams=beams, contrastive=contrast
        )
        longest = max(map(len, prompts)) + new
        width = len(prompts) * beams
        sizes = EngineConfig(
            max_sequences=width,
            max_sequence_tokens=longest,
            compile_sequences=width if self.compiled else 0,
        )
        done = generate(self.model, prompts, params, amateur=self.amateur, config=sizes)
        return [list(c.choices[0].token_ids) for c in done]


class XTransformers:
    """Its ``AutoregressiveWrapper``."""

    def __init__(self, model: Any, amateur: Any = None) -> None:
        import x_transformers as xt

        self.net = xt.AutoregressiveWrapper(model).eval()
        self.contrast: dict[str, Any] = {} if amateur is None else {"amateur_model": amateur}
        if amateur is not None:
            self.contrast["contrastive_decode_kwargs"] = CONTRAST

    @torch.no_grad()
    def __call__(self, prompts: Tokens, new: int, *, beams: int = 1) -> Tokens:
        ids = torch.tensor(prompts)
        if beams > 1:
            return self.net.beam_search(ids, new, beams=beams, cache_kv=True).tolist()
        return self.net.generate(ids, new, temperature=0.0, cache_kv=True, **self.contrast).tolist()


class Transformers:
    """``LlamaForCausalLM.generate``."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def __call__(self, prompts: Tokens, new: int, *, beams: int = 1) -> Tokens:
        ids = torch.tensor(prompts)
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            num_beams=beams,
            do_sample=False,
            pad_token_id=0,
        )
        return out[:, ids.shape[1] :].tolist()


class CTranslate2:
    """A ``Generator`` on one thread."""

    def __init__(self, folder: Path, compute: str) -> None:
        import ctranslate2

        self.generator = ctranslate2.Generator(
            str(folder), compute_type=compute, intra_threads=1, inter_threads=1
        )

    def __call__(self, prompts: Tokens, new: int, *, beams: int = 1) -> Tokens:
        done = self.generator.generate_batch(
            [[str(i) for i in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            beam_size=beams,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in done]


def pair(shape: Shape, depth: int | None = None) -> tuple[Any, Any]:
    """Ours and x-transformers' with the same weights. Theirs has a bias in a GLU even without
    biases; it is zero here, and a Llama has none."""
    both = build_pair(shape.case(depth), device="cpu", dtype=torch.float32)
    for model in both:
        for name, parameter in model.eval().named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
    return both


def llama(model: Any, shape: Shape) -> Any:
    """transformers' Llama with the weights of ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.dim,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.longest,
        rms_norm_eps=EPS,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    peer = LlamaForCausalLM(config).eval()
    peer.load_state_dict(llama_state(model, shape.heads))
    return peer


def llama_state(model: Any, heads: int) -> dict[str, Tensor]:
    """Our weights by transformers' names; rotated pairs of channels lie in either half there."""

    def halves(weight: Tensor) -> Tensor:
        return rearrange(weight, "(h r two) d -> (h two r) d", h=heads, two=2)

    state = {
        "model.embed_tokens.weight": model.token_embedding.weight,
        "model.norm.weight": model.layers.final_norm.effective_gain(),
        "lm_head.weight": model.head.weight,
    }
    for number, part in enumerate(model.layers.sublayers):
        at, branch = f"model.layers.{number // 2}.", part.branch
        if isinstance(branch, Attention):
            q, k, v = branch.projection.weight.chunk(3)
            state[f"{at}input_layernorm.weight"] = part.norm.effective_gain()
            state[f"{at}self_attn.q_proj.weight"] = halves(q)
            state[f"{at}self_attn.k_proj.weight"] = halves(k)
            state[f"{at}self_attn.v_proj.weight"] = v
            state[f"{at}self_attn.o_proj.weight"] = branch.to_out.weight
        else:
            assert isinstance(branch, FeedForward)
            up, gate = branch.proj_in.weight.chunk(2)
            state[f"{at}post_attention_layernorm.weight"] = part.norm.effective_gain()
            state[f"{at}mlp.up_proj.weight"] = up
            state[f"{at}mlp.gate_proj.weight"] = gate
            state[f"{at}mlp.down_proj.weight"] = branch.proj_out.weight
    return {name: weight.detach().contiguous() for name, weight in state.items()}


def ctranslate2_folder(peer: Any, folder: Path) -> Path:
    """transformers' Llama as a CTranslate2 model in fp32, which it quantises when it loads it."""
    from ctranslate2.converters.transformers import LlamaLoader

    spec = LlamaLoader().get_model_spec(copy.deepcopy(peer))  # it takes the layers apart
    spec.register_vocabulary([str(i) for i in range(peer.config.vocab_size)])
    spec.config.layer_norm_epsilon = EPS
    spec.config.unk_token = spec.config.bos_token = spec.config.eos_token = "0"
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True)
    spec.save(str(folder))
    return folder


@dataclass(frozen=True)
class Engines:
    """Who takes part in each kind of row."""

    plain: dict[str, Peer]
    contrastive: dict[str, Peer]
    int8: dict[str, Peer]


def build(shape: Shape, folder: Path) -> Engines:
    """All of them that are installed, ours first, with the same weights."""
    from xtdist.nn.layout import by_columns
    from xtdist.nn.quantize import quantize_int8

    ours, theirs = pair(shape)
    weak, weak_theirs = pair(shape, shape.depth // 2)
    small = quantize_int8(copy.deepcopy(ours))
    by_columns(ours)  # as loading weights does
    by_columns(weak)
    plain: dict[str, Peer] = {
        OURS: Ours(ours),
        COMPILED: Ours(ours, compiled=True),
        "x-transformers": XTransformers(theirs),
    }
    int8: dict[str, Peer] = {OURS: Ours(small), COMPILED: Ours(small, compiled=True)}
    if has("transformers"):
        peer = llama(ours, shape)
        plain["HF Llama"] = Transformers(peer)
        if has("ctranslate2"):
            made = ctranslate2_folder(peer, folder / "ct2")
            plain["CTranslate2"] = CTranslate2(made, "float32")
            int8["CTranslate2"] = CTranslate2(made, "int8_float32")
    contrastive: dict[str, Peer] = {
        OURS: Ours(ours, weak),
        COMPILED: Ours(ours, weak, compiled=True),
        "x-transformers": XTransformers(theirs, weak_theirs),
    }
    return Engines(plain, contrastive, int8)


def has(module: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(module) is not None


def agree(found: dict[str, Tokens], *, peers: Sequence[str]) -> None:
    """Raises ValueError unless all ``peers`` found the same tokens as we did."""
    mine = found["xtdist"]
    for name in peers:
        for row, (a, b) in enumerate(zip(mine, found[name], strict=True)):
            if a != b:
                at = next((i for i, (s, t) in enumerate(zip(a, b, strict=False)) if s != t), -1)
                raise ValueError(f"{name} differs in row {row} at token {at}; nothing was timed")
