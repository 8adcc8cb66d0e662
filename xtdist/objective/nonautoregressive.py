"""Prediction of masked tokens: masked diffusion language models, https://arxiv.org/abs/2406.07524."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from xtdist.config import ConfigError, derive_seed
from xtdist.decode.noise import noise_key
from xtdist.model import TransformerWrapper
from xtdist.model.tensors import check_shape, check_tensor, is_integer, seen
from xtdist.nn.aux import AuxLoss
from xtdist.nn.linear import Linear
from xtdist.objective.autoregressive_inputs import documents_by_end, indices, real_tokens
from xtdist.objective.base import (
    LossOutput,
    Prepared,
    check_targets,
    check_trainable,
    cross_entropies,
)
from xtdist.objective.checks import check_document_end, check_id, check_terms
from xtdist.objective.config import NonAutoregressiveConfig
from xtdist.objective.critic import check_critics, critic_loss, drawn_tokens, position_keys
from xtdist.objective.filling import FillingPasses
from xtdist.objective.masking import (
    Masking,
    ScheduleFunction,
    schedule_of,
    uniform,
)
from xtdist.objective.nonautoregressive_keywords import keyword_config
from xtdist.objective.nonautoregressive_passes import (
    Losses,
    MaskedTokens,
    Terms,
    given_with,
)
from xtdist.objective.self_conditioning import SelfConditioning

Trained = Literal["both", "generator", "critic"]


class NonAutoregressiveWrapper(FillingPasses):
    """An encoder trained to restore masked tokens, and perhaps to tell which of them it got wrong.

    Give a ``config``, or its fields and x-transformers' keywords, with x-transformers' defaults:
    ``no_replace_prob=0.15`` and ``random_token_prob=0.1``, with which the loss in training is no
    bound; a config has 0 for both. Positions that hold ``ignore_index`` are padding: never masked,
    never counted, never attended to.

    Args:
        mask_id: the token that stands for a masked one.
        config: all numbers and names at once, instead of keywords.
        schedule: linear, cosine, or a function of a tensor of times in [0, 1] that gives the masked
            fractions (``config.schedule`` then stands for nothing).
        token_critic: a network with logits_dim=1 that judges tokens.
        document_end: the last token of each document; tokens then read only tokens of their own.
            Without it, or ``documents`` given with a batch, a sequence is one text.

    Raises:
        TypeError: an unknown keyword, with the nearest one.
        ConfigError: values that can't be, alone or together.

    Example:
        >>> wrapper = NonAutoregressiveWrapper(net, mask_id=255, self_cond=True)
        >>> wrapper(tokens).loss.backward()  # tokens (b, n) of any length up to max_seq_len
    """

    def __init__(
        self,
        net: TransformerWrapper,
        *,
        mask_id: int,
        pad_id: int = 0,
        config: NonAutoregressiveConfig | None = None,
        schedule: str | ScheduleFunction | None = None,
        token_critic: TransformerWrapper | None = None,
        document_end: int | None = None,
        **keywords: Any,
    ) -> None:
        _check_net(net, mask_id)
        super().__init__(net)
        if isinstance(schedule, str):
            keywords["schedule"] = schedule
        if config is not None and keywords:
            raise ConfigError(f"config: it says all; leave out {', '.join(sorted(keywords))}")
        self.mask_id, self.pad_id, self.document_end = mask_id, pad_id, document_end
        self.config = config = keyword_config(keywords) if config is None else config
        self.masking = Masking(
            config=config,
            schedule=schedule_of(
                config.schedule if schedule is None or isinstance(schedule, str) else schedule,
                longest=net.max_seq_len,
                weighted=config.weight == "elbo",
            ),
            mask_id=mask_id,
            num_tokens=net.num_tokens,
        )
        check_critics(config, token_critic, net)
        check_id("pad_id", pad_id, net.num_tokens)
        check_document_end(net.config, document_end)
        check_terms(config, net.config, critic=token_critic is not None)
        dim = net.config.dim
        self.self_conditioning = (
            SelfConditioning(dim, net.config.emb_dim) if config.self_cond else None
        )
        self.token_critic = token_critic
        self.critic_head = Linear(dim, 1, bias=True) if config.self_token_critic else None

    def forward(
        self,
        x: Int[Tensor, "b n"],
        only_train_generator: bool = False,
        only_train_critic: bool = False,
        generator_sample_temperature: float | None = None,
        *,
        mask: Bool[Tensor, "b n"] | None = None,
        documents: Int[Tensor, "b n"] | None = None,
        generator: torch.Generator | None = None,
        **inputs: Any,
    ) -> Losses:
        """Mean losses of token ids ``x`` of any length up to max_seq_len.

        only_train_generator, only_train_critic: the other part's loss is not computed, and its
        parameters get no gradient. generator_sample_temperature: of the tokens that the critic
        judges; None: drawn from [0, 1) for each row. mask: True = real token. documents: tokens see
        only those of their own number. generator: where the noise comes from (torch's default one
        without it). ``inputs`` go to the network; a separate critic gets those that concern it too.

        Raises:
            ValueError: parts that exclude each other, or that there are not; ids, masks or
                documents of other types, shapes or values.
        """
        trained = self._trained(only_train_generator, only_train_critic)
        temperature = generator_sample_temperature
        if temperature is not None and not (temperature >= 0 and math.isfinite(temperature)):
            raise ValueError(f"generator_sample_temperature: got {temperature}; give 0 or more")
        self._check_rows(x, name="x")
        real = real_tokens(x, {**inputs, "mask": mask}, None, whole=True)
        x = indices(x)
        x = x if real is None else x.masked_fill(~real, self.config.ignore_index)
        device = None if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        ids = torch.arange(len(x))
        rows = self._prepare_rows(x, seed=seed, sample_ids=ids, documents=documents)
        if temperature is not None and rows.critic_temperature is not None:
            rows = replace(
                rows, critic_temperature=torch.full_like(rows.critic_temperature, temperature)
            )
        return self._terms(rows.to(x.device), inputs, trained).means()

    def prepare(
        self,
        tokens: Int[Tensor, "b n+1"],
        *,
        seed: int,
        sample_ids: Int[Tensor, " b"],
        documents: Int[Tensor, "b n+1"] | None = None,
    ) -> MaskedTokens:
        """Mask tokens[:, :-1] (the last one is only there because windows overlap by one). Outside
        of training only masks stand in place of tokens, and all rows are self-conditioned.

        documents: numbers, as long as the tokens; a negative one, different for each token, is
            padding: never masked, never counted, never attended to.
        """
        if documents is not None:
            check_shape(documents, name="documents", kind="integer", shapes=[tuple(tokens.shape)])
            documents = documents[:, :-1]
        return self._prepare_rows(
            tokens[:, :-1], seed=seed, sample_ids=sample_ids, documents=documents
        )

    def losses(self, prepared: Prepared) -> LossOutput:
        """Σ weighted cross-entropy over masked tokens, weight = number of real tokens (with weight
        ``none``: of masked ones); in training also that of the critic. Only masked positions get
        logits."""
        assert isinstance(prepared, MaskedTokens)
        both = self.training and self.has_critic
        return self._terms(prepared, {}, "both" if both else "generator").output()

    def _trained(self, only_generator: bool, only_critic: bool) -> Trained:
        if only_generator and only_critic:
            raise ValueError(
                "only_train_generator, only_train_critic: nothing is left; leave one out"
            )
        if only_critic and not self.has_critic:
            raise ValueError(
                "only_train_critic: there is none; give token_critic or self_token_critic"
            )
        if only_critic:
            return "critic"
        return "both" if self.has_critic and not only_generator else "generator"

    def _terms(self, prepared: MaskedTokens, inputs: Mapping[str, Any], trained: Trained) -> Terms:
        places = prepared.weights.flatten().nonzero()[:, 0]
        generator: Tensor | None = None
        aux: tuple[AuxLoss, ...] = ()
        with torch.no_grad() if trained == "critic" else nullcontext():
            out = self._encoded(prepared, inputs)
            hidden = out.hidden[:, -prepared.inputs.shape[1] :]
            hidden = rearrange(hidden, "b n d -> (b n) d")[places]
        if trained != "critic":
            targets, weights = prepared.targets.flatten()[places], prepared.weights.flatten()
            generator = cross_entropies(self.net, hidden, targets, weights[places])
            aux = out.aux
        critic = None
        if trained != "generator":
            seen = self._filled(prepared, hidden, places)
            given = given_with(prepared, inputs)
            judged, of_critic = self._judged(seen, given, only_head=trained == "critic")
            critic = critic_loss(
                judged, seen, prepared.targets, counts=prepared.counts, mask=prepared.mask
            )
            aux = (*aux, *of_critic)
        return Terms(
            weight=prepared.weight,
            generator=generator,
            critic=critic,
            critic_weight=self.config.critic_loss_weight,
            aux=aux if self.training else (),
        )

    def _filled(self, prepared: MaskedTokens, hidden: Tensor, places: Tensor) -> Tensor:
        """What the critic sees: the masked tokens drawn from what the network predicts, the others
        as they are."""
        assert prepared.critic_keys is not None
        assert prepared.critic_temperature is not None
        n = prepared.inputs.shape[1]
        drawn = drawn_tokens(
            self.net,
            hidden,
            position_keys(prepared.critic_keys, places, n),
            prepared.critic_temperature[places // n],
            banned=self.mask_id,
        )
        flat = prepared.targets.flatten().index_copy(0, places, drawn)
        return rearrange(flat, "(b n) -> b n", n=n)

    def _prepare_rows(
        self,
        tokens: Int[Tensor, "b n"],
        *,
        seed: int,
        sample_ids: Int[Tensor, " b"],
        documents: Int[Tensor, "b n"] | None = None,
    ) -> MaskedTokens:
        self._check_rows(tokens, name="tokens")
        if documents is not None:
            shapes = [tuple(tokens.shape)]
            check_shape(documents, name="documents", kind="integer", shapes=shapes)
        tokens = indices(tokens).cpu()
        if documents is None and self.document_end is not None:
            documents = documents_by_end(tokens, self.document_end)
        real = tokens != self.config.ignore_index
        if documents is not None:
            documents = documents.cpu()
            real = real & (documents >= 0)
        targets = tokens.masked_fill(~real, self.pad_id)
        check_targets(self.net, tokens.masked_fill(~real, 0))
        drawn = [
            self.masking.draw(
                row,
                is_real,
                torch.Generator().manual_seed(derive_seed(seed, "nonautoregressive", int(i))),
                augment=self.training,
            )
            for row, is_real, i in zip(targets, real, sample_ids, strict=True)
        ]
        weights = torch.stack([weight for _, weight in drawn])
        counted = real if self.config.weight == "elbo" else weights > 0
        return MaskedTokens(
            inputs=torch.stack([row for row, _ in drawn]),
            targets=targets,
            weights=weights,
            counts=counted.sum(dim=1).float(),
            sample_ids=sample_ids,
            mask=None if bool(real.all()) else real,
            documents=documents,
            **self._further_noise(seed, sample_ids),
        )

    def _check_rows(self, tokens: Any, *, name: str) -> None:
        """Ids of sequences for which the loss is one: beyond max_seq_len a schedule may have masked
        fractions out of reach."""
        shape = check_tensor(tokens, name=name).shape
        if len(shape) != 2 or 0 in shape or shape[1] > self.max_seq_len or not is_integer(tokens):
            raise ValueError(
                f"{name}: got {seen(tokens)}; give ids (b, n) with b >= 1 and n from 1 to "
                f"{self.max_seq_len} (max_seq_len)"
            )

    def _further_noise(self, seed: int, sample_ids: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """What self-conditioning and the critic draw for each row."""
        noise: dict[str, Tensor] = {}
        ids = [int(i) for i in sample_ids]
        if self.config.self_cond:
            seen = self.config.self_cond_train_prob if self.training else 1.0
            noise["conditioned"] = uniform(seed, "self-conditioning", ids) < seen
        if self.has_critic:
            keys = [noise_key(seed, "critic", i) for i in ids]
            noise["critic_keys"] = torch.tensor(keys, dtype=torch.int32).view(len(ids), 2)
            noise["critic_temperature"] = uniform(seed, "critic's temperature", ids)
        return noise


def _check_net(net: TransformerWrapper, mask_id: int) -> None:
    check_trainable(net.config, causal=False, name="NonAutoregressiveWrapper")
    check_id("mask_id", mask_id, net.num_tokens)
