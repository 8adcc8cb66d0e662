"""What a run can train on sequences that are cut among ranks (``engine.sequence_parallel``).

Everything is refused but what is listed: what is computed for each token alone, and what happens
where a rank has whole sequences. An option that nobody has looked at is in no list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xtdist.config import ConfigError

if TYPE_CHECKING:
    from xtdist.train.spec.run import RunSpec

MODEL = frozenset(
    (
        *("dim", "depth", "heads", "causal", "order", "num_tokens", "max_seq_len", "recompute"),
        *("norm", "norm_position", "branch_norm", "final_norm", "branch_scale", "branch_init"),
        *("integrator", "value_residual", "reinject", "unet_skips", "softclamp", "tie_embedding"),
        *("logit_scale", "emb_dropout", "attn_z_loss_weight", "input_not_include_cache", "mup"),
        *("feedforward=mlp", "feedforward=glu"),
        *("residual=plain", "residual=gru", "residual=hyper", "residual=gated_multi"),
        *("residual=orthogonal.kind", "residual=orthogonal.learned_scale"),
        *("position=polar", "position=learned", "position=sinusoidal", "position=none"),
        *(f"position=rotary.{part}" for part in ("kind", "theta", "dim", "layout", "heads")),
        *(f"position=rotary.{part}" for part in ("interpolation", "theta_rescale", "scaling")),
        *(f"embedding.{part}" for part in ("dim", "unit", "norm", "gradient", "deep")),
        *(f"head.{part}" for part in ("mixture", "sigsoftmax")),
        *(f"attention.{part}" for part in ("dim_head", "value_dim_head", "kv_heads", "backend")),
        *(f"attention.{part}" for part in ("window", "dropout", "dropout_out", "latent")),
        *(f"attention.{part}" for part in ("qk_rmsnorm", "k_rmsnorm", "value_rmsnorm", "cosine")),
        *(f"attention.{part}" for part in ("similarity", "softclamp", "weights", "zero_kv")),
        *(f"attention.{part}" for part in ("sink", "gate", "output_gate", "gate_activation")),
        *(f"attention.{part}" for part in ("gate_heads", "head_scale", "laser", "glu_out")),
        "attention.zero_init_out",
    )
)
"""Of the model, by place; with ``=kind`` where there is a choice of parts."""

OBJECTIVE = frozenset(
    (
        *("kind", "ignore_index", "label_smoothing", "mask_prob", "mask_token_prob"),
        *("schedule", "weight", "no_replace_prob", "random_token_prob", "steps"),
        *("self_cond", "self_cond_train_prob", "can_mask_prev_unmasked"),
    )
)


def check_sequence_parallel(spec: RunSpec) -> None:
    """Refuse what sequences that are cut among ranks can't be trained with.

    Raises:
        ConfigError: naming the setting.
    """
    count = spec.engine.sequence_parallel
    if count == 1:
        return
    _check_sizes(spec, count)
    beside = {
        "engine.reduction: got 'canonical'": spec.engine.reduction == "canonical",
        "batch.micro_batch_tokens: got 'auto'": spec.batch.micro_batch_tokens == "auto",
        f"workers.min_count: got {spec.workers.min_count}": spec.workers.min_count is not None,
    }
    for what, there in beside.items():
        if there:
            raise ConfigError(
                f"{what} with engine.sequence_parallel={count}, which does not have that; leave it "
                "out, or set engine.sequence_parallel=1"
            )
    for name, allowed in (("model", MODEL), ("objective", OBJECTIVE)):
        for place, value in refused(getattr(spec, name), allowed):
            raise ConfigError(
                f"{name}.{place}: got {_shown(value)} with engine.sequence_parallel={count}, but "
                "it is not known to work on slices of sequences (it may read other tokens than "
                "attention does); leave it out, or set engine.sequence_parallel=1"
            )


def _check_sizes(spec: RunSpec, count: int) -> None:
    lengths = {f"batch.seq_len_warmup.{i}": s for i, s in enumerate(spec.batch.seq_len_warmup)}
    sizes = {
        "workers.count": spec.workers.count,
        "model.heads": spec.model.heads,
        "data.seq_len": spec.data.seq_len,
        **{f"{key}.seq_len": stage.seq_len for key, stage in lengths.items()},
    }
    for key, size in sizes.items():
        if size % count:
            raise ConfigError(
                f"engine.sequence_parallel: got {count}, which does not divide {key} ({size}); "
                "give a number that divides both, or change the other"
            )


def refused(config: Any, allowed: frozenset[str], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values in ``config`` that are neither at their defaults nor allowed, by place."""
    for field in dataclasses.fields(config):
        value, place = getattr(config, field.name), before + field.name
        kind = getattr(value, "kind", None)
        named = place if kind is None else f"{place}={kind}"
        if place in allowed or named in allowed:
            continue
        inner = f"{named}."
        if dataclasses.is_dataclass(value) and any(a.startswith(inner) for a in allowed):
            for deeper, found in refused(value, allowed, inner):
                yield deeper.replace(f"={kind}.", ".") if kind else deeper, found
        elif value != field.default:
            yield place, value


def _shown(value: Any) -> str:
    return repr(getattr(value, "kind", value))
