"""The parts of a model around its stack, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from xtdist.config import ConfigError, PositiveFloat, PositiveInt, Probability, configclass


@configclass
class TableConfig:
    """A further embedding table, for ids that a forward pass is given as ``embed_ids[name]``."""

    name: str
    tokens: PositiveInt


@configclass
class EmbeddingConfig:
    """What tokens become before the stack.

    ``dim``: its width, projected to the model's (1909.11942); null = the model's.
    ``unit``: token and learned position vectors of length one (1910.05895). ``norm``: a LayerNorm
    over everything that is added up. ``gradient``: the share of the gradient that reaches it
    (2105.13290). ``tables``: further tables, as for token types.
    ``deep``: each token also has a factor on each feed-forward's output (RWKV-8).
    ``given``: the token embedding is a module that the caller gives (``token_emb``).
    """

    dim: PositiveInt | None = None
    unit: bool = False
    norm: bool = False
    gradient: PositiveFloat = 1.0
    tables: tuple[TableConfig, ...] = ()
    deep: bool = False
    given: bool = False

    def __post_init__(self) -> None:
        if self.gradient > 1:
            raise ConfigError(f"embedding.gradient: got {self.gradient}; give a share, at most 1")
        names = [table.name for table in self.tables]
        if len(set(names)) < len(names):
            raise ConfigError(f"embedding.tables: got {names}; give each another name")


@configclass
class MemoryTokensConfig:
    """Learned tokens that all others may read (2006.11527): so many before the sequence, or before
    ``every`` so many tokens of it (causal stacks)."""

    tokens: PositiveInt
    every: PositiveInt | None = None


@configclass
class ClsPoolConfig:
    """The output is that of learned tokens before the sequence (1810.04805)."""

    kind: Literal["cls"] = "cls"
    tokens: PositiveInt = 1


@configclass
class MeanPoolConfig:
    """The output is the mean over all real tokens."""

    kind: Literal["mean"] = "mean"


@configclass
class QueriesPoolConfig:
    """So many learned queries of width ``dim`` (null = the model's) read the output by attention
    (1810.00825), through ``depth`` blocks if more than one. The output is theirs in an encoder; in
    a causal stack they stand beside the logits, where a forward pass returns its intermediates."""

    kind: Literal["attention"] = "attention"
    tokens: PositiveInt = 1
    depth: PositiveInt = 1
    dim: PositiveInt | None = None


PoolConfig = Annotated[
    ClsPoolConfig | MeanPoolConfig | QueriesPoolConfig, Field(discriminator="kind")
]


@configclass
class HeadConfig:
    """From hidden states to logits.

    ``output``: logits, or the hidden states (no head). ``dim``: the number of logits, null = one
    for each token. ``heads``: so many heads, each with logits of its own. ``squeeze``: a last axis
    of length one is dropped. ``mixture``: so many softmaxes are mixed (1711.03953), the output is
    log-probabilities. ``sigsoftmax``: log σ(l) is added to the logits l (1805.10829).
    ``next_embedding``: a second head that predicts the next token's embedding.
    ``given``: the head is a module that the caller gives (``to_logits``).
    """

    output: Literal["logits", "hidden"] = "logits"
    dim: PositiveInt | None = None
    heads: PositiveInt = 1
    squeeze: bool = False
    mixture: PositiveInt | None = None
    sigsoftmax: bool = False
    next_embedding: bool = False
    given: bool = False

    @property
    def is_linear(self) -> bool:
        """Whether the logits are one matrix times the hidden states, and nothing else."""
        plain = self.output == "logits" and self.heads == 1 and not self.given
        return plain and not (self.squeeze or self.mixture or self.sigsoftmax)


@configclass
class MupConfig:
    """Maximal update parametrization (2203.03466, table 8): the best learning rate of a narrow
    model is that of a wide one.

    The model of ``base_width``, the same but for ``dim`` and heads in proportion, is what it is
    without this. From there on, with m = dim / base_width: start values of embeddings and head
    stay, logits are divided by m, AdamW's rate of hidden matrices too (Muon's: see
    ``xtdist.optim.groups``) and their weight decay is multiplied by m, so that rate times decay
    stays (2405.13698); scores are scaled by 1/dim_head instead of its root.

    ``base_dim_head``: of a head at that width; null = as here, the width grows by more heads.
    """

    base_width: PositiveInt
    base_dim_head: PositiveInt | None = None


@configclass
class RecyclingConfig:
    """The stack runs several times, its output projected onto its input (AlphaFold 2,
    10.1038/s41586-021-03819-2); only the last pass has gradients. In training the number of passes
    is drawn, 1 … ``max_steps``; otherwise it is ``max_steps``."""

    kind: Literal["recycling"] = "recycling"
    max_steps: PositiveInt = 4


@configclass
class LoopedConfig:
    """The stack runs on its own output, ``max_steps`` times (2510.25741), with a learned gate that
    says after which pass a token may leave. Outside of training, a token's output is that of the
    first pass at which it has left with probability ``exit_threshold``; null = of the last."""

    kind: Literal["looped"] = "looped"
    max_steps: PositiveInt = 4
    exit_threshold: Probability | None = None


LoopConfig = Annotated[RecyclingConfig | LoopedConfig, Field(discriminator="kind")]
