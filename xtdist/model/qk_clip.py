"""Attention scores kept from growing: QK-clip, https://arxiv.org/abs/2507.20534.

Example:
    >>> with watch_max_scores(net) as scores:  # every so many steps, on a micro-batch
    ...     net(tokens)
    >>> attn_qk_clip_(net, scores.per_layer(), tau=100.0)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.model.layers import Layers
from xtdist.model.outputs import Intermediates
from xtdist.model.stack import StackOutput
from xtdist.model.sublayer import Sublayer
from xtdist.nn.attention.inputs import AttentionInputs, AttentionOutput
from xtdist.nn.attention.module import Attention
from xtdist.nn.attention.projection import CrossProjection, JointProjection

MaxScores = Sequence[Float[Tensor, " h"]]


class ScoreWatch:
    """The largest score of each head so far, for each self or cross attention of a stack."""

    def __init__(self, layers: Layers) -> None:
        self.attentions = _attentions(layers)
        self.largest: dict[int, Float[Tensor, " h"]] = {}

    def per_layer(self) -> MaxScores:
        """(h,) for each attention, in the order of the sublayers' numbers; −∞ where it never ran.

        On several ranks, take the maximum of them all first (``dist.all_reduce``, MAX).
        """
        return [
            self.largest.get(i, torch.full((attention.geometry.heads,), float("-inf")))
            for i, attention in enumerate(self.attentions)
        ]

    def see(self, number: int, scores: Float[Tensor, "b h i j"]) -> None:
        """Remember the largest."""
        found = reduce(scores.detach(), "b h i j -> h", "max")
        old = self.largest.get(number)
        self.largest[number] = found if old is None else torch.maximum(old, found)


@contextmanager
def watch_max_scores(model: nn.Module) -> Iterator[ScoreWatch]:
    """Watch the attentions of ``model`` (layers, or a wrapper that has some) in the forward passes
    within.

    They run on the eager backend meanwhile: one layer's table of scores exists at a time, plus what
    a backward pass keeps, so watch a few steps, or small batches without gradients. A backward pass
    belongs within too, since recomputed activations must be the same.
    """
    watch, handles = ScoreWatch(_layers(model)), []
    for number, attention in enumerate(watch.attentions):
        eye = _Eye(watch, number)
        handles.append(attention.register_forward_pre_hook(eye.before, with_kwargs=True))
        handles.append(attention.register_forward_hook(eye.after))
    try:
        yield watch
    finally:
        for handle in handles:
            handle.remove()


class _Eye:
    """The hooks of one attention."""

    def __init__(self, watch: ScoreWatch, number: int) -> None:
        self.watch, self.number, self.wanted = watch, number, False

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Ask for the scores."""
        x, shared, *rest = args
        assert isinstance(shared, AttentionInputs)
        self.wanted = shared.keep_scores
        return (x, shared.with_scores(), *rest), kwargs

    def after(self, module: nn.Module, args: Any, output: AttentionOutput) -> AttentionOutput:
        """Look at them, and let them go unless somebody else wants them."""
        reading = output.reading
        for scores in reading.scores:
            self.watch.see(self.number, scores)
        if self.wanted:
            return output
        return output._replace(reading=reading._replace(scores=(), weights=()))


def max_scores(model: nn.Module, hidden: StackOutput | Intermediates) -> MaxScores:
    """The largest score of each head, from a pass that kept its attentions, for each attention in
    the order of the sublayers' numbers.

    Raises:
        ValueError: attentions were not kept, or sublayers ran in another order than the config's.
    """
    layers = _layers(model)
    numbers = [i for i in layers.config.execution if layers.config.kinds[i] != "f"]
    if isinstance(hidden, Intermediates):
        tables = [record.pre_softmax_attn for record in hidden.attn_intermediates]
    else:
        tables = [record.scores for record in hidden.attentions]
    if not tables or len(tables) % len(numbers):
        raise ValueError(
            f"hidden: holds {len(tables)} attentions of a stack with {len(numbers)}; run the "
            "model with return_intermediates=True and without layers_execute_order"
        )
    watch = ScoreWatch(layers)
    place = {number: at for at, number in enumerate(_numbers(layers))}
    for step, scores in enumerate(tables):
        watch.see(place[numbers[step % len(numbers)]], scores)
    return watch.per_layer()


