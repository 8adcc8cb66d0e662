"""Asking a masked-prediction model for sequences: what is to be filled in, and with which inputs.

Shapes: b rows, n positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from xtdist.config import ConfigError, derive_seed
from xtdist.decode.fill import mask_predict
from xtdist.decode.maskpredict import MaskPredictParams
from xtdist.model.tensors import check_shape, check_tensor, is_integer, seen
from xtdist.objective.config import NonAutoregressiveConfig
from xtdist.objective.masking import Masking, Tabulated
from xtdist.objective.nonautoregressive_passes import MaskedPasses

OF_ROWS = ("context", "context_mask", "condition")
"""Inputs of the network that ``generate`` takes: one for each row."""
OF_TOKENS = ("documents",)
"""The same, one for each token."""


class FillingPasses(MaskedPasses):
    """What generation asks the passes for."""

    config: NonAutoregressiveConfig
    masking: Masking

    @property
    def filling(self) -> MaskPredictParams:
        """How its masks are filled, as its config says."""
        schedule = self.masking.schedule
        return MaskPredictParams(
            steps=self.config.steps,
            schedule=(
                schedule.fraction if isinstance(schedule, Tabulated) else self.config.schedule
            ),
            order="critic" if self.has_critic else "confidence",
            remask=self.config.can_mask_prev_unmasked,
        )

    def generate(
        self,
        batch_size: int | None = None,
        start_temperature: float = 1.0,
        filter_thres: float | None = 0.7,
        noise_level_scale: float = 1.0,
        *,
        order: Literal["confidence", "critic", "random"] | None = None,
        prompt: Int[Tensor, "b n"] | Int[Tensor, " n"] | None = None,
        seq_len: int | None = None,
        mask: Bool[Tensor, "b n"] | None = None,
        steps: int | None = None,
        seed: int | None = None,
        **inputs: Any,
    ) -> Int[Tensor, "b n"] | Int[Tensor, " n"]:
        """Sequences without masks, (b, n); (n,) without a batch size and rows of a prompt.

        Every step draws all masked tokens and masks again those that the critic, or without one
        the network itself, finds least likely (``xtdist.decode.maskpredict``).

        Args:
            start_temperature: of the draw; falls linearly towards 0.
            filter_thres: the part of the vocabulary that can't be drawn, the least likely tokens.
            noise_level_scale: of the noise on what says which tokens stay (``order``), which falls
                towards 0 too. 0 makes the fewest mistakes, but without a prompt rows are then much
                alike: the first token to stay is the likeliest one anywhere, and decides the rest.
                x-transformers has noise with a critic only: 0 is what it does without one.
            order: which tokens stay: those that the critic finds right (the default with one),
                those that the network is surest of, or random ones, as in training (the most
                different rows; ``noise_level_scale`` then says nothing).
            prompt: ids that stay; ``mask_id`` among them marks places to fill. Masks follow it up
                to ``seq_len`` (default: the prompt's own length; without a prompt max_seq_len).
            mask: True = real position, False = padding.
            steps: default: as the wrapper was built.
            seed: of the draws; None: torch's default generator.
            inputs: of the network: context, context_mask, condition (one for each row), documents.

        Raises:
            TypeError: an input that can't be given.
            ConfigError: values that can't be.
        """
        tokens = to_fill(
            prompt,
            batch_size=batch_size,
            seq_len=seq_len,
            mask_id=self.mask_id,
            longest=self.max_seq_len,
            device=self.device,
        )
        if order == "critic" and not self.has_critic:
            raise ConfigError(
                "order: got 'critic', but there is none; give token_critic or self_token_critic to "
                "the wrapper, or order='confidence' or 'random'"
            )
        params = replace(
            self.filling,
            steps=self.config.steps if steps is None else steps,
            temperature=start_temperature,
            top_k=top_count(filter_thres, self.num_tokens),
            noise=noise_level_scale,
            order=self.filling.order if order is None else order,
            seed=seed,
        )
        filled = fill(self, tokens, params, mask=mask, inputs=inputs)
        single = batch_size is None and (prompt is None or prompt.ndim == 1)
        return rearrange(filled, "1 n -> n") if single else filled


def to_fill(
    prompt: Int[Tensor, "b n"] | Int[Tensor, " n"] | None,
    *,
    batch_size: int | None,
    seq_len: int | None,
    mask_id: int,
    longest: int,
    device: torch.device,
) -> Int[Tensor, "b n"]:
    """The rows whose masks are to be filled: the prompt, and masks behind it up to ``seq_len``.

    Raises:
        ConfigError: sizes that can't be.
        ValueError: a prompt that is no tensor.
    """
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ConfigError(f"{name}: got {value!r:.80}; give a whole number")
    if prompt is None:
        prompt = torch.empty(0, dtype=torch.long)
        seq_len = longest if seq_len is None else seq_len
    if check_tensor(prompt, name="prompt").ndim not in (1, 2) or not is_integer(prompt):
        raise ConfigError(f"prompt: got {seen(prompt)}; give ids (n,) or (b, n)")
    if prompt.ndim == 2 and not len(prompt):
        raise ConfigError(f"prompt: got {seen(prompt)}; give at least one row")
    if prompt.ndim == 2 and batch_size not in (None, len(prompt)):
        raise ConfigError(f"batch_size: got {batch_size}; the prompt has {len(prompt)} rows")
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}; give at least 1")
    rows = prompt if prompt.ndim == 2 else repeat(prompt, "n -> b n", b=batch_size or 1)
    total = rows.shape[1] if seq_len is None else seq_len
    if not max(rows.shape[1], 1) <= total <= longest:
        raise ConfigError(
            f"seq_len: got {total} for a prompt of {rows.shape[1]}; give at least as many and at "
            f"most {longest} (max_seq_len)"
        )
    masks = torch.full((len(rows), total - rows.shape[1]), mask_id, dtype=torch.long)
    return torch.cat((rows.to(device).long(), masks.to(device)), dim=1)


def top_count(filter_thres: float | None, num_tokens: int) -> int:
    """How many of the best tokens are left when that part of the vocabulary is dropped; 0: all.

    Raises:
        ConfigError: not a part.
    """
    if filter_thres is None:
        return 0
    if not 0 <= filter_thres < 1:
        raise ConfigError(f"filter_thres: got {filter_thres}; give 0 <= filter_thres < 1, or None")
    return math.ceil((1 - filter_thres) * num_tokens - 1e-9)


def fill(
    model: MaskedPasses,
    tokens: Int[Tensor, "b n"],
    params: MaskPredictParams,
    *,
    mask: Bool[Tensor, "b n"] | None,
    inputs: Mapping[str, Any],
) -> Int[Tensor, "b n"]:
    """``tokens`` with every mask filled in. With ``inputs``, each row runs alone.

    Raises:
        TypeError: an input that can't be given.
        ConfigError: what ``mask_predict`` refuses.
        ValueError: inputs that are not one for each row or token.
    """
    given = {name: value for name, value in inputs.items() if value is not None}
    unknown = sorted(given.keys() - {*OF_ROWS, *OF_TOKENS})
    if unknown:
        raise TypeError(
            f"generate: unknown keyword {unknown[0]!r}; inputs of the network can be "
            f"{', '.join((*OF_ROWS, *OF_TOKENS))}"
        )
    if not given:
        return mask_predict(model, tokens, params=params, mask=mask)
    shape = tuple(tokens.shape)
    if mask is not None:
        check_shape(mask, name="mask", kind="bool", shapes=[shape], what=", True = a real position")
    for name, value in given.items():
        if name in OF_TOKENS:
            check_shape(value, name=name, kind="integer", shapes=[shape])
        elif check_tensor(value, name=name).shape[:1] != shape[:1]:
            raise ValueError(f"{name}: got {seen(value)}; give one for each of {shape[0]} rows")
    seed = int(torch.randint(2**62, ())) if params.seed is None else params.seed
    out = []
    for i in range(len(tokens)):
        real = torch.ones_like(tokens[i], dtype=torch.bool) if mask is None else mask[i]
        own = {name: value[i : i + 1] for name, value in given.items()}
        own |= {name: own[name][:, real] for name in OF_TOKENS if name in own}
        out.append(
            mask_predict(
                _Given(model, own),
                rearrange(tokens[i], "n -> 1 n"),
                params=replace(params, seed=derive_seed(seed, "row", i)),
                mask=rearrange(real, "n -> 1 n"),
            )
        )
    return torch.cat(out)


class _Given(nn.Module):
    """A denoiser with further inputs, of one row."""

    def __init__(self, model: MaskedPasses, inputs: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self.inputs = model, dict(inputs)
        self.mask_id, self.has_critic = model.mask_id, model.has_critic
        self.num_tokens, self.max_seq_len = model.num_tokens, model.max_seq_len
        self.training = model.training

    @property
    def device(self) -> torch.device:
        return self.model.device

    def denoise(
        self,
        ids: Int[Tensor, "b n"],
        *,
        rows: Int[Tensor, " m"],
        mask: Bool[Tensor, "b n"] | None,
        previous: Float[Tensor, "b n d"] | None,
    ) -> tuple[Float[Tensor, "m v"], Float[Tensor, "b n d"] | None]:
        return self.model.denoise(ids, rows=rows, mask=mask, previous=previous, **self.inputs)

    def criticise(
        self, ids: Int[Tensor, "b n"], *, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b n"] | None:
        return self.model.criticise(ids, mask=mask, **self.inputs)
