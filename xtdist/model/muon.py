"""The matrices that the Muon optimizer updates (https://kellerjordan.github.io/posts/muon,
https://arxiv.org/abs/2502.16982)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import Tensor, nn

from xtdist.nn.attention.latent import LatentProjection
from xtdist.nn.attention.module import Attention
from xtdist.nn.attention.projection import CrossProjection, JointProjection
from xtdist.nn.feedforward.config import GLUConfig
from xtdist.nn.feedforward.dense import FeedForward
from xtdist.nn.feedforward.moe import MoE

Role = Literal["query", "key", "value", "out", "out_gate", "latent", "up", "gate", "down"]


class MuonMatrix(NamedTuple):
    """A parameter that holds one or more matrices side by side along ``axis``.

    ``sizes`` and ``roles`` are theirs, in order. With three axes the first numbers experts, each of
    which has matrices of its own. Muon's step makes each matrix orthogonal by itself: of the last
    two axes of each of ``blocks(update)``.
    """

    name: str
    parameter: Tensor
    sizes: tuple[int, ...]
    roles: tuple[Role, ...]
    axis: int = 0

    def blocks(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Views of the matrices in a tensor of the parameter's shape, such as its momentum."""
        return tensor.split(self.sizes, dim=self.axis)


def muon_parameters(model: nn.Module) -> list[MuonMatrix]:
    """The hidden matrices of ``model``: of attention (queries, keys, values, latents, out) and of
    feed-forward layers, experts included.

    Everything else is for AdamW: embeddings and heads, vectors, routers, gates, residual parts.
    Each parameter appears once, however often its layer runs. x-transformers leaves out queries and
    keys; to do so, skip their ``roles``. With them, ``attn_qk_clip_`` bounds their growth
    (2507.20534).
    """
    found: list[MuonMatrix] = []
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        matrices = _matrices(module)
        found += [m._replace(name=prefix + m.name) for m in matrices if m.parameter.requires_grad]
    return found


def _matrices(module: nn.Module) -> Iterator[MuonMatrix]:
    """Those that ``module`` itself declares, named relative to it."""
    if isinstance(module, Attention):
        yield from _projections(module)
        weight, glu = module.to_out.weight, module.config.glu_out
        roles: tuple[Role, ...] = ("out", "out_gate") if glu else ("out",)
        yield _parts("to_out.weight", weight, *roles)
    elif isinstance(module, FeedForward):
        gated = isinstance(module.config, GLUConfig)
        yield _parts(
            "proj_in.weight", module.proj_in.weight, *(("up", "gate") if gated else ("up",))
        )
        yield _parts("proj_out.weight", module.proj_out.weight, "down")
    elif isinstance(module, MoE):
        gated = isinstance(module.config.expert, GLUConfig)
        ups: tuple[Role, ...] = ("up", "gate") if gated else ("up",)
        yield _parts("proj_in", module.proj_in, *ups, axis=2)
        yield _parts("proj_out", module.proj_out, "down", axis=2)


def _projections(attention: Attention) -> Iterator[MuonMatrix]:
    projection, widths = attention.projection, attention.sizes.widths
    if isinstance(projection, JointProjection):
        roles: tuple[Role, ...] = ("query", "key", "value")
        yield MuonMatrix("projection.weight", projection.weight, widths, roles)
        return
    yield _parts("projection.to_q.weight", projection.to_q.weight, "query")
    if isinstance(projection, CrossProjection):
        weight = projection.to_kv.weight
        yield MuonMatrix("projection.to_kv.weight", weight, widths[1:], ("key", "value"))
        return
    assert isinstance(projection, LatentProjection)
    parts: tuple[tuple[str, nn.Linear | None, Role], ...] = (
        ("q_down", projection.q_down, "latent"),
        ("kv_down", projection.kv_down, "latent"),
        ("to_k", projection.to_k, "key"),
        ("to_v", projection.to_v, "value"),
        ("to_rotary_k", projection.to_rotary_k, "key"),
    )
    for name, linear, role in parts:
        if linear is not None:
            yield _parts(f"projection.{name}.weight", linear.weight, role)


def _parts(name: str, weight: Tensor, *roles: Role, axis: int = 0) -> MuonMatrix:
    """Equal parts, one for each role."""
    size = weight.shape[axis] // len(roles)
    return MuonMatrix(name, weight, (size,) * len(roles), roles, axis)
