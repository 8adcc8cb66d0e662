"""Token ids in, logits out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model.around import Around, given_modules
from xtdist.model.batch_cache import BatchCache, behind
from xtdist.model.caching import cache_spec
from xtdist.model.checks import (
    check_embedding,
    check_loop,
    check_memories,
    check_rows,
    check_tokens,
)
from xtdist.model.compat import model_config
from xtdist.model.config import ModelConfig
from xtdist.model.ending import Ending
from xtdist.model.inputs import StackKeywords, stack_inputs
from xtdist.model.layers import Layers
from xtdist.model.mup import apply_mup
from xtdist.model.options.resolver import resolve
from xtdist.model.outputs import Intermediates, ModelInputs, ModelOutput, Wanted
from xtdist.model.stack_checks import check_tensors
from xtdist.model.surface import answer
from xtdist.nn.attention.cache import CacheSpec, KVCache
from xtdist.nn.linear import initialize


class TransformerWrapper(Around, Ending):
    """Embedding, layers, head. ``build_model`` makes one from a config; this signature is
    x-transformers'. ``config`` describes the model completely either way, but for modules that are
    given (``token_emb``, ``to_logits``): a config with those can't be built again.

    Example:
        >>> net = TransformerWrapper(
        ...     num_tokens=256, max_seq_len=1024, attn_layers=Decoder(dim=512, depth=6, heads=8)
        ... )
        >>> net(torch.randint(0, 256, (1, 1024))).shape
        torch.Size([1, 1024, 256])
    """

    def __init__(
        self,
        *,
        num_tokens: int,
        max_seq_len: int,
        attn_layers: Layers,
        token_emb: nn.Module | None = None,
        to_logits: nn.Module | None = None,
        **keywords: Any,
    ) -> None:
        """Raises TypeError for an unknown keyword, ConfigError for a value that can't be."""
        super().__init__()
        sizes = {"num_tokens": num_tokens, "max_seq_len": max_seq_len}
        if not isinstance(attn_layers, Layers):
            raise TypeError(
                f"TransformerWrapper: attn_layers: got a {type(attn_layers).__name__}; give a "
                "Decoder, an Encoder or another stack"
            )
        config = model_config(attn_layers.config, {**sizes, **keywords})
        config = given_modules(config, token_emb=token_emb, to_logits=to_logits)
        self._assemble(config, attn_layers)
        if token_emb is not None:
            self.token_embedding = token_emb
        if to_logits is not None:
            self.head = to_logits

    @classmethod
    def from_config(cls, config: ModelConfig) -> TransformerWrapper:
        """The model that ``config`` describes, with start values from torch's default generator.

        Raises:
            ConfigError: the config can't be built.
        """
        if config.embedding.given or config.head.given:
            raise ConfigError(
                "embedding.given, head.given: a module that was given as an object can't be built "
                "from a config; use TransformerWrapper(token_emb=…, to_logits=…)"
            )
        model = cls.__new__(cls)
        nn.Module.__init__(model)
        model._assemble(config, Layers(config.layers))
        return model

    def _assemble(self, config: ModelConfig, layers: Layers) -> None:
        if not config.num_tokens or not config.max_seq_len:
            raise ConfigError(
                f"model.num_tokens={config.num_tokens}, model.max_seq_len={config.max_seq_len}: a "
                "model is built with both; give the size of the vocabulary and the longest sequence"
            )
        resolve(config)
        self.config = config
        self.num_tokens, self.max_seq_len = config.num_tokens, config.max_seq_len
        self.build_embedding()
        self.layers = layers
        self.build_head()
        apply_mup(self, config)

    def forward(
        self,
        x: Int[Tensor, "b n"] | None,
        *,
        logit_rows: Int[Tensor, " m"] | None = None,
        cache: KVCache | Intermediates | None = None,
        input_not_include_cache: bool | None = None,
        **keywords: Any,
    ) -> Any:
        """Logits (b, n, v) of token ids ``x``, or what the queries of an encoder with ``attn_pool``
        read, (b, p, e). Further inputs are described in ``ModelInputs``; what else can be given
        back, and then is, in ``Wanted``.

        logit_rows: wanted rows of the flattened (b n) positions; the logits are then (m, v), the
            hidden states of a model without a head (m, d).
        cache: the intermediates of an earlier pass; ``x`` is then the whole sequence again (or,
            with input_not_include_cache, its new tokens alone), and so are the logits those of the
            new tokens. A decode engine gives a store of its own, and ``pos``.

        What comes out can be differentiated once. A gradient of a gradient (``create_graph=True``
        and another backward, as for a gradient penalty) raises RuntimeError, whatever the options:
        fused attention and the linear layers that save memory have no second derivative.
        """
        wanted = cast(Wanted, {k: keywords.pop(k) for k in tuple(keywords) if k in WANTED})
        if logit_rows is not None and (wanted or isinstance(cache, Intermediates)):
            raise ValueError("logit_rows: only without return_… flags; leave one of them out")
        if wanted or isinstance(cache, Intermediates):
            check_tensors(x, keywords)
            new_only = input_not_include_cache
            if new_only is None:
                new_only = self.config.input_not_include_cache
            if cache is not None:
                keywords["cache"] = cache
            return answer(self, x, wanted, cast(ModelInputs, keywords), new_only=new_only)
        out = self.run(x, cache=cache, **keywords)
        hidden = out.hidden if out.pooled is None else out.pooled
        if logit_rows is not None:
            if hidden is not out.hidden or hidden.shape[:2] != out.tokens.shape[:2]:
                raise ValueError(
                    "logit_rows: the output is one for the whole sequence (attn_pool, "
                    "average_pool_embed, use_cls_token); leave them out"
                )
            hidden = rearrange(hidden, "b n d -> (b n) d")[check_rows(logit_rows, hidden)]
        if hidden is out.pooled or self.config.head.output == "hidden":
            return hidden
        return self.to_logits(hidden)

    def hidden(
        self, x: Int[Tensor, "b n"] | None, **inputs: Unpack[ModelInputs]
    ) -> Float[Tensor, "b n d"]:
        """The final hidden states, which ``to_logits`` turns into logits; raises as ``run``."""
        return self.run(x, **inputs).hidden

    def run(
        self,
        x: Int[Tensor, "b n"] | None,
        *,
        keep: bool = False,
        scores: bool = True,
        grown: BatchCache | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> ModelOutput:
        """Everything below the head. ``keep`` adds the hidden states on the way and, with
        ``scores``, the attentions; ``grown`` is a cache of earlier tokens, grown by these.

        Raises:
            ValueError: shapes, types, ids or a length that the model can't take.
        """
        x = check_tokens(x, inputs, self.config)
        check_embedding(x, inputs, self.config, after=0 if grown is None else grown.tokens)
        check_loop(inputs, self.config)
        check_memories(inputs, self.config)
        given = stack_inputs(x, self.config, _of_stack(inputs), keep=keep)
        if keep and not scores:
            given = replace(given, scores=False)
        h, initial = self.embed(x, inputs, given, grown)
        h, given, slots, real = self.place(h, x, inputs, given)
        if grown is not None:
            given = behind(grown, given, h)
        passes = self.passes(h, given, inputs)
        if slots is None and self.config.pool is None and not keep:
            return ModelOutput(
                hidden=self.with_all_parts(passes.hidden),
                tokens=passes.hidden,
                initial=initial,
                stack=passes.stack,
                mask=given.mask,
                pass_hiddens=passes.hiddens,
                exit_logits=passes.exit_logits,
                exits=passes.exits,
            )
        return self.taken(passes, initial=initial, slots=slots, given=given, real=real)

    def cache_spec(self) -> CacheSpec:
        """What a key/value store must hold for each token."""
        spec, loop = cache_spec(self.config), self.config.loop
        if loop is None or loop.kind == "recycling":
            return spec
        return replace(spec, layers=spec.layers * loop.max_steps)


WANTED = frozenset(Wanted.__annotations__)


def _of_stack(inputs: Mapping[str, Any]) -> StackKeywords:
    """The inputs without those of embedding and loop."""
    given = {k: v for k, v in inputs.items() if k not in OF_OTHERS}
    pos = given.get("pos")
    if pos is not None and pos.is_floating_point():
        del given["pos"]
    if given.get("mems") and not any(mem.shape[1] for mem in given["mems"]):
        given.pop("mems")
        given.pop("mem_masks", None)
    return cast(StackKeywords, given)


OF_OTHERS = frozenset(ModelInputs.__annotations__) - frozenset(StackKeywords.__annotations__)


def build_model(
    config: ModelConfig, *, generator: torch.Generator | None = None
) -> TransformerWrapper:
    """The model of ``config`` on the CPU in fp32, its start values drawn from ``generator`` alone
    (torch's default generator without one).

    Raises:
        ConfigError: no vocabulary size, or options that don't work together.
    """
    if not isinstance(config, ModelConfig):
        raise ConfigError(
            f"build_model: got a {type(config).__name__}; give a ModelConfig, as in "
            "build_model(ModelConfig(**fields))"
        )
    if generator is None:
        return TransformerWrapper.from_config(config)
    with torch.device("meta"):
        model = TransformerWrapper.from_config(config)
    model.to_empty(device="cpu")
    initialize(model, generator)
    return model
