"""x-transformers' ways to ask a trained model for text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError, configclass
from xtdist.decode.batch import BatchGenerator, as_rows, like, padded, unpadded
from xtdist.decode.keywords import generation_params, processor_of
from xtdist.decode.outputs import Choice
from xtdist.decode.params import GenerationParams
from xtdist.model import TransformerWrapper

Prompts = Int[Tensor, "b n"] | Int[Tensor, " n"] | Sequence[Int[Tensor, " n"]]


class Generation(nn.Module):
    """``generate`` and ``beam_search``, both by ``xtdist.decode.Engine``: a row costs nothing once
    it has ended, and its tokens do not depend on the others. Every module is in eval mode
    meanwhile, and afterwards in the mode that it was in.

    Differences from x-transformers: an EOS in the prompt ends nothing; a filter also acts under
    contrastive decoding if it is named; the filters of ``GenerationParams`` (``top_p=0.9``) come
    after the temperature, those of ``filter_logits_fn`` before it. A sequence ends at
    ``max_seq_len``; with ``restrict_to_max_seq_len=False`` it goes on where positions do, and every
    token reads all before it. There is no window over the last ``max_seq_len`` tokens, in which a
    cache would give other tokens than none.
    """

    net: TransformerWrapper
    pad_value: int

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompts,
        seq_len: int,
        *,
        eos_token: int | None = None,
        prompt_lens: Int[Tensor, " b"] | None = None,
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        context: Float[Tensor, "b j d"] | None = None,
        context_mask: Bool[Tensor, "b j"] | None = None,
        cache_kv: bool = True,
        restrict_to_max_seq_len: bool = True,
        **keywords: Any,
    ) -> Int[Tensor, "b m"] | Int[Tensor, " m"]:
        """``prompts`` continued by up to ``seq_len`` tokens, which are returned: fewer if every row
        met ``eos_token`` before; after it a row is ``pad_value``.

        prompt_lens: real tokens of each row; the rest is padding at its end. A list may hold
        prompts of different lengths.
        amateur_model: the weaker models of contrastive decoding (2309.09117), or with
        ``draft_tokens`` the first one drafts (2211.17192).
        context, context_mask: what cross attention reads. cache_kv: without, the same tokens,
        slowly. ``keywords``: ``temperature`` (0: the likeliest token) and the other fields of
        ``GenerationParams``, and x-transformers' ``filter_logits_fn`` ("top_k", "top_p", "top_a",
        "min_p", a function (1, v) ↦ (1, v); default "top_k", the best 10 %), ``filter_kwargs``,
        ``contrastive_decode_kwargs``. Without a ``seed``, draws follow torch's default generator.

        Raises:
            TypeError: an unknown keyword, with the nearest one.
            ConfigError: what can't be honoured, like sequences beyond max_seq_len.
        """
        amateurs = bare(amateur_model)
        if seq_len == 0:
            return nothing(prompts, prompt_lens)
        generator = BatchGenerator(
            self.net,
            generation_params(
                seq_len, keywords, num_tokens=self.net.num_tokens, amateurs=len(amateurs)
            ),
            eos_token=eos_token,
            pad_value=self.pad_value,
            amateur=amateurs,
            cached=cache_kv,
            beyond=not restrict_to_max_seq_len,
        )
        contexts = unpadded(context, context_mask)
        return generator(
            prompts, prompt_lens=prompt_lens, contexts=contexts, processor=processor_of(keywords)
        )

    @torch.no_grad()
    def beam_search(
        self,
        prompts: Prompts,
        seq_len: int,
        *,
        beams: int = 4,
        return_beams_and_scores: bool = False,
        eos_token: int | None = None,
        stochastic: bool = False,
        prompt_lens: Int[Tensor, " b"] | None = None,
        amateur_model: nn.Module | Sequence[nn.Module] | None = None,
        context: Float[Tensor, "b j d"] | None = None,
        context_mask: Bool[Tensor, "b j"] | None = None,
        cache_kv: bool = True,
        restrict_to_max_seq_len: bool = True,
        **keywords: Any,
    ) -> Any:
        """The likeliest continuation of each row (b, m) that ``beams`` beams find; with
        return_beams_and_scores all of them (beams, b, m) and their summed log-probabilities
        (beams, b), best first; without b for a single prompt (n,).

        Without ``eos_token`` all have ``seq_len`` tokens. ``length_penalty`` divides the scores by
        length ** length_penalty (default 0). ``stochastic``: beams are drawn without replacement
        (1903.06059), with ``temperature`` and filters. Beams that there are not, where the
        vocabulary is that small, repeat the best. Everything else as for ``generate``.
        """
        amateurs = bare(amateur_model)
        if seq_len == 0:
            none = nothing(prompts, prompt_lens)
            tokens = none.expand(beams, *none.shape)
            return (tokens, tokens.sum(dim=-1).float()) if return_beams_and_scores else none
        generator = BatchGenerator(
            self.net,
            generation_params(
                seq_len,
                beam_keywords(keywords, beams=beams, stochastic=stochastic),
                num_tokens=self.net.num_tokens,
                amateurs=len(amateurs),
                kind=BeamParams,
            ),
            eos_token=eos_token,
            amateur=amateurs,
            cached=cache_kv,
            beyond=not restrict_to_max_seq_len,
        )
        contexts = unpadded(context, context_mask)
        found = generator.complete(
            prompts, prompt_lens=prompt_lens, contexts=contexts, processor=processor_of(keywords)
        )
        best = [choice for k in range(beams) for choice in (c.choices[k] for c in found)]
        flat = padded([choice.token_ids for choice in best], self.pad_value)
        tokens = like(prompts, rearrange(flat, "(k b) m -> k b m", k=beams))
        if not return_beams_and_scores:
            return tokens[0]
        scores = rearrange(
            torch.tensor([score(choice) for choice in best]), "(k b) -> k b 1", k=beams
        )
        return tokens, like(prompts, scores)[..., 0]


def bare(amateurs: nn.Module | Sequence[nn.Module] | None) -> tuple[nn.Module, ...]:
    """The amateurs' networks, one or several, without the wrappers around them."""
    if amateurs is None:
        return ()
    several = amateurs if isinstance(amateurs, Sequence) else (amateurs,)
    for amateur in several:
        if not isinstance(amateur, TransformerWrapper | Generation):
            raise ConfigError(
                f"amateur_model: got a {type(amateur).__name__}; give a TransformerWrapper or an "
                "AutoregressiveWrapper (one that reads an encoder reads this model's), or a tuple"
            )
    return tuple(a.net if isinstance(a, Generation) else a for a in several)


