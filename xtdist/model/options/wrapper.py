"""Options around the stack: embedding, memory, passes; those of the head are in ``head.py``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xtdist.config import ConfigError
from xtdist.model.options.base import REQUIRED, SKIP, Option, Row, Sample
from xtdist.model.options.head import HEAD
from xtdist.model.options.places import find
from xtdist.model.options.weights import Context, Rule, Scaled


def emb_scale(config: Any) -> float:
    """There, learned positions are scaled when they are added."""
    return float(config.emb_dim) ** -0.5


def own_width(width: int | None, given: Mapping[str, Any]) -> int | None:
    """The model's own width is none of the embedding's."""
    return None if width == given["dim"] else width


def count(value: int | None, given: Mapping[str, Any]) -> Any:
    """An optional part that is on where its number is one."""
    return {"tokens": value} if value else SKIP


def count_back(placed: Mapping[str, Any] | None, tree: Mapping[str, Any]) -> Any:
    """The way back."""
    return SKIP if placed is None else placed["tokens"]


def tables(sizes: Mapping[str, int], given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Named tables as a list."""
    wrong = [name for name in sizes if not isinstance(name, str)]
    if wrong:
        raise ConfigError(f"embed_num_tokens: got {wrong[0]!r} for a name; give texts")
    return [{"name": name, "tokens": tokens} for name, tokens in sizes.items()]


def tables_back(placed: list[dict[str, Any]], tree: Mapping[str, Any]) -> dict[str, int]:
    """The way back."""
    return {table["name"]: table["tokens"] for table in placed}


def is_reduced(config: Any) -> bool:
    """A share of the gradient that is not all of it."""
    return float(find(config, "embedding.gradient", 1.0)) != 1.0


class Flat:
    """Theirs has an axis of its own for the depth."""

    def into(self, tensor: Tensor, context: Context) -> Tensor:
        return tensor.flatten(1)

    def back(self, tensor: Tensor, context: Context) -> Tensor:
        return tensor.unflatten(1, (context.config.depth, context.config.dim))


EMBEDDING: tuple[Option, ...] = (
    Option(
        name="embedding",
        about="token embedding and output head",
        active="dim",
        wrapper=(
            Row("num_tokens", "num_tokens", REQUIRED),
            Row("max_seq_len", "max_seq_len", REQUIRED),
            Row("emb_dropout", "emb_dropout", 0.0),
            Row("attn_z_loss_weight", "attn_z_loss_weight", 1e-4),
            Row("input_not_include_cache", "input_not_include_cache", False),
        ),
        samples=(Sample(wrapper={"emb_dropout": 0.1}),),
        weights=(
            Rule("wrapper", "token_emb.emb.weight", "token_embedding.weight"),
            Rule("wrapper", "to_logits.weight", "head.weight"),
        ),
        differs="attn_z_loss_weight holds (there, only forward's argument does); the z-loss is "
        "summed over layers after squaring, over the scores that the softmax sees",
    ),
    Option(
        name="prefix",
        about="a PrefixDecoder's first tokens see each other, as many as prefix_attn_len says",
        active="prefix",
        acts_in="a",
        paper="1910.10683",
        tier=2,
        causal="causal only",
        samples=(
            Sample(config={"prefix": True}, inputs=("prefix_attn_len",)),
            Sample(
                {"rotary_pos_emb": True, "attn_max_attend_past": 4, "attn_flash": True},
                config={"prefix": True},
                inputs=("prefix_attn_len",),
            ),
            Sample(
                {"rel_pos_bias": True, "attn_kv_heads": 2},
                config={"prefix": True},
                inputs=("prefix_attn_len",),
            ),
        ),
        uncacheable="its first tokens read later ones, and a cache may get them in pieces",
        unpackable="a prefix is that of the sequence, and only its first document would have one",
        excludes=dict.fromkeys(
            ("xPos", "selective attention", "CoPE", "forgetting by row"),
            "it is defined where nobody reads later tokens, and those of a prefix do; leave it "
            "out, or use a Decoder",
        ),
    ),
    Option(
        name="embedding width",
        about="a narrower embedding, projected to the model's width",
        active="embedding.dim",
        paper="1909.11942",
        wrapper=(Row("emb_dim", "embedding.dim", None, into=own_width),),
        samples=(Sample(wrapper={"emb_dim": 16}),),
        weights=(
            Rule("wrapper", "project_emb.weight", "embedding_tail.proj.weight"),
            Rule("wrapper", "project_emb.bias", "embedding_tail.proj.bias"),
            Rule(
                "wrapper",
                "pos_emb.emb.weight",
                "position_embedding.weight",
                (Scaled(emb_scale),),
            ),
        ),
        excludes={
            "tied embedding": "the embedding matrix is narrower than the hidden states; leave out "
            "tie_embedding or emb_dim"
        },
    ),
    Option(
        name="unit embedding",
        about="token and learned position vectors of length one (fixnorm)",
        active="embedding.unit",
        paper="1910.05895",
        tier=2,
        wrapper=(Row("l2norm_embed", "embedding.unit", False),),
        samples=(
            Sample(wrapper={"l2norm_embed": True}),
            Sample({"rotary_pos_emb": True}, {"l2norm_embed": True}),
        ),
        weights=(Rule("wrapper", "pos_emb.emb.weight", "position_embedding.weight"),),
    ),
    Option(
        name="embedding norm",
        about="a LayerNorm over the embedding (BLOOM)",
        active="embedding.norm",
        paper="2211.05100",
        tier=2,
        wrapper=(Row("post_emb_norm", "embedding.norm", False),),
        samples=(Sample(wrapper={"post_emb_norm": True}),),
        weights=(Rule("wrapper", "post_emb_norm.gamma", "embedding_tail.norm.gain"),),
    ),
    Option(
        name="embedding gradient",
        about="only a share of the gradient reaches the embedding",
        active=is_reduced,
        paper="2105.13290",
        tier=3,
        wrapper=(Row("emb_frac_gradient", "embedding.gradient", 1.0),),
        samples=(Sample(wrapper={"emb_frac_gradient": 0.1}),),
    ),
    Option(
        name="further embeddings",
        about="named tables whose vectors are added, as for token types",
        active="embedding.tables",
        paper="1810.04805",
        tier=2,
        wrapper=(Row("embed_num_tokens", "embedding.tables", {}, into=tables, back=tables_back),),
        weights=(Rule("wrapper", "embeds.{j}_embed.weight", "embedding_tail.tables.{j}.weight"),),
    ),
    Option(
        name="deep embedding",
        about="each token has a factor on each feed-forward's output (RWKV-8)",
        active="embedding.deep",
        fixed_order="ff_deep_embed has one table for each feed-forward as they were built",
        tier=3,
        wrapper=(Row("ff_deep_embed", "embedding.deep", False),),
        samples=(Sample(wrapper={"ff_deep_embed": True}),),
        weights=(Rule("wrapper", "ff_deep_embed", "deep_embedding.weight", (Flat(),)),),
        differs="works beside memory, class and prepended tokens",
    ),
    Option(
        name="given embedding",
        about="the token embedding is a module of the caller's",
        active="embedding.given",
        tier=2,
        excludes={
            "tied embedding": "a module that was given has no matrix that could be the head",
            "unit embedding": "a module that was given decides the length of its vectors itself",
        },
    ),
)