@torch.no_grad()
def attn_qk_clip_(
    model: nn.Module, scores: StackOutput | Intermediates | MaxScores, *, tau: float = 100.0
) -> None:
    """Shrink, in place, the query and key weights of heads with a score above ``tau``, such that it
    becomes ``tau``.

    A head's scores shrink by f = min(1, tau / max). The keys of a head take the square root of the
    largest f of the query heads that share them, the queries take the rest: with one query head for
    each key head both take √f; a head that is not over the limit keeps its scores, whoever it
    shares keys with. Keys that are normed, or learned keys beside them, leave all of it to the
    queries. A position bias, which no weight shrinks, counts as part of the score.

    model: layers, or a wrapper that has some. scores: what a pass kept, or the largest score of
    each head, (h,) for each attention (``ScoreWatch.per_layer``).

    Raises:
        ValueError: an option that makes scores independent of the weights' size, or bounds or mixes
            them, so that clipping has no meaning; scores of another model.
    """
    layers = _layers(model)
    attentions = _attentions(layers)
    if isinstance(scores, StackOutput | Intermediates):
        scores = max_scores(model, scores)
    largest: MaxScores = scores
    if not tau > 0:
        raise ValueError(f"tau: got {tau}; give a positive score")
    if len(largest) != len(attentions):
        raise ValueError(f"scores: of {len(largest)} attentions; the model has {len(attentions)}")
    for attention in attentions:
        _check(attention, layers)
    for attention, found in zip(attentions, largest, strict=True):
        if found.shape != (attention.geometry.heads,):
            raise ValueError(
                f"scores: got {tuple(found.shape)}; give ({attention.geometry.heads},), the "
                "largest of each head"
            )
        factor = torch.where(found > tau, tau / found, 1.0)
        _scale(attention, factor.to(attention.to_out.weight.device))


def _scale(attention: Attention, factor: Float[Tensor, " h"]) -> None:
    """Scores of each head times ``factor``."""
    config, kv_heads = attention.config, attention.sizes.kv_heads
    grouped = rearrange(factor, "(hk g) -> hk g", hk=kv_heads)
    of_keys = grouped.amax(dim=1).sqrt()
    if config.k_rmsnorm or config.memory_kv:
        of_keys = torch.ones_like(of_keys)
    of_queries = rearrange(grouped / of_keys[:, None], "hk g -> (hk g)")
    queries, keys = _query_key_weights(attention)
    for weights, factors in ((queries, of_queries), (keys, of_keys)):
        sizes = [len(weight) // attention.sizes.dim for weight in weights]
        for weight, part in zip(weights, factors.split(sizes), strict=True):
            rows = rearrange(weight, "(h d) m -> h d m", d=attention.sizes.dim)
            rows.mul_(rearrange(part, "h -> h 1 1").to(weight.dtype))


def _query_key_weights(attention: Attention) -> tuple[list[Tensor], list[Tensor]]:
    """Views of the weights whose rows are the heads' queries, and their keys."""
    projection, widths = attention.projection, attention.sizes.widths
    if isinstance(projection, JointProjection):
        q, k, _ = projection.weight.split(widths)
        return [q], [k]
    if isinstance(projection, CrossProjection):
        return [projection.to_q.weight], [projection.to_kv.weight[: widths[1]]]
    keys = [projection.to_k.weight]
    if projection.to_rotary_k is not None:
        keys.append(projection.to_rotary_k.weight)
    return [projection.to_q.weight], keys


def _check(attention: Attention, layers: Layers) -> None:
    """Refuse what makes clipping meaningless."""
    config, stack = attention.config, layers.config
    cross = attention.geometry.dim_context is not None
    passes_on = stack.cross_residual_attention if cross else stack.residual_attention
    reasons = {
        "qk_rmsnorm": (config.qk_rmsnorm, "norms undo the scale of the weights"),
        "bias": (config.bias, "it scales the weights alone"),
        "cosine (qk_norm)": (config.cosine is not None, "norms undo the scale of the weights"),
        "similarity=l2": (config.similarity == "l2", "its scores are never above 0"),
        "softclamp": (config.softclamp is not None, "it bounds the scores already"),
        "pre_talking_heads": (config.pre_talking_heads, "a score is a mix of several heads"),
        "cope": (config.cope is not None, "positions grow with the queries in their own way"),
        "selective": (config.selective, "a score contains those of another head"),
        "residual_attention": (passes_on, "a score contains those of the layers before"),
        "polar positions": (stack.position.kind == "polar", "scores do not follow the weights"),
    }
    for name, (active, why) in reasons.items():
        if active:
            raise ValueError(f"attn_qk_clip_: has no meaning with {name}: {why}; leave one out")


def _layers(model: nn.Module) -> Layers:
    layers = model if isinstance(model, Layers) else getattr(model, "layers", None)
    if not isinstance(layers, Layers):
        raise ValueError(
            f"model: got {type(model).__name__}; give layers (Decoder, Encoder, …) or a wrapper "
            "with one stack of them"
        )
    return layers


def _numbers(layers: Layers) -> list[int]:
    return [i for i, kind in enumerate(layers.config.kinds) if kind != "f"]


def _attentions(layers: Layers) -> list[Attention]:
    """In the order of the sublayers' numbers."""
    found = []
    for number in _numbers(layers):
        sublayer = layers.sublayers[number]
        assert isinstance(sublayer, Sublayer)
        assert isinstance(sublayer.branch, Attention)
        found.append(sublayer.branch)
    return found