def nothing(prompts: Prompts, prompt_lens: Int[Tensor, " b"] | None) -> Tensor:
    """No tokens for each of the prompts."""
    rows = as_rows(prompts, prompt_lens)
    return like(prompts, torch.zeros(len(rows), 0, dtype=torch.long))


def beam_keywords(keywords: Mapping[str, Any], *, beams: int, stochastic: bool) -> dict[str, Any]:
    """Those of ``beam_search`` as those of ``generate``.

    Raises:
        TypeError: a keyword that has another name in ``beam_search``.
        ConfigError: a number of beams that can't be.
    """
    if isinstance(beams, bool) or not isinstance(beams, int) or beams < 1:
        raise ConfigError(f"beams: got {beams!r}; give a whole number from 1 on")
    for name, other in (("num_beams", "beams"), ("n", "beams"), ("stochastic_beams", "stochastic")):
        if name in keywords:
            raise TypeError(f"beam_search: {name!r} is called {other!r} here")
    given: dict[str, Any] = {"filter_logits_fn": None, **keywords}
    if not stochastic:
        given.setdefault("length_penalty", 0.0)
    return {**given, "n": beams, "num_beams": beams, "stochastic_beams": stochastic}


@configclass
class BeamParams(GenerationParams):
    """Of a beam search: one beam, too, has the scores and the rules of several."""

    @property
    def uses_beams(self) -> bool:
        return True


def score(choice: Choice) -> float:
    """Its sum of log-probabilities; without any hypothesis, none is worse."""
    return -math.inf if choice.score is None else choice.score