MEMORY: tuple[Option, ...] = (
    Option(
        name="memory tokens",
        about="learned tokens before the sequence that all others may read (registers)",
        active="memory_tokens",
        acts_in="a",
        paper="2006.11527",
        tier=2,
        wrapper=(Row("num_memory_tokens", "memory_tokens", None, into=count, back=count_back),),
        samples=(
            Sample(wrapper={"num_memory_tokens": 3}),
            Sample({"rotary_pos_emb": True}, {"num_memory_tokens": 3}),
        ),
        weights=(Rule("wrapper", "memory_tokens", "memory_tokens.weight"),),
        uncacheable="a cache knows the tokens of a sequence only, not those put before them",
    ),
    Option(
        name="interspersed memory tokens",
        about="memory tokens before every so many tokens",
        active="memory_tokens.every",
        paper="2006.11527",
        tier=2,
        wrapper=(
            Row(
                "memory_tokens_interspersed_every",
                "memory_tokens.every",
                None,
                needs="num_memory_tokens",
            ),
        ),
        samples=(
            Sample(wrapper={"num_memory_tokens": 3, "memory_tokens_interspersed_every": 5}),
            Sample(
                {"alibi_pos_bias": True},
                {"num_memory_tokens": 2, "memory_tokens_interspersed_every": 4},
            ),
        ),
        causal="causal only",
        differs="works with masks, class and prepended tokens",
    ),
    Option(
        name="segment memory",
        about="hidden states of earlier segments are read again (Transformer-XL)",
        active="max_mem_len|shift_mem_down",
        acts_in="a",
        paper="1901.02860",
        tier=2,
        wrapper=(
            Row("max_mem_len", "max_mem_len", 0),
            Row("shift_mem_down", "shift_mem_down", 0),
        ),
        samples=(Sample(wrapper={"max_mem_len": 8, "shift_mem_down": 1}),),
        differs="what is handed on is not shifted again for each further segment; memories hold no "
        "memory tokens",
    ),
)

PASSES: tuple[Option, ...] = (
    Option(
        name="recycling",
        about="several passes, each reading the output of the one before (AlphaFold 2)",
        active="loop.kind=recycling",
        paper="10.1038/s41586-021-03819-2",
        tier=3,
        wrapper=(
            Row("recycling", "loop", False, {True: {"kind": "recycling"}}),
            Row("train_max_recycle_steps", "loop.max_steps", 4, needs="recycling"),
        ),
        weights=(Rule("wrapper", "recycled_proj.weight", "loop.proj.weight"),),
        uncacheable="a token is changed by passes over later input",
        differs="all ranks draw the same number of passes; outside of training it is "
        "train_max_recycle_steps unless given",
    ),
    Option(
        name="looped",
        about="several passes over their own output, with a learned exit",
        active="loop.kind=looped",
        paper="2510.25741",
        tier=3,
        wrapper=(
            Row("looped", "loop", False, {True: {"kind": "looped"}}),
            Row("max_looped_steps", "loop.max_steps", 4, needs="looped"),
        ),
        samples=(
            Sample({"pre_and_post_norm": True}, {"looped": True}),
            Sample({"pre_and_post_norm": True}, {"looped": True, "max_looped_steps": 2}),
        ),
        weights=(Rule("wrapper", "exit_gate.weight", "loop.exit_gate.weight"),),
        differs="every token has its own exit and every pass its own keys and values, in a cache "
        "too, so any batch is right",
    ),
)

OPTIONS: tuple[Option, ...] = (*EMBEDDING, *MEMORY, *PASSES, *HEAD)
