"""x-transformers' outer surface: flags that say what a forward pass gives back, and its cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Unpack, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from xtdist.model.batch_cache import BatchCache
from xtdist.model.config import ModelConfig
from xtdist.model.outputs import (
    AttentionIntermediates,
    Intermediates,
    LogitsAndEmbeddings,
    ModelInputs,
    ModelOutput,
    Wanted,
)
from xtdist.model.sublayer import AttentionRecord
from xtdist.nn.attention.cache import CacheSpec

HIDDENS = ("return_intermediates", "return_embeddings_and_intermediates", "return_logit_entropies")
NOT_CACHED = (
    "mask",
    "seq_start_pos",
    "self_attn_kv_mask",
    "attn_mask",
    "attn_bias",
    "documents",
    "prefix_attn_len",
    "pos",
    "mems",
    "prepend_mask",
    "context_mask",
    "context_pos",
    "self_attn_additional_kv",
    "layers_execute_order",
    "repeat_blocks",
)
"""Inputs that a cache could not repeat for the tokens to come."""


PER_TOKEN = ("sum_embeds", "condition", "in_attn_cond")
"""Inputs (b, n, …) that may be given for each token."""


class Model(Protocol):
    """What the surface is around of."""

    config: ModelConfig
    training: bool
    next_embedding: Any

    def run(
        self,
        x: Tensor | None,
        *,
        keep: bool,
        scores: bool,
        grown: BatchCache | None,
        **inputs: Unpack[ModelInputs],
    ) -> ModelOutput: ...

    def to_logits(self, hidden: Tensor, **keywords: Any) -> Any: ...

    def cache_spec(self) -> CacheSpec: ...


def answer(
    model: Model, x: Tensor | None, wanted: Wanted, inputs: ModelInputs, *, new_only: bool
) -> Any:
    """The forward pass of ``x`` with everything that is ``wanted``, in x-transformers' shapes.

    Raises:
        ValueError: as ``TransformerWrapper.run``, and where a cache or an output can't be had.
    """
    scores = wanted.get("return_attn", False) or wanted.get("return_attn_z_loss", False)
    inter = any(wanted.get(name) for name in HIDDENS) or wanted.get("return_attn_z_loss", False)
    keep = bool(scores or inter or wanted.get("return_mems"))
    cache, grown, no_cache = inputs.pop("cache", None), None, ""
    if isinstance(cache, Intermediates):
        x, grown = _go_on(model, cache, x, inputs, new_only=new_only)
        no_cache = _why_not(model, inputs, scores=scores)
        if no_cache:
            raise ValueError(f"cache: {no_cache}")
    elif cache is not None:
        inputs["cache"] = cache
    elif inter:
        no_cache = _why_not(model, inputs, scores=scores)
        grown = None if no_cache else BatchCache(inputs.get("context"), config=model.config)
    out = model.run(x, keep=keep, scores=scores, grown=grown, **inputs)
    if grown is not None:
        n = 0 if x is None else x.shape[1]
        grown.seen(n, out.tokens.shape[1])
    hidden, initial = _without_prepended(model, out, inputs, wanted)
    logits = _logits(model, hidden, wanted)
    result = _result(hidden, logits, None if model.config.causal else out.pooled, wanted)
    if wanted.get("return_next_embed_pred"):
        if model.next_embedding is None:
            raise ValueError("return_next_embed_pred: needs add_continuous_pred_head=True")
        result = (result, (model.next_embedding(hidden), initial))
    mems = None
    if wanted.get("return_mems"):
        mems = memories(model.config, out, inputs, detach=wanted.get("detach_mems", True))
    if inter:
        found = _intermediates(model, out, wanted, kept_scores=scores)
        found.mems, found.logits = mems, logits
        found.kv_cache, found.no_cache = grown, no_cache
        if wanted.get("return_logit_entropies"):
            several = isinstance(logits, tuple)
            found.logit_entropies = tuple(map(entropies, logits)) if several else entropies(logits)
        return result, found
    if mems is not None:
        return result, mems
    if wanted.get("return_attn"):
        return result, [record.weights for record in out.stack.attentions]
    return result


def kept(
    model: Model, x: Tensor, inputs: Mapping[str, Any], *, scores: bool
) -> tuple[ModelOutput, Intermediates]:
    """One pass, and what it computes on the way: ``scores`` and the z-loss where they are wanted,
    and a cache to go on with where it can have one."""
    given = cast(ModelInputs, dict(inputs))
    no_cache = _why_not(model, given, scores=scores)
    grown = None if no_cache else BatchCache(given.get("context"), config=model.config)
    out = model.run(x, keep=True, scores=scores, grown=grown, **given)
    if grown is not None:
        grown.seen(x.shape[1], out.tokens.shape[1])
    found = _intermediates(model, out, {"return_attn_z_loss": scores}, kept_scores=scores)
    found.kv_cache, found.no_cache = grown, no_cache
    return out, found


def _go_on(
    model: Model, cache: Intermediates, x: Tensor | None, inputs: ModelInputs, *, new_only: bool
) -> tuple[Tensor, BatchCache]:
    """The new tokens of ``x``, what is given for them, and the cache that they will grow."""
    if cache.kv_cache is None:
        raise ValueError(f"cache: these intermediates hold none: {cache.no_cache}")
    if x is None:
        raise ValueError("x: got None; give token ids (b, n)")
    grown = cache.kv_cache.fork()
    _check_cache(model, grown, x, inputs)
    if new_only:
        return x, grown
    prepended = inputs.pop("prepend_embeds", None)
    if prepended is not None and grown.rows - grown.tokens != prepended.shape[1]:
        raise ValueError(
            f"prepend_embeds: got {prepended.shape[1]}; the cache holds "
            f"{grown.rows - grown.tokens} of them"
        )
    new = x.shape[1] - grown.tokens
    if new < 1:
        raise ValueError(
            f"x: {x.shape[1]} tokens, and the cache holds {grown.tokens}; give the whole sequence "
            "with new tokens, or only those with input_not_include_cache=True"
        )
    n, given = x.shape[1], cast(dict[str, Any], inputs)
    for name in PER_TOKEN:
        given[name] = _last(given.get(name), n, new, axes=3)
    ids = given.get("embed_ids")
    if isinstance(ids, Mapping):
        given["embed_ids"] = {name: _last(value, n, new, axes=2) for name, value in ids.items()}
    return x[:, -new:], grown


def _last(value: Any, n: int, new: int, *, axes: int) -> Any:
    """The ``new`` last of ``n`` in a tensor (b, n, …); else as it is, for the checks to see."""
    whole = isinstance(value, Tensor) and value.ndim == axes and value.shape[1] == n
    return value[:, -new:] if whole else value


def _check_cache(model: Model, cache: BatchCache, x: Tensor, inputs: ModelInputs) -> None:
    """``cache`` is of this model, these sequences and this context."""
    if cache.config is not None and cache.config != model.config:
        raise ValueError("cache: it is of another model; give the intermediates of this one")
    if cache.batch not in (None, len(x)):
        raise ValueError(
            f"cache: it holds {cache.batch} sequences, and x {len(x)}; give the same ones"
        )
    context = inputs.get("context")
    if context is None:
        inputs["context"] = cache.states
    elif context is not cache.states and cache.states is not None:
        same = context.shape == cache.states.shape and bool((context == cache.states).all())
        if not same:
            raise ValueError(
                "context: another one than the cache was made with; leave it out (the cache has "
                "it), or start without the cache"
            )


def _why_not(model: Model, inputs: ModelInputs, *, scores: bool) -> str:
    """Why a pass can neither fill nor use a cache; empty if it can."""
    if not model.config.causal:
        return "only a causal model can use one (this is an encoder)"
    refused = model.cache_spec().refused
    if refused:
        return refused
    if model.training:
        return "a model in training mode keeps none; call eval()"
    given = [name for name in NOT_CACHED if inputs.get(name) is not None]
    if given:
        return f"it can't be combined with {given[0]}; leave it out"
    if scores:
        return "attentions are not kept beside one; leave out return_attn and return_attn_z_loss"
    return ""


def _without_prepended(
    model: Model, out: ModelOutput, inputs: ModelInputs, wanted: Wanted
) -> tuple[Tensor, Tensor]:
    """What the head reads, and the embeddings, without prepended vectors if so wanted."""
    prepended = inputs.get("prepend_embeds")
    if prepended is None or not wanted.get("excise_prepend_embeds"):
        return out.hidden, out.initial
    pool = model.config.pool
    if pool is not None and pool.kind != "attention":
        raise ValueError("excise_prepend_embeds: the output is pooled; leave it out")
    cut = prepended.shape[1]
    return out.hidden[:, cut:], out.initial[:, cut:]


def _logits(model: Model, hidden: Tensor, wanted: Wanted) -> Any:
    """Logits, where somebody reads them."""
    keywords: Mapping[str, Any] = wanted.get("to_logits_kwargs") or {}
    entropy = wanted.get("return_logit_entropies")
    only = wanted.get("return_embeddings") or wanted.get("return_embeddings_and_intermediates")
    if keywords and not model.config.head.given:
        raise ValueError(
            "to_logits_kwargs: the model's own head takes none; leave them out, or give a head "
            "that does (to_logits=…)"
        )
    if model.config.head.output == "hidden":
        if entropy or wanted.get("return_logits_and_embeddings"):
            raise ValueError("logits: the model has no head (return_only_embed=True)")
        return None
    return None if only and not entropy else model.to_logits(hidden, **keywords)


def _result(hidden: Tensor, logits: Any, pooled: Tensor | None, wanted: Wanted) -> Any:
    """``pooled`` takes the place of logits."""
    if wanted.get("return_logits_and_embeddings"):
        return LogitsAndEmbeddings(logits, hidden)
    only = wanted.get("return_embeddings") or wanted.get("return_embeddings_and_intermediates")
    if pooled is not None and not only:
        return pooled
    return hidden if only or logits is None else logits


def _intermediates(
    model: Model, out: ModelOutput, wanted: Wanted, *, kept_scores: bool
) -> Intermediates:
    records = out.stack.attentions
    found = Intermediates(
        hiddens=out.hiddens,
        block_hiddens=out.block_hiddens,
        last_hidden=out.stack.hidden,
        last_layer_hiddens=out.tokens,
        initial_embeds=out.initial,
        attn_pooled_tokens=out.pooled,
        aux=out.aux,
        memory_tokens=out.memory,
        exit_logits=out.exit_logits,
        exit_indices=out.exits,
    )
    if kept_scores:
        found.attentions = tuple(AttentionIntermediates(*record) for record in records)
    if wanted.get("return_attn_z_loss"):
        weight = wanted.get("attn_z_loss_weight", model.config.attn_z_loss_weight)
        found.attn_z_loss = attention_z_loss(records, out.mask) * weight
    if wanted.get("looped_pred_all_logits", model.training):
        found.all_pred_logits = tuple(model.to_logits(h) for h in out.pass_hiddens)
    return found


def memories(
    config: ModelConfig, out: ModelOutput, inputs: ModelInputs, *, detach: bool
) -> list[Float[Tensor, "b m d"]]:
    """For each self attention its last ``max_mem_len`` inputs, this segment's and earlier ones."""
    old, new = inputs.get("mems"), []
    for i, hidden in enumerate(out.hiddens):
        both = hidden if not old else torch.cat((old[i], hidden), dim=1)
        both = both[:, max(0, both.shape[1] - config.max_mem_len) :]
        new.append(both.detach() if detach else both)
    return new


def attention_z_loss(
    records: tuple[AttentionRecord, ...], mask: Bool[Tensor, "b n"] | None
) -> Float[Tensor, ""]:
    """Σ over layers of the mean over real tokens of Σ over heads of logsumexp(scores)²
    (2202.08906, on attention as in PaLM).

    Raises:
        ValueError: there is no attention.
    """
    if not records:
        raise ValueError("return_attn_z_loss: the stack has no attention; leave it out")
    losses = []
    for record in records:
        empty = record.scores.isneginf().all(dim=-1)  # it reads nothing: no sum to keep small
        sums = record.scores.masked_fill(empty[..., None], 0.0).logsumexp(dim=-1)
        squares = rearrange(sums.masked_fill(empty, 0.0).square(), "b h n -> h b n").sum(dim=0)
        if mask is None:
            losses.append(squares.mean())
        else:
            losses.append((squares * mask).sum() / mask.sum().clamp(min=1))
    return torch.stack(losses).sum()


def entropies(logits: Float[Tensor, "... v"]) -> Float[Tensor, "..."]:
    """Of the distribution at each position, in nats."""
    logp = logits.float().log_softmax(dim=-1)
    return -(logp.exp() * logp).sum(dim=-1)
