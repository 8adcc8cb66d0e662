"""What goes into a model beside the tokens, and what comes out beside the logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

from jaxtyping import Bool, Float, Int
from torch import Tensor

from xtdist.model.batch_cache import BatchCache
from xtdist.model.embedding import EmbeddingKeywords
from xtdist.model.inputs import StackKeywords
from xtdist.model.stack import StackOutput
from xtdist.nn.aux import AuxLoss


class LoopKeywords(TypedDict, total=False):
    """How often a stack runs that runs several times.

    recycle_steps, looped_steps: so many passes; max_looped_steps: the same. looped_inference: a
    token leaves at the first pass at which it has left with looped_exit_prob_threshold (0.9).
    """

    recycle_steps: int | None
    looped_steps: int | None
    max_looped_steps: int | None
    looped_inference: bool
    looped_exit_prob_threshold: float


class ModelInputs(StackKeywords, EmbeddingKeywords, LoopKeywords, total=False):
    """Optional inputs of a model's forward pass: those of its embedding, its stack and its loop."""


class Wanted(TypedDict, total=False):
    """What a forward pass gives back beside or instead of logits, in x-transformers' words.

    return_embeddings: hidden states instead of logits; return_logits_and_embeddings: both.
    return_intermediates, return_embeddings_and_intermediates: also ``Intermediates``, which can be
    given as ``cache`` to go on. These also: return_logit_entropies, return_attn_z_loss (with
    attn_z_loss_weight). looped_pred_all_logits: logits of every pass among them (default: in
    training). return_mems: memories for the next segment, cut off from the gradient unless
    detach_mems is false. return_attn: weights of each attention (b, h, i, j).
    return_next_embed_pred: predictions of the next embedding, and the embeddings.
    excise_prepend_embeds: nothing comes out for prepended vectors.
    to_logits_kwargs: for a head that the caller gave.
    """

    return_embeddings: bool
    return_logits_and_embeddings: bool
    return_intermediates: bool
    return_embeddings_and_intermediates: bool
    return_logit_entropies: bool
    return_next_embed_pred: bool
    return_mems: bool
    return_attn: bool
    return_attn_z_loss: bool
    attn_z_loss_weight: float
    detach_mems: bool
    looped_pred_all_logits: bool
    excise_prepend_embeds: bool
    to_logits_kwargs: Mapping[str, Any]


class LogitsAndEmbeddings(NamedTuple):
    """Logits and the normalized hidden states that they were computed from."""

    logits: Float[Tensor, "b n v"]
    embeddings: Float[Tensor, "b n d"]


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Everything below the head.

    hidden: what the head reads: (b, s, d) for s = prepended and own tokens, or pooled (b, [c,] d).
    tokens: (b, s, d), the same unless pooled. initial: what they were before the stack.
    pooled: (b, p, e) what the queries of a pool read of them.
    mask: (b, l) the real ones among all vectors that ran through the stack.
    aux: auxiliary losses. hiddens: the input of each self attention, block_hiddens: the output of
    each block. memory: the outputs of memory tokens. pass_hiddens, exit_logits, exits: of a looped
    stack, for each pass, the logits of leaving after it, and where each token left.
    """

    hidden: Float[Tensor, "b *s d"]
    tokens: Float[Tensor, "b s d"]
    initial: Float[Tensor, "b s e"]
    stack: StackOutput
    pooled: Float[Tensor, "b p e"] | None = None
    mask: Bool[Tensor, "b l"] | None = None
    hiddens: tuple[Float[Tensor, "b s d"], ...] = ()
    block_hiddens: tuple[Float[Tensor, "b s d"], ...] = ()
    memory: Float[Tensor, "b m d"] | None = None
    pass_hiddens: tuple[Float[Tensor, "b s d"], ...] = ()
    exit_logits: tuple[Float[Tensor, "b s 1"], ...] = ()
    exits: Int[Tensor, "b s"] | None = None

    @property
    def aux(self) -> tuple[AuxLoss, ...]:
        """The auxiliary losses of the stack."""
        return self.stack.aux


class AttentionIntermediates(NamedTuple):
    """Of one attention: scores before and weights after the softmax, fp32."""

    layer_type: str
    pre_softmax_attn: Float[Tensor, "b h i j"]
    post_softmax_attn: Float[Tensor, "b h i j"]


@dataclass(kw_only=True)
class Intermediates:
    """What a forward pass computes on the way, by x-transformers' names.

    hiddens: the input of each self attention (of its queries, with qkv_receive_diff_residuals).
    block_hiddens: the output of each block. last_hidden: of the stack. last_layer_hiddens: of the
    tokens, where the output is pooled. logits, logit_entropies: a tuple where there are several
    heads. attn_pooled_tokens: what the queries of attn_pool read; none with a cache, where earlier
    tokens are missing.
    attentions: where asked for (return_attn). aux: auxiliary losses. exit_logits, all_pred_logits:
    for each pass of a looped stack. kv_cache: for going on, or ``no_cache``, why there is none.
    """

    hiddens: Sequence[Float[Tensor, "b s d"]]
    block_hiddens: Sequence[Float[Tensor, "b s d"]]
    last_hidden: Float[Tensor, "b l d"]
    last_layer_hiddens: Float[Tensor, "b s d"]
    initial_embeds: Float[Tensor, "b s e"]
    attn_pooled_tokens: Float[Tensor, "b p e"] | None = None
    aux: tuple[AuxLoss, ...] = ()
    attentions: tuple[AttentionIntermediates, ...] | None = None
    memory_tokens: Float[Tensor, "b m d"] | None = None
    mems: list[Float[Tensor, "b m d"]] | None = None
    logits: Tensor | tuple[Tensor, ...] | None = None
    logit_entropies: Float[Tensor, "b n"] | tuple[Float[Tensor, "b n"], ...] | None = None
    attn_z_loss: Float[Tensor, ""] | None = None
    exit_logits: tuple[Float[Tensor, "b s 1"], ...] = ()
    exit_indices: Int[Tensor, "b s"] | None = None
    all_pred_logits: tuple[Tensor, ...] = ()
    kv_cache: BatchCache | None = None
    no_cache: str = ""

    @property
    def attn_intermediates(self) -> tuple[AttentionIntermediates, ...]:
        """Scores and weights of each attention.

        Raises:
            ValueError: they were not kept.
        """
        if self.attentions is None:
            raise ValueError(
                "attn_intermediates: scores are only kept with return_attn=True; ask for it too"
            )
        return self.attentions

    @property
    def cache_length(self) -> int:
        """Vectors that the cache holds."""
        return 0 if self.kv_cache is None else self.kv_cache.rows
