"""What an objective refuses before it sees a token: ids that there are not, terms of a loss that
the network can't have, documents that can't be kept apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from xtdist.config import ConfigError
from xtdist.config.fields import nearest
from xtdist.model.config import ModelConfig
from xtdist.model.options.resolver import documents_refused
from xtdist.objective.config import (
    RENAMED,
    AutoregressiveConfig,
    NonAutoregressiveConfig,
    ObjectiveConfig,
)

LOOPED = ("looped_loss_threshold_exit", "looped_loss_slope", "looped_exit_loss_weight")


def unknown_keyword(name: str, known: Sequence[str], *, of: type) -> str:
    """What to write instead of ``name``, which is not ``known`` to the wrapper with a config
    ``of`` this type."""
    other = NonAutoregressiveConfig if of is AutoregressiveConfig else AutoregressiveConfig
    theirs = [f.name for f in fields(other)] + (list(RENAMED) if of is AutoregressiveConfig else [])
    if name in theirs:
        return f"it is one of {other.__name__.removesuffix('Config')}Wrapper"
    near = nearest(name, known)
    return f"did you mean {near!r}?" if near else f"known: {', '.join(known)}"


def check_id(name: str, value: object, num_tokens: int) -> None:
    """Refuse what is no id of a token that the network embeds.

    Raises:
        ConfigError: naming ``name`` and the ids that there are.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_tokens:
        raise ConfigError(
            f"{name}: got {value!r}; give one of the ids 0 to {num_tokens - 1} that the network "
            "embeds (num_tokens)"
        )


def check_document_end(model: ModelConfig, document_end: int | None) -> None:
    """Refuse an end of documents that is no token, or a network that can't keep them apart.

    Raises:
        ConfigError: naming ``document_end`` and what is wrong with it.
    """
    if document_end is None:
        return
    check_id("document_end", document_end, model.num_tokens)
    refused = inseparable(model)
    if refused:
        raise ConfigError(
            f"document_end: documents can't be kept apart ({refused}); leave document_end out"
        )


def check_separable(config: ObjectiveConfig, model: ModelConfig, *, documents: str) -> None:
    """Refuse documents that are kept apart (``data.documents``) with a network that can't do that.

    Raises:
        ConfigError: naming the parts of the network that mix them.
    """
    critic = config.token_critic if isinstance(config, NonAutoregressiveConfig) else None
    for name, net in (("model", model), ("objective.token_critic", critic)):
        refused = "" if net is None else inseparable(net)
        if refused:
            raise ConfigError(
                f"data.documents: got {documents}, but {name} can't keep documents apart "
                f"({refused}): change that, or set data.documents to joined"
            )


def inseparable(model: ModelConfig) -> str:
    """Why a network on tokens alone can't keep documents apart; empty if it can."""
    refused = documents_refused(model)
    memory = model.memory_tokens
    if memory is not None and (not model.causal or memory.every is not None):
        beside = "memory tokens: what they read in one document the others read from them"
        return f"{refused}; {beside}" if refused else beside
    return refused


def check_critic_config(config: ObjectiveConfig) -> None:
    """Refuse a critic's config that a run can't build: it gives one number for each token.

    Raises:
        ConfigError: saying what to leave out.
    """
    critic = config.token_critic if isinstance(config, NonAutoregressiveConfig) else None
    if critic is None:
        return
    head = critic.head
    if head.output != "logits" or head.dim not in (None, 1) or head.heads > 1 or head.mixture:
        raise ConfigError(
            "token_critic.head: a critic gives one number for each token: leave the head out"
        )
    if critic.pool:
        raise ConfigError("token_critic.pool: a critic judges each token: leave it out")


def check_mup_objective(config: ObjectiveConfig, model: ModelConfig) -> None:
    """Refuse muP with weights that are not the model's: how they follow its width is not known.

    Raises:
        ConfigError: naming the setting that has some.
    """
    if model.mup is None:
        return
    for name in ("self_cond", "token_critic", "self_token_critic"):
        if getattr(config, name, None):
            raise ConfigError(
                f"model.mup: how the weights of objective.{name} follow the width is not known; "
                "leave out one of the two"
            )


def check_terms(config: ObjectiveConfig, model: ModelConfig, *, critic: bool = False) -> None:
    """Refuse settings of a term of the loss that this network can't have; their defaults say
    nothing. ``critic``: there is one beside those of the config.

    Raises:
        ConfigError: naming the setting and the part that it needs.
    """
    if isinstance(config, AutoregressiveConfig):
        if not model.head.next_embedding:
            _refuse(config, ("next_embed_loss_weight",), "head.next_embedding=True")
        if model.loop is None or model.loop.kind != "looped":
            _refuse(config, LOOPED, "loop.kind=looped")
    elif not (critic or config.self_token_critic or config.token_critic):
        _refuse(config, ("critic_loss_weight",), "a critic (token_critic, self_token_critic)")


def _refuse(
    config: AutoregressiveConfig | NonAutoregressiveConfig, names: tuple[str, ...], needed: str
) -> None:
    usual = {field.name: field.default for field in fields(config)}
    for name in names:
        value = getattr(config, name)
        if value != usual[name]:
            raise ConfigError(
                f"{name}: got {value}, which has no effect: the network lacks {needed}; leave "
                "it out, or give the network that"
            )
