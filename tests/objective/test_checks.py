"""What the wrappers refuse when they are built."""

from __future__ import annotations

import re
from typing import Any

import pytest
from nets import VOCABULARY, make_net

from xtdist.config import ConfigError, from_mapping
from xtdist.objective import AutoregressiveWrapper, NonAutoregressiveWrapper
from xtdist.objective.config import AutoregressiveConfig, NonAutoregressiveConfig

MASK = VOCABULARY - 1


def autoregressive(**keywords: Any) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(make_net(causal=True), **keywords)


def nonautoregressive(**keywords: Any) -> NonAutoregressiveWrapper:
    return NonAutoregressiveWrapper(make_net(causal=False), mask_id=MASK, **keywords)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (autoregressive, AutoregressiveConfig()),
        (nonautoregressive, NonAutoregressiveConfig()),
    ],
)
@pytest.mark.parametrize("keywords", [{"ignore_index": -1}, {"label_smothing": 2}])
def test_a_config_leaves_nothing_to_keywords(make: Any, config: Any, keywords: Any) -> None:
    with pytest.raises(ConfigError, match=f"it says all; leave out {next(iter(keywords))}"):
        make(config=config, **keywords)


@pytest.mark.parametrize("value", [-1, VOCABULARY, 333, "a", 1.0, True])
def test_ids_that_the_network_does_not_embed_are_refused(value: Any) -> None:
    said = re.escape(f"got {value!r}; give one of the ids 0 to 19")
    with pytest.raises(ConfigError, match=f"pad_value: {said}"):
        autoregressive(pad_value=value)
    with pytest.raises(ConfigError, match=f"mask_id: {said}"):
        autoregressive(mask_id=value)
    with pytest.raises(ConfigError, match=f"pad_id: {said}"):
        nonautoregressive(pad_id=value)
    with pytest.raises(ConfigError, match=f"mask_id: {said}"):
        NonAutoregressiveWrapper(make_net(causal=False), mask_id=value)
    with pytest.raises(ConfigError, match=f"document_end: {said}"):
        autoregressive(document_end=value)
    with pytest.raises(ConfigError, match=f"document_end: {said}"):
        nonautoregressive(document_end=value)


LOOPED = {"loop": {"kind": "looped", "max_steps": 2}, "norm_position": "pre_and_post"}


@pytest.mark.parametrize(
    ("keywords", "net", "needed"),
    [
        ({"next_embed_loss_weight": 1.0}, {"head": {"next_embedding": True}}, "next_embedding"),
        ({"looped_exit_loss_weight": 5.0}, LOOPED, "loop.kind=looped"),
        ({"looped_loss_slope": 5.0}, LOOPED, "loop.kind=looped"),
        ({"looped_loss_threshold_exit": 0.5}, LOOPED, "loop.kind=looped"),
    ],
)
def test_terms_that_the_network_can_not_have_are_refused(
    keywords: Any, net: Any, needed: str
) -> None:
    (name, value) = next(iter(keywords.items()))
    with pytest.raises(ConfigError, match=f"{name}: got {value}, .* the network lacks .*{needed}"):
        autoregressive(**keywords)
    AutoregressiveWrapper(make_net(causal=True, **net), **keywords)
    usual = getattr(AutoregressiveConfig(), name)
    autoregressive(**{name: usual})


def test_the_weight_of_a_critic_needs_a_critic() -> None:
    with pytest.raises(ConfigError, match=r"critic_loss_weight: got 3.0, .* lacks a critic"):
        nonautoregressive(critic_loss_weight=3.0)
    nonautoregressive(critic_loss_weight=3.0, self_token_critic=True)
    critic = make_net(causal=False, head={"dim": 1})
    nonautoregressive(critic_loss_weight=3.0, token_critic=critic)
    nonautoregressive(critic_loss_weight=1.0)


def test_keywords_may_be_the_fields_of_the_config() -> None:
    config = nonautoregressive(weight="none", ignore_index=-7, document_end=3).config
    assert (config.weight, config.ignore_index) == ("none", -7)
    assert nonautoregressive(use_simple_mdlm_loss_weight=False).config.weight == "none"
    with pytest.raises(ConfigError, match="they say the same; leave one out"):
        nonautoregressive(weight="elbo", use_simple_mdlm_loss_weight=False)
    with pytest.raises(ConfigError, match="use_simple_mdlm_loss_weight: got 'no'; give True"):
        nonautoregressive(use_simple_mdlm_loss_weight="no")


@pytest.mark.parametrize(
    ("make", "keyword", "said"),
    [
        (autoregressive, "schedule", "it is one of NonAutoregressiveWrapper"),
        (autoregressive, "use_simple_mdlm_loss_weight", "it is one of NonAutoregressiveWrapper"),
        (nonautoregressive, "label_smoothing", "it is one of AutoregressiveWrapper"),
        (autoregressive, "label_smothing", "did you mean 'label_smoothing'?"),
        (nonautoregressive, "self_cnd", "did you mean 'self_cond'?"),
        (nonautoregressive, "wieght", "did you mean 'weight'?"),
        (autoregressive, "qqq", "known: ignore_index"),
    ],
)
def test_an_unknown_keyword_is_told_where_it_belongs(make: Any, keyword: str, said: str) -> None:
    with pytest.raises(TypeError, match=rf"unknown keyword '{keyword}'; {re.escape(said)}"):
        make(**{keyword: 0.5})


def test_a_config_names_what_is_renamed_in_it() -> None:
    with pytest.raises(ConfigError, match=r"it is weight: elbo \(for true\) or none"):
        from_mapping(NonAutoregressiveConfig, {"use_simple_mdlm_loss_weight": False})


def test_a_wrapper_around_a_wrapper_is_told_where_the_network_is() -> None:
    wrappers: list[Any] = [autoregressive(), nonautoregressive()]
    for wrapped in wrappers:
        for make in (AutoregressiveWrapper, NonAutoregressiveWrapper):
            keywords: Any = {"mask_id": 1} if make is NonAutoregressiveWrapper else {}
            with pytest.raises(ConfigError, match=r"a training wrapper is its `\.net`$"):
                make(wrapped, **keywords)
