"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Unpack

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from xtdist.config import ConfigError, from_mapping
from xtdist.model import ModelInputs, TransformerWrapper
from xtdist.model.around import within_documents
from xtdist.model.outputs import Intermediates, ModelOutput
from xtdist.model.surface import attention_z_loss, kept
from xtdist.model.tensors import check_shape, check_tensor, seen
from xtdist.nn.aux import AuxLoss
from xtdist.objective.autoregressive_inputs import (
    behind,
    documents_by_end,
    indices,
    real_tokens,
    without_last,
)
from xtdist.objective.autoregressive_noise import with_hidden
from xtdist.objective.autoregressive_terms import looped_loss, next_embedding_loss
from xtdist.objective.base import (
    LossOutput,
    Objective,
    Prepared,
    check_targets,
    check_trainable,
    cross_entropies,
    with_aux,
)
from xtdist.objective.checks import check_document_end, check_id, check_terms, unknown_keyword
from xtdist.objective.config import AutoregressiveConfig
from xtdist.objective.generation import Generation

KEYWORDS = tuple(f.name for f in fields(AutoregressiveConfig) if f.name != "kind")
Outputs = tuple[Float[Tensor, "b n v"], Intermediates]


class AutoregressiveWrapper(Generation, Objective):
    """A decoder trained to predict each token from those before it.

    Targets equal to ``ignore_index`` don't count; where they are inputs, the network sees
    ``pad_value``. A prefix decoder's ``prefix_attn_len`` first tokens, which see each other, don't
    count either (1910.10683). The last token is only a target: it costs no forward pass, and
    sequences may have max_seq_len + 1 tokens. In eval mode the loss is cross-entropy alone:
    smoothing, hidden tokens and auxiliary losses belong to training.

    Args:
        mask_id: the token that replaces others with ``mask_token_prob``.
        document_end: the last token of each document. Tokens then read only those of their own, and
            the first token of a document is no target; without it, or ``documents`` given with a
            batch, a sequence is one text.
        config: or its fields as keywords, which are x-transformers' where it has them.

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: a network that sees what it should predict, or values that can't be.

    Example:
        >>> loss = AutoregressiveWrapper(net)(tokens)  # tokens (b, n) → mean loss, nats per token
    """

    def __init__(
        self,
        net: TransformerWrapper,
        *,
        pad_value: int = 0,
        mask_id: int | None = None,
        document_end: int | None = None,
        config: AutoregressiveConfig | None = None,
        **keywords: Any,
    ) -> None:
        check_trainable(net.config, causal=True, name="AutoregressiveWrapper")
        super().__init__(net)
        if config is not None and keywords:
            raise ConfigError(f"config: it says all; leave out {', '.join(sorted(keywords))}")
        self.config = _keyword_config(keywords) if config is None else config
        self.ignore_index, self.pad_value = self.config.ignore_index, pad_value
        self.mask_id, self.document_end = mask_id, document_end
        self.max_seq_len = net.max_seq_len
        self._check()

    def forward(
        self,
        x: Int[Tensor, "b n"],
        *,
        return_outputs: bool = False,
        lens: Int[Tensor, " b"] | None = None,
        **inputs: Unpack[ModelInputs],
    ) -> Float[Tensor, ""] | tuple[Float[Tensor, ""], Outputs]:
        """Mean cross-entropy (nats) of x[:, 1:]; 0 where every target is ignored.

        lens: real tokens in each row; what follows is ignored. ``inputs`` go to the network, as
        long as ``x`` or without the last token: ``prepend_embeds`` predict nothing, and nothing
        counts from or to padding (``mask``, ``seq_start_pos``), nor from one of the ``documents``
        (as long as ``x``) to another.

        return_outputs: also the logits (b, n − 1, v) and what was computed on the way, with a cache
        of the n − 1 tokens if the model is in eval mode.
        """
        documents = inputs.pop("documents", None)
        real = None
        if check_tensor(x, name="x").ndim == 2:
            real = real_tokens(x, inputs, lens)
            x = indices(x)
            x = x if real is None else x.masked_fill(~real, self.ignore_index)
        seed = int(torch.randint(2**62, ())) if self._draws else 0
        prepared = self.prepare(
            x, seed=seed, sample_ids=torch.arange(len(x), device=x.device), documents=documents
        )
        if real is not None:
            prepared = prepared.only(real[:, :-1])
        prefix = inputs.get("prefix_attn_len")
        if prefix is not None:
            prepared = prepared.only(behind(prefix, prepared.targets))
        given = without_last(inputs, x.shape[1])
        prepend_embeds = inputs.get("prepend_embeds")
        ahead = 0 if prepend_embeds is None else prepend_embeds.shape[1]
        if not return_outputs:
            return self._losses(prepared, self._run(prepared, given), ahead=ahead).mean
        given = self._given(prepared, given)
        out, found = kept(self.net, prepared.inputs, given, scores=self._wants_scores)
        found.logits = logits = self.net.to_logits(out.hidden[:, ahead:])
        return self._losses(prepared, out, ahead=ahead).mean, (logits, found)

    def prepare(
        self,
        tokens: Int[Tensor, "b n+1"],
        *,
        seed: int,
        sample_ids: Int[Tensor, " b"],
        documents: Int[Tensor, "b n+1"] | None = None,
    ) -> Prepared:
        """Inputs tokens[:, :-1], targets tokens[:, 1:]; in training, which tokens are hidden.

        documents: numbers, as long as the tokens. The first token of a document is no target; a
            negative number, different for each token, is padding.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise ValueError(f"tokens: got {seen(tokens)}; give ids (b, n) with n >= 2")
        tokens = indices(tokens)
        real = tokens != self.ignore_index
        filled = tokens.masked_fill(~real, self.pad_value)
        counted, mask = real[:, 1:], None
        if documents is None and self.document_end is not None:
            documents = documents_by_end(tokens, self.document_end)
        if documents is not None:
            what = ", as long as the tokens: the last one's says whether it is a target"
            shapes = [tuple(tokens.shape)]
            check_shape(documents, name="documents", kind="integer", shapes=shapes, what=what)
            real = real & (documents >= 0)
            counted = real[:, 1:] & (documents[:, 1:] == documents[:, :-1])
            documents = documents[:, :-1]
            mask = None if bool((documents >= 0).all()) else documents >= 0
        targets = tokens[:, 1:].masked_fill(~counted, 0)  # what does not count may be any id
        check_targets(self.net, targets)
        weights = counted.float()
        prepared = Prepared(
            inputs=filled[:, :-1],
            targets=targets,
            weights=weights,
            counts=weights.sum(dim=1),
            sample_ids=sample_ids,
            mask=mask,
            documents=documents,
        )
        if not self._draws:
            return prepared
        return with_hidden(prepared, real[:, :-1], self.config, mask_id=self.mask_id, seed=seed)

    def losses(self, prepared: Prepared) -> LossOutput:
        """Σ cross-entropy over the targets, weight = number of targets."""
        return self._losses(prepared, self._run(prepared, {}))

    @property
    def _draws(self) -> bool:
        """Whether there is noise to draw."""
        return self.training and bool(self.config.mask_prob or self.config.mask_token_prob)

    @property
    def _wants_scores(self) -> bool:
        return self.training and self.config.add_attn_z_loss

    def _given(self, prepared: Prepared, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The network's inputs with what was prepared."""
        given = dict(inputs)
        for name, own in (("mask", prepared.mask), ("self_attn_kv_mask", prepared.keys)):
            if own is not None:
                other = given.get(name)
                given[name] = own if other is None else own & other
        if prepared.positions is not None:
            given["pos"] = prepared.positions
        if prepared.documents is not None:
            given["documents"] = prepared.documents
            if self.net.config.memory_tokens is not None and given.get("pos") is None:
                # All documents are as far from the memory as the first one.
                given["pos"] = within_documents(prepared.documents, inputs.get("seq_start_pos"))
        return given

    def _run(self, prepared: Prepared, inputs: Mapping[str, Any]) -> ModelOutput:
        given, scores = self._given(prepared, inputs), self._wants_scores
        return self.net.run(prepared.inputs, keep=scores, scores=scores, **given)

    def _losses(self, prepared: Prepared, out: ModelOutput, *, ahead: int = 0) -> LossOutput:
        """``ahead``: prepended vectors, which predict nothing."""
        config, net = self.config, self.net
        aux = [*out.aux] if self.training else []
        hidden = out.hidden[:, ahead:]
        if self.training and out.exit_logits and out.exits is None:
            passes = [h[:, ahead:] for h in out.pass_hiddens[:-1]]
            gate = [logits[:, ahead:] for logits in out.exit_logits]
            total, of_gate = looped_loss(net, [*passes, hidden], gate, prepared, config)
            aux.append(of_gate)
        else:
            total = cross_entropies(
                net,
                rearrange(hidden, "b n d -> (b n) d"),
                prepared.targets.flatten(),
                prepared.weights.flatten(),
                smoothing=config.label_smoothing if self.training else 0.0,
            )
        scale = config.next_embed_loss_weight
        if self.training and net.next_embedding is not None and scale:
            initial = out.initial[:, ahead:]
            aux.append(next_embedding_loss(net, hidden, initial, prepared, scale=scale))
        if self._wants_scores:
            loss = attention_z_loss(out.stack.attentions, out.mask)
            weight = net.config.attn_z_loss_weight
            aux.append(AuxLoss("attention_z", loss, torch.ones_like(loss), weight))
        return with_aux(total, prepared.weight, aux)

    def _check(self) -> None:
        config, net = self.config, self.net
        check_id("pad_value", self.pad_value, net.num_tokens)
        if self.mask_id is not None:
            check_id("mask_id", self.mask_id, net.num_tokens)
        elif config.mask_token_prob:
            raise ConfigError(
                f"mask_id: got None; mask_token_prob={config.mask_token_prob} needs the token to "
                f"put in, one of the ids 0 to {net.num_tokens - 1} that the network embeds"
            )
        check_document_end(net.config, self.document_end)
        check_terms(config, net.config)


def _keyword_config(keywords: Mapping[str, Any]) -> AutoregressiveConfig:
    for keyword in keywords:
        if keyword not in KEYWORDS:
            hint = unknown_keyword(keyword, KEYWORDS, of=AutoregressiveConfig)
            raise TypeError(f"AutoregressiveWrapper: unknown keyword {keyword!r}; {hint}")
    return from_mapping(AutoregressiveConfig, keywords, where="AutoregressiveWrapper")
