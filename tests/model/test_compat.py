"""x-transformers' keywords and weights: same names, same defaults, same logits."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch

from xtdist.config import CheckpointError, ConfigError
from xtdist.model import Decoder, Encoder, ModelConfig, TransformerWrapper, build_model
from xtdist.model.compat import LAYERS, REQUIRED, WRAPPER, keywords_of
from xtdist.model.compat_weights import from_x_transformers

xt = pytest.importorskip("x_transformers")

SIZE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 16}
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "defaults": ({}, {}),
    "rotary": ({"rotary_pos_emb": True}, {}),
    "rotary_dim": ({"rotary_pos_emb": True, "rotary_emb_dim": 16}, {}),
    "no_positions": ({}, {"use_abs_pos_emb": False}),
    "disable_abs_pos_emb": ({"disable_abs_pos_emb": True}, {}),
    "rmsnorm": ({"use_rmsnorm": True}, {}),
    "gain_of_one": ({"norm_add_unit_offset": False}, {}),
    "rms_gain_of_one": ({"use_rmsnorm": True, "norm_add_unit_offset": False}, {}),
    "flash": ({"attn_flash": True}, {}),
    "gqa": ({"attn_kv_heads": 2}, {}),
    "mqa_flash": ({"attn_kv_heads": 1, "attn_flash": True}, {}),
    "qk_rmsnorm": ({"attn_qk_rmsnorm": True}, {}),
    "qk_rmsnorm_gqa": ({"attn_qk_rmsnorm": True, "attn_kv_heads": 2}, {}),
    "swish": ({"ff_swish": True}, {}),
    "geglu": ({"ff_glu": True}, {}),
    "swiglu": ({"ff_glu": True, "ff_swish": True}, {}),
    "no_bias": ({"ff_no_bias": True}, {}),
    "swiglu_no_bias": ({"ff_glu": True, "ff_swish": True, "ff_no_bias": True}, {}),
    "mult": ({"ff_mult": 2.7}, {}),
    "tied": ({}, {"tie_embedding": True}),
    "tied_scale": ({}, {"tie_embedding": True, "tie_embedding_scale": 0.5}),
    "llama": (
        {
            "rotary_pos_emb": True,
            "use_rmsnorm": True,
            "ff_glu": True,
            "ff_swish": True,
            "ff_no_bias": True,
            "attn_kv_heads": 2,
            "attn_flash": True,
        },
        {"tie_embedding": True},
    ),
}
STACKS = pytest.mark.parametrize("stack", ["Decoder", "Encoder"])


def both(name: str, stack: str) -> tuple[Any, TransformerWrapper]:
    layers, wrapper = OPTIONS[name]
    sizes = {"num_tokens": 40, "max_seq_len": 24}
    torch.manual_seed(0)
    theirs = xt.TransformerWrapper(
        **sizes, **wrapper, attn_layers=getattr(xt, stack)(**SIZE, **layers, verbose=False)
    )
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    ours_stack = {"Decoder": Decoder, "Encoder": Encoder}[stack]
    ours = TransformerWrapper(**sizes, **wrapper, attn_layers=ours_stack(**SIZE, **layers))
    ours.load_state_dict(from_x_transformers(theirs.state_dict(), ours.config))
    return theirs.eval(), ours.eval()


@STACKS
@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_weights_give_x_transformers_logits(name: str, stack: str) -> None:
    theirs, ours = both(name, stack)
    x = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x), atol=2e-4, rtol=1e-4)


@STACKS
def test_padding_masks_agree_with_x_transformers_on_real_tokens(stack: str) -> None:
    theirs, ours = both("llama", stack)
    x = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(24) < torch.tensor([[24], [9]])
    got, want = ours(x, mask=mask), theirs(x, mask=mask)
    torch.testing.assert_close(got[mask], want[mask], atol=2e-4, rtol=1e-4)


def test_gradients_agree_with_x_transformers() -> None:
    theirs, ours = both("llama", "Decoder")
    x = torch.randint(0, 40, (2, 24), generator=torch.Generator().manual_seed(1))
    for net in (theirs, ours):
        net(x).square().mean().backward()
    grads = {name: weight.grad for name, weight in theirs.named_parameters()}
    converted = from_x_transformers(grads, ours.config)
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(weight.grad, converted[name], atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", OPTIONS)
def test_keywords_survive_the_way_to_a_config_and_back(name: str) -> None:
    layers, wrapper = OPTIONS[name]
    net = TransformerWrapper(
        num_tokens=9, max_seq_len=8, **wrapper, attn_layers=Decoder(**SIZE, **layers)
    )
    back_layers, back_wrapper = keywords_of(net.config)
    again = TransformerWrapper(attn_layers=Decoder(**back_layers), **back_wrapper)
    ours, theirs = net.config, again.config
    assert again.config == net.config, (ours, theirs)
    assert build_model(net.config).state_dict().keys() == net.state_dict().keys()


def test_every_keyword_and_default_of_the_table_is_x_transformers_own() -> None:
    parts = [xt.Decoder, xt.x_transformers.AttentionLayers, xt.TransformerWrapper]
    known: dict[str, Any] = {}
    for prefix, owner in itertools.chain(
        (("", part) for part in parts),
        (("attn_", xt.x_transformers.Attention), ("ff_", xt.x_transformers.FeedForward)),
    ):
        for name, parameter in inspect.signature(owner.__init__).parameters.items():
            known[prefix + name] = parameter.default
    for row in LAYERS + WRAPPER:
        assert row.keyword in known
        if row.default is REQUIRED:
            assert known[row.keyword] in (inspect.Parameter.empty, None), row.keyword
        else:
            assert known[row.keyword] == row.default, row.keyword


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"Decoder: unknown keyword 'rotary_pos'.*'rotary_pos_emb'"):
        Decoder(**SIZE, rotary_pos=True)
    with pytest.raises(TypeError, match="did you mean 'tie_embedding'"):
        TransformerWrapper(
            num_tokens=9, max_seq_len=8, attn_layers=Decoder(**SIZE), tie_embeddings=True
        )
    with pytest.raises(TypeError, match="missing keyword 'depth'"):
        Decoder(dim=8)


BAD_VALUES = {
    "without effect": ({"rotary_emb_dim": 8}, "no effect without rotary_pos_emb=True"),
    "wrong type": ({"attn_dim_head": "16"}, "attention.dim_head: got"),
    "no boolean": ({"use_rmsnorm": "yes"}, "give True or False"),
    "kv heads": ({"attn_kv_heads": 3}, "must divide heads"),
    "two positions": (
        {"rotary_pos_emb": True, "disable_abs_pos_emb": False},
        "rotary and learned positions together",
    ),
}


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_value_that_can_not_be_honoured_is_refused(case: str) -> None:
    keywords, message = BAD_VALUES[case]
    with pytest.raises(ConfigError, match=message):
        Decoder(**{**SIZE, **keywords})


def test_a_config_beyond_the_keywords_says_what_has_none() -> None:
    config = ModelConfig(dim=32, depth=1, num_tokens=9, max_seq_len=8)
    with pytest.raises(ConfigError, match=r"feedforward\.multiple_of=64"):
        keywords_of(config)


def test_weights_of_another_model_are_refused() -> None:
    theirs, ours = both("defaults", "Decoder")
    with pytest.raises(CheckpointError, match="option that xtdist lacks"):
        from_x_transformers({**theirs.state_dict(), "memory_tokens": torch.ones(1)}, ours.config)
    state = theirs.state_dict()
    del state["attn_layers.layers.0.1.to_k.weight"]
    with pytest.raises(CheckpointError, match=r"no weight for layers.blocks.0.attention.k"):
        from_x_transformers(state, ours.config)
