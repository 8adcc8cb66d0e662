"""What a model is given, checked at its outer surface: one clear error, no wrong result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from xtdist.model.config import ModelConfig
from xtdist.model.outputs import ModelInputs
from xtdist.model.run_order import attentions_of
from xtdist.model.stack_checks import check_mems, check_tensors
from xtdist.model.tensors import check_ids, check_shape, check_tensor, seen
from xtdist.nn.position.config import LearnedConfig


def check_tokens(x: Tensor | None, inputs: ModelInputs, config: ModelConfig) -> Tensor:
    """Token ids; none at all where vectors are prepended."""
    check_tensors(x, inputs)
    prepended = inputs.get("prepend_embeds")
    if x is None:
        if prepended is None:
            raise ValueError("x: got None; give token ids (b, n), or prepend_embeds")
        x = torch.empty(len(prepended), 0, dtype=torch.long, device=prepended.device)
    if x.ndim != 2 and not config.embedding.given:
        raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}; give token ids of shape (b, n)")
    if not config.embedding.given:
        x = check_ids(x, config.num_tokens, name="x", what="token ids")
    return x


def check_embedding(x: Tensor, inputs: ModelInputs, config: ModelConfig, *, after: int) -> None:
    """What is added to or put before the embedding of ``x``, which stands behind ``after`` tokens.

    Raises:
        ValueError: a shape, a type, a name or a position that can't be.
    """
    (b, n), dim = x.shape[:2], config.emb_dim
    check_beside(x, inputs, dim=dim)
    given: Any = inputs.get("embed_ids") or {}
    if not isinstance(given, Mapping):
        raise ValueError(f"embed_ids: got {seen(given)}; give a mapping of names to ids (b, n)")
    wanted = {t.name: t for t in config.embedding.tables}
    if given.keys() != wanted.keys():
        raise ValueError(
            f"embed_ids: got {sorted(given)}; the model has the tables {sorted(wanted)} "
            "(embed_num_tokens) and needs ids for each"
        )
    for name, ids in given.items():
        check_shape(ids, name=f"embed_ids[{name!r}]", kind="integer", shapes=[(b, n)])
        check_ids(ids, wanted[name].tokens, name=f"embed_ids[{name!r}]", what="ids")
    pos = inputs.get("pos")
    if pos is not None and pos.is_floating_point():
        if pos.ndim != 3 or pos.shape[1:] != (n, dim) or len(pos) not in (1, b):
            raise ValueError(
                f"pos: got {pos.dtype} {tuple(pos.shape)}; give integer positions (b, n), or "
                f"vectors {(b, n, dim)} instead of the model's own"
            )
    elif isinstance(config.position, LearnedConfig):
        check_learned(pos, after + n, limit=config.max_seq_len, what="tokens")


def check_learned(pos: Tensor | None, length: int, *, limit: int, what: str) -> None:
    """Learned positions, or without them a ``length`` in ``what``, that stay below ``limit``.

    Raises:
        ValueError: otherwise.
    """
    if pos is not None:
        check_ids(pos, limit, name="pos", what="learned positions")
    elif length > limit:
        raise ValueError(f"x: {length} {what}; learned positions end at max_seq_len={limit}")


def check_beside(x: Tensor, inputs: Mapping[str, Any], *, dim: int) -> None:
    """Vectors of ``dim`` that are added to those of ``x`` (b, n, …) or stand before them.

    Raises:
        ValueError: a type or a shape that can't be.
    """
    summed = inputs.get("sum_embeds")
    if summed is not None:
        check_shape(summed, name="sum_embeds", kind="float", shapes=[(*x.shape[:2], dim)])
    embeds, mask = inputs.get("prepend_embeds"), inputs.get("prepend_mask")
    if embeds is None:
        if mask is not None:
            raise ValueError("prepend_mask: given without prepend_embeds")
        return
    shape = (len(x), embeds.shape[1] if embeds.ndim > 1 else 0, dim)
    if embeds.shape != shape or not embeds.is_floating_point():
        raise ValueError(
            f"prepend_embeds: got {seen(embeds)}; give float (b, p, {dim}) with b={len(x)}"
        )
    if mask is not None and (mask.dtype != torch.bool or mask.shape != shape[:2]):
        raise ValueError(
            f"prepend_mask: got {mask.dtype} {tuple(mask.shape)}; give bool {shape[:2]}, True = a "
            "real one"
        )
    if inputs.get("cache") is not None:
        raise ValueError("prepend_embeds: with a cache they are in it already; leave them out")


def check_rows(rows: Any, hidden: Tensor) -> Tensor:
    """``logit_rows`` of the flattened positions of ``hidden`` (b, n, d).

    Raises:
        ValueError: other types, other shapes, or positions that there are not.
    """
    rows = check_tensor(rows, name="logit_rows")
    if rows.ndim != 1:
        raise ValueError(f"logit_rows: got {seen(rows)}; give integers (m,), rows of (b n)")
    count = hidden.shape[0] * hidden.shape[1]
    return check_ids(rows, count, name="logit_rows", what="rows of the flattened (b n)")


def check_memories(inputs: ModelInputs, config: ModelConfig) -> None:
    """One memory for each self attention, all of one size and of the model's width; they may be
    empty, and are none then.

    Raises:
        ValueError: otherwise.
    """
    mems = inputs.get("mems")
    if mems is None:
        return
    check_mems(mems, name="mems", what="(b, m, d)")
    if not mems:
        return
    attentions = attentions_of(config, inputs)
    if len(mems) != attentions:
        raise ValueError(
            f"mems: got {len(mems)}; give one for each of {attentions} self attentions"
        )
    for mem in mems:
        if mem.ndim != 3 or mem.shape != mems[0].shape or mem.shape[2] != config.dim:
            raise ValueError(f"mems: got {tuple(mem.shape)}; give (b, m, {config.dim}) in each")


def check_loop(inputs: ModelInputs, config: ModelConfig) -> None:
    """A number of passes that the model's loop can make, and when tokens leave it.

    Raises:
        ValueError: another number, or one for a loop that the model does not have.
    """
    kind = None if config.loop is None else config.loop.kind
    for name in LOOP:
        value = inputs.get(name)
        if value is None or value is False:
            continue
        wanted = "recycling" if name == "recycle_steps" else "looped"
        if kind != wanted:
            raise ValueError(f"{name}: given to a model that is not {wanted} ({wanted}=True)")
        if name.endswith("steps") and (type(value) is not int or value < 1):
            raise ValueError(f"{name}: got {value!r}; give 1 or more passes, a whole number")
        if name == "looped_inference" and value is not True:
            raise ValueError(f"{name}: got {value!r}; give True or False")
    threshold = inputs.get("looped_exit_prob_threshold")
    if threshold is None:
        return
    number = isinstance(threshold, (int, float)) and not isinstance(threshold, bool)
    if not number or not 0 <= threshold <= 1:
        raise ValueError(
            f"looped_exit_prob_threshold: got {threshold!r}; give a probability from 0 to 1"
        )
    if not inputs.get("looped_inference"):
        raise ValueError(
            "looped_exit_prob_threshold: has no effect without looped_inference=True; give that "
            "too, or leave it out"
        )


LOOP = (
    "recycle_steps",
    "looped_steps",
    "max_looped_steps",
    "looped_inference",
    "looped_exit_prob_threshold",
)
