"""Next-vector prediction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.decode.runner import evaluating
from xtdist.model.batch_cache import BatchCache
from xtdist.model.continuous import (
    ContinuousInputs,
    ContinuousTransformerWrapper,
    real_vectors,
)
from xtdist.model.stack_checks import check_tensors
from xtdist.model.tensors import check_shape, check_tensor, seen
from xtdist.nn.aux import AuxLoss
from xtdist.objective.autoregressive_inputs import without_last
from xtdist.objective.base import LossOutput, with_aux

CACHED = {"context", "condition", "in_attn_cond", "layers_execute_order", "repeat_blocks"}
"""Inputs that stay the same while vectors are generated, with a cache too."""
CONSTANT = CACHED | {
    "context_mask",
    "context_pos",
    "mems",
    "mem_masks",
    "prepend_embeds",
    "prepend_mask",
    "self_attn_additional_kv",
    "additional_kv_mask",
}


class GaussianNLL(nn.Module):
    """½ (log σ² + (y − μ)² / σ²) for each number, in fp32; σ² is at least 10⁻⁶."""

    def forward(
        self, prediction: Float[Tensor, "2 b n c"], target: Float[Tensor, "b n c"]
    ) -> Float[Tensor, "b n c"]:
        mean, variance = prediction.float()
        variance = variance.clamp(min=1e-6)
        return 0.5 * (variance.log() + (target.float() - mean).square() / variance)


class ContinuousAutoregressiveWrapper(nn.Module):
    """A causal net trained to predict each vector from those before it.

    The loss of a vector is the mean over its channels: squared error, absolute error
    (``use_l1_loss``), Gaussian likelihood if the net is probabilistic, or ``loss_fn`` (prediction,
    target) ↦ (b, n, c) or (b, n). All vectors of a batch count alike; with
    ``equal_loss_weight_batch`` all sequences do, however long.

    Example:
        >>> loss = ContinuousAutoregressiveWrapper(net)(vectors)  # (b, n, c) → mean loss
    """

    def __init__(
        self,
        net: ContinuousTransformerWrapper,
        *,
        loss_fn: nn.Module | None = None,
        use_l1_loss: bool = False,
        equal_loss_weight_batch: bool = False,
    ) -> None:
        """Raises ConfigError for a net that sees what it should predict, or two losses."""
        super().__init__()
        name, layers = "ContinuousAutoregressiveWrapper", net.layers.config
        if not layers.causal or layers.prefix or net.config.average_pool_embed:
            raise ConfigError(
                f"{name}: needs a causal net with an output for each vector (Decoder, without "
                "average_pool_embed)"
            )
        if use_l1_loss and (loss_fn is not None or net.probabilistic):
            other = "loss_fn" if loss_fn is not None else "probabilistic"
            raise ConfigError(f"{name}: use_l1_loss and {other} both choose the loss; keep one")
        self.net, self.probabilistic = net, net.probabilistic
        self.max_seq_len = net.max_seq_len
        self.equal_loss_weight_batch = equal_loss_weight_batch
        default = nn.L1Loss(reduction="none") if use_l1_loss else nn.MSELoss(reduction="none")
        self.loss_fn = loss_fn or (GaussianNLL() if net.probabilistic else default)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        *,
        rollout_steps: int = 1,
        **inputs: Unpack[ContinuousInputs],
    ) -> Float[Tensor, ""]:
        """Mean loss of x[:, 1:]; 0 where nothing is real.

        ``mask`` (b, n) or ``lens`` say which vectors are real; only those that a real one precedes
        count, one of the same of the ``documents`` (b, n). Other ``inputs`` go to the net, as long
        as ``x`` or without the last vector. ``rollout_steps`` > 1: from a random place in each
        sequence the net continues so many steps by its own predictions, which are compared with
        the truth; sequences that are too short don't count.

        Raises:
            ValueError: types, shapes or numbers that don't fit, or a rollout with padding at the
                left, documents or prepended vectors.
        """
        return self.losses(x, rollout_steps=rollout_steps, **inputs).mean

    def losses(
        self,
        x: Float[Tensor, "b n c"],
        *,
        rollout_steps: int = 1,
        **inputs: Unpack[ContinuousInputs],
    ) -> LossOutput:
        """The same as a sum and a weight: the number of predicted vectors, or of sequences with
        ``equal_loss_weight_batch``."""
        check_tensors(check_tensor(x, name="x"), inputs)
        steps = _whole(rollout_steps, name="rollout_steps", least=1)
        if x.ndim != 3 or x.shape[1] <= steps:
            raise ValueError(
                f"x: got {seen(x)}; give (b, n, channels) with n > rollout_steps={steps}"
            )
        real = real_vectors(x, inputs)
        given = without_last({k: v for k, v in inputs.items() if k != "lens"}, x.shape[1])
        if steps > 1:
            return self._rollout(x, steps, given, inputs.get("lens"))
        if real is not None:
            given["mask"] = real[:, :-1]
        if "seq_start_pos" in given:  # of a row without a real vector it may be n
            given["seq_start_pos"] = given["seq_start_pos"].clamp(max=x.shape[1] - 1)
        target = x[:, 1:]
        counted = None if real is None else real[:, 1:] & real[:, :-1]
        documents = inputs.get("documents")
        if documents is not None:
            check_shape(documents, name="documents", kind="integer", shapes=[tuple(x.shape[:2])])
            same = documents[:, 1:] == documents[:, :-1]
            counted = same if counted is None else counted & same
            given["documents"] = documents[:, :-1]
        out, _ = self.net.run(x[:, :-1], **given)
        prediction = self.net.to_output(out.hidden[:, -target.shape[1] :])
        return self._weighted(prediction, target, counted, out.aux)

    def _weighted(
        self, prediction: Tensor, target: Tensor, counted: Tensor | None, aux: tuple[AuxLoss, ...]
    ) -> LossOutput:
        """The loss of the ``counted`` vectors."""
        _check_channels(prediction, target, name="x")
        loss = self.loss_fn(prediction, target)
        if loss.shape[:2] != target.shape[:2]:
            raise ValueError(
                f"loss_fn: returned {tuple(loss.shape)}; give a loss for each vector or number "
                "(reduction='none')"
            )
        loss = (reduce(loss, "b n c -> b n", "mean") if loss.ndim == 3 else loss).float()
        weights = torch.ones_like(loss) if counted is None else counted.float()
        loss = loss.masked_fill(weights == 0, 0.0)
        weight = weights.sum()
        if self.equal_loss_weight_batch:
            of_row = weights.sum(dim=1, keepdim=True)
            weights, weight = weights / of_row.clamp(min=1), (of_row > 0).float().sum()
        return with_aux((loss * weights).sum(), weight, aux if self.training else ())

    def _rollout(
        self, x: Tensor, steps: int, given: dict[str, Any], lens: Tensor | None
    ) -> LossOutput:
        """Each sequence up to a random place, then ``steps`` predictions; gradients flow through
        all of them."""
        for name in ("mask", "seq_start_pos", "documents", "prepend_embeds"):
            if name in given:
                raise ValueError(f"rollout_steps: can't be combined with {name}; give lens")
        b, n = x.shape[:2]
        lens = torch.full((b,), n, device=x.device) if lens is None else lens
        enough = lens > steps
        places = (torch.rand(b, device=x.device) * (lens - steps)).long().clamp(min=0)
        start = 1 + torch.minimum(places, (lens - steps - 1).clamp(min=0))
        place = torch.arange(n, device=x.device)
        aux: tuple[AuxLoss, ...] = ()
        seen, predictions = x, []
        for step in range(steps):
            at = rearrange(start + step, "b -> b 1 1")
            out, _ = self.net.run(seen[:, :-1], **given)
            aux = (*aux, *out.aux)
            last = out.hidden.gather(1, (at - 1).expand(b, 1, out.hidden.shape[-1]))
            predictions.append(self.net.to_output(last))
            _check_channels(predictions[-1], x, name="x")
            seen = torch.where(
                rearrange(place, "n -> n 1") == at, self._draw(predictions[-1]), seen
            )
        index = rearrange(start, "b -> b 1") + torch.arange(steps, device=x.device)
        target = x.gather(1, repeat(index, "b s -> b s c", c=x.shape[-1]))
        counted = repeat(enough, "b -> b s", s=steps)
        return self._weighted(torch.cat(predictions, dim=-2), target, counted, aux)

    def _draw(
        self, prediction: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b 1 c"]:
        """The next vector: the prediction, or a sample of it where it is a distribution."""
        if not self.probabilistic:
            return prediction
        mean, variance = prediction
        noise = torch.empty_like(mean).normal_(generator=generator)
        return mean + variance.clamp(min=1e-5).sqrt() * temperature * noise

    @torch.no_grad()
    def generate(
        self,
        start_tokens: Float[Tensor, "b n c"] | Float[Tensor, "n c"],
        seq_len: int,
        *,
        temperature: float = 1.0,
        cache_kv: bool = True,
        generator: torch.Generator | None = None,
        **inputs: Unpack[ContinuousInputs],
    ) -> Float[Tensor, "b m c"] | Float[Tensor, "m c"]:
        """``seq_len`` vectors that follow ``start_tokens``; the net is in eval mode meanwhile.

        A probabilistic net draws each from its distribution, with ``temperature`` times its
        standard deviation, from ``generator`` or torch's default one. The net sees the last
        ``max_seq_len`` vectors. Up to there ``cache_kv`` keeps keys and values, which changes
        nothing but the time; beyond, and where the net can't use a cache, all is computed again at
        each step. ``inputs`` are those that stay the same, such as ``context``.

        Raises:
            TypeError: an unknown keyword.
            ValueError: a wrong type, shape or number, an input that new vectors would need too, or
                a temperature for a net that draws nothing.
        """
        seq_len = _whole(seq_len, name="seq_len", least=0)
        self._check_temperature(temperature)
        single = check_tensor(start_tokens, name="start_tokens").ndim == 2
        start = rearrange(start_tokens, "n c -> 1 n c") if single else start_tokens
        if start.ndim != 3 or not start.shape[1]:
            raise ValueError(
                f"start_tokens: got {seen(start_tokens)}; give (b, n, c) or (n, c), n >= 1"
            )
        given = _constant(inputs)
        cached = cache_kv and given.keys() <= CACHED and not self.net.cache_spec().refused
        known = start.shape[1]
        filled = torch.cat((start, start.new_zeros(len(start), seq_len, start.shape[2])), dim=1)
        with evaluating(self.net):
            steps = _Steps(self.net, given, cached=cached)
            for n in range(known, known + seq_len):
                prediction = steps.next(filled[:, :n])
                _check_channels(prediction, start, name="start_tokens")
                filled[:, n : n + 1] = self._draw(prediction, temperature, generator)
        new = filled[:, known:]
        return rearrange(new, "1 m c -> m c") if single else new

    def _check_temperature(self, temperature: Any) -> None:
        number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
        if not number or not 0 <= temperature < math.inf:
            raise ValueError(f"temperature: got {temperature!r}; give a finite number from 0 on")
        if temperature != 1 and not self.probabilistic:
            raise ValueError(
                f"temperature: got {temperature}, but the net predicts vectors and draws none; "
                "leave it out, or build the net with probabilistic=True"
            )


def _whole(value: Any, *, name: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: got {value!r}; give a whole number from {least} on")
    return value


def _check_channels(prediction: Tensor, x: Tensor, *, name: str) -> None:
    """What is predicted can be put behind ``x``."""
    if prediction.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"{name}: vectors of {x.shape[-1]} channels, but the net predicts "
            f"{prediction.shape[-1]}; they must be the same"
        )


def _constant(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a generation: they stay the same for each new vector."""
    for name in sorted(inputs.keys() - ContinuousInputs.__annotations__.keys()):
        raise TypeError(f"generate: unknown keyword {name!r}; known: {', '.join(sorted(CONSTANT))}")
    given = {name: value for name, value in inputs.items() if value is not None}
    check_tensors(None, given)
    refused = sorted(given.keys() - CONSTANT)
    for name in ("condition", "in_attn_cond"):
        for_all = name not in given or given[name].ndim < 3
        if not for_all and not (name == "condition" and given[name].shape[1] == 1):
            refused.append(name)
    for name in refused:
        raise ValueError(
            f"{name}: new vectors have none, so generate can't take it; rows of another length "
            "are generated apart"
        )
    return given


class _Steps:
    """What the net predicts next, with a cache as long as all vectors are seen."""

    def __init__(
        self, net: ContinuousTransformerWrapper, given: Mapping[str, Any], *, cached: bool
    ) -> None:
        self.net, self.given = net, dict(given)
        self.cache = BatchCache(self.given.get("context")) if cached else None

    def next(self, x: Float[Tensor, "b n c"]) -> Tensor:
        """The output for the last of the vectors ``x``."""
        limit = self.net.max_seq_len
        if limit is not None and x.shape[1] > limit:
            x, self.cache = x[:, -limit:], None
        if self.cache is None:
            out, _ = self.net.run(x, **self.given)
        else:
            new = x[:, self.cache.tokens :]
            pos = torch.arange(self.cache.tokens, x.shape[1], device=x.device)
            given = {name: v for name, v in self.given.items() if name != "context"}
            out, _ = self.net.run(new, pos=pos, cache=self.cache, **given)
            self.cache.seen(new.shape[1], new.shape[1])
        return self.net.to_output(out.hidden[:, -1:])
