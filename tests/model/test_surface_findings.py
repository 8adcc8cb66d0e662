"""What a forward pass is given is honoured or refused: other orders, caches, memories, loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from option_grid import LAYERS, LENGTH, WRAPPER, ids, perturb
from torch import Tensor

from xtdist.model import Decoder, Encoder, PrefixDecoder, TransformerWrapper

NO_POS = {"use_abs_pos_emb": False}
MEMORY = {**NO_POS, "max_mem_len": 4}
LOOPED = {**NO_POS, "looped": True}
NORMS = {"pre_and_post_norm": True}


def make(wrapper: dict[str, Any] | None = None, cls: type = Decoder, **layers: Any) -> Any:
    torch.manual_seed(0)
    stack = cls(**{**LAYERS, **layers})
    model = TransformerWrapper(**{**WRAPPER, **(wrapper or {})}, attn_layers=stack)
    perturb(model)
    return model.eval()


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def memories(count: int, *, size: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(2, size, 32, generator=generator) for _ in range(count)]


def began(model: Any, x: Tensor, **given: Any) -> Any:
    """The intermediates of a pass, to go on with."""
    return model(x, return_intermediates=True, **given)[1]


# Prefixes and memories.


@torch.no_grad()
@pytest.mark.parametrize("position", ["none", "alibi_pos_bias", "rotary_pos_emb"])
def test_memories_are_not_counted_as_part_of_a_prefix(position: str) -> None:
    layers = {} if position == "none" else {position: True}
    model, x = make(MEMORY, PrefixDecoder, **layers), ids(2, LENGTH)
    hidden = [torch.zeros(2, 4, dtype=torch.bool)] * 2
    got = model(x, prefix_attn_len=6, mems=memories(2), mem_masks=hidden)
    close(got, model(x, prefix_attn_len=6))
    other = x.clone()
    other[:, 5] = (other[:, 5] + 1) % 40
    change = model(x, prefix_attn_len=6, mems=memories(2)) - model(
        other, prefix_attn_len=6, mems=memories(2)
    )
    assert change.abs().amax(dim=(0, 2)).min() > 0


# Orders that a forward pass chooses.


@torch.no_grad()
@pytest.mark.parametrize("position", ["none", "alibi_pos_bias", "rotary_pos_emb", "rel_pos_bias"])
def test_each_attention_that_runs_has_a_memory_of_its_own(position: str) -> None:
    layers = {} if position == "none" else {position: True}
    model, x, mems = make(MEMORY, **layers), ids(2, LENGTH), memories(3)
    built = make(MEMORY, **layers, layers_execute_order=(0, 1, 0, 1, 2, 3))
    built.load_state_dict(model.state_dict())
    close(model(x, repeat_blocks=(0, 2), mems=mems), built(x, mems=mems))
    _, kept = model(x, repeat_blocks=(0, 2), return_mems=True)
    assert model(x, repeat_blocks=(0, 2), mems=kept).isfinite().all()
    close(
        model(x, layers_execute_order=(2, 3, 0, 1, 0, 1), mems=mems),
        make_ordered(model, (2, 3, 0, 1, 0, 1), **layers)(x, mems=mems),
    )
    assert model(x, layers_execute_order=(0, 1), mems=mems[:1]).isfinite().all()
    for given, count in (({"repeat_blocks": (0, 2)}, 3), ({"layers_execute_order": (0, 1)}, 1)):
        with pytest.raises(ValueError, match=f"mems: got 2; give one for each of {count} self"):
            model(x, mems=mems[:2], **given)


def make_ordered(model: Any, order: tuple[int, ...], **layers: Any) -> Any:
    built = make(MEMORY, **layers, layers_execute_order=order)
    built.load_state_dict(model.state_dict())
    return built


ORDERED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "deep embedding": ({"ff_deep_embed": True}, {}, "deep embedding: ff_deep_embed"),
    "U-Net": ({}, {"unet_skips": True}, "U-Net skips: unet_skips"),
    "LIMe": ({}, {"integrate_layers": True}, "LIMe: integrate_layers"),
}


@pytest.mark.parametrize("name", ORDERED)
@pytest.mark.parametrize(
    ("order", "value"), [("layers_execute_order", (2, 3)), ("repeat_blocks", (0, 2))]
)
def test_what_belongs_to_a_number_refuses_another_order(name: str, order: str, value: Any) -> None:
    wrapper, layers, message = ORDERED[name]
    with pytest.raises(ValueError, match=f"{order}: .*{message}.*leave one out"):
        make(wrapper, **layers)(ids(2, LENGTH), **{order: value})


# Views.


@torch.no_grad()
def test_hidden_states_are_whole_where_queries_read_others_than_keys() -> None:
    streams = {"num_residual_streams": 4, "qkv_receive_diff_residuals": True}
    model, x = make({"max_mem_len": 8}, **streams), ids(2, LENGTH)
    seen = []
    model.layers.sublayers[2].norm.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    _, inter = model(x, return_intermediates=True)
    assert [tuple(h.shape) for h in inter.hiddens] == [(2, LENGTH, 32)] * 2
    close(inter.hiddens[1], seen[0][0])
    _, mems = model(x, return_mems=True)
    assert [tuple(m.shape) for m in mems] == [(2, 8, 32)] * 2
    close(mems[1], inter.hiddens[1][:, -8:])


# Caches.


@torch.no_grad()
def test_a_cache_with_passes_left_out_in_the_middle_is_refused() -> None:
    model, x = make(LOOPED, **NORMS), ids(2, 10)
    cache = began(model, x[:, :6], looped_steps=3)
    close(model(x, cache=cache, looped_steps=3), model(x, looped_steps=3)[:, 6:])
    cache = began(model, x[:, :8], cache=cache, looped_steps=1)
    with pytest.raises(ValueError, match="give the same number of loops"):
        model(x, cache=cache, looped_steps=3)


@torch.no_grad()
def test_a_cache_has_the_context_that_it_was_made_with() -> None:
    model, x, context = make(cross_attend=True), ids(2, 10), torch.randn(2, 5, 32)
    cache = began(model, x[:, :6], context=context)
    want = model(x, context=context)[:, 6:]
    close(model(x, cache=cache), want)
    close(model(x, cache=cache, context=context), want)
    close(model(x, cache=cache, context=context.clone()), want)
    for other in (context + 1, torch.randn(2, 9, 32)):
        with pytest.raises(ValueError, match="context: another one than the cache"):
            model(x, cache=cache, context=other)


@torch.no_grad()
def test_a_cache_is_of_its_sequences_and_of_its_model() -> None:
    model, x = make(), ids(2, 10)
    cache = began(model, x[:, :6])
    with pytest.raises(ValueError, match="cache: it holds 2 sequences, and x 1"):
        model(x[:1], cache=cache)
    with pytest.raises(ValueError, match="cache: it is of another model"):
        make(depth=1)(x, cache=cache)
    close(make()(x, cache=cache), model(x)[:, 6:])


@torch.no_grad()
@pytest.mark.parametrize("name", ["condition", "in_attn_cond", "sum_embeds"])
def test_what_is_given_for_each_token_is_cut_to_the_new_ones(name: str) -> None:
    model, x = make(**({"use_adaptive_rmsnorm": True} if name == "condition" else {})), ids(2, 10)
    value = torch.randn(2, 10, 32)
    cache = began(model, x[:, :6], **{name: value[:, :6]})
    want = model(x, **{name: value})[:, 6:]
    close(model(x, cache=cache, **{name: value}), want)
    close(model(x, cache=cache, **{name: value[:, 6:]}), want)
    with pytest.raises(ValueError, match=f"{name}: got torch.float32 .2, 7, 32."):
        model(x, cache=cache, **{name: value[:, :7]})


# Outputs.


@torch.no_grad()
def test_wanted_rows_are_those_of_hidden_states_too() -> None:
    model, x, rows = make({"return_only_embed": True}), ids(2, LENGTH), torch.tensor([0, 3, 20])
    close(model(x, logit_rows=rows), model(x).flatten(0, 1)[rows])


POOLED: dict[str, tuple[dict[str, Any], type]] = {
    "mean": ({"average_pool_embed": True}, Decoder),
    "class": ({"use_cls_token": True}, Encoder),
    "several classes": ({"use_cls_token": True, "num_cls_tokens": 2}, Encoder),
    "queries": ({"attn_pool": True}, Encoder),
}


@pytest.mark.parametrize("name", POOLED)
def test_an_output_for_the_whole_sequence_has_no_rows(name: str) -> None:
    with pytest.raises(ValueError, match="logit_rows: the output is one for the whole sequence"):
        make(*POOLED[name])(ids(2, LENGTH), logit_rows=torch.tensor([0]))


@torch.no_grad()
def test_several_heads_have_entropies_of_their_own() -> None:
    model, x = make({"num_output_heads": 2}), ids(2, LENGTH)
    logits, inter = model(x, return_logit_entropies=True)
    assert len(inter.logit_entropies) == 2
    for got, of_head in zip(inter.logit_entropies, logits, strict=True):
        close(got, torch.distributions.Categorical(logits=of_head).entropy())


def test_a_loss_of_attentions_needs_some() -> None:
    with pytest.raises(ValueError, match="return_attn_z_loss: the stack has no attention"):
        make(custom_layers=("f", "f"))(ids(2, LENGTH), return_attn_z_loss=True)


def test_keys_for_the_last_attention_alone_are_refused_beside_residual_attention() -> None:
    model, x = make(residual_attn=True), ids(2, LENGTH)
    pair = (torch.randn(2, 4, 3, 16), torch.randn(2, 4, 3, 16))
    for added in ([pair], [None, pair]):
        with pytest.raises(ValueError, match=r"residual_attn .*all 2 must have the same number"):
            model(x, self_attn_additional_kv=added)
    assert model(x, self_attn_additional_kv=[pair, pair]).isfinite().all()


# Inputs without effect, and numbers that are none.

WRONG: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "masks of no memories": (
        MEMORY,
        {"mem_masks": [torch.ones(2, 4, dtype=torch.bool)] * 2},
        "mem_masks: given without mems",
    ),
    "keywords of the head": ({}, {"to_logits_kwargs": {"a": 1}}, "to_logits_kwargs: the model's"),
    "keywords of no head": (
        {},
        {"to_logits_kwargs": {"a": 1}, "return_embeddings": True},
        "to_logits_kwargs: the model's",
    ),
    "threshold without a loop": (
        {},
        {"looped_exit_prob_threshold": 0.5},
        "looped_exit_prob_threshold: given to a model that is not looped",
    ),
    "threshold that is not asked for": (
        LOOPED,
        {"looped_exit_prob_threshold": 0.5},
        "no effect without looped_inference=True",
    ),
    "threshold as text": (
        LOOPED,
        {"looped_inference": True, "looped_exit_prob_threshold": "a"},
        "looped_exit_prob_threshold: got 'a'",
    ),
    "threshold beyond": (
        LOOPED,
        {"looped_inference": True, "looped_exit_prob_threshold": 1.5},
        "looped_exit_prob_threshold: got 1.5",
    ),
    "half a pass": ({"recycling": True}, {"recycle_steps": 2.5}, "recycle_steps: got 2.5"),
    "passes as text": ({"recycling": True}, {"recycle_steps": "2"}, "recycle_steps: got '2'"),
    "true passes": ({"recycling": True}, {"recycle_steps": True}, "recycle_steps: got True"),
    "no passes": (LOOPED, {"looped_steps": 0}, "looped_steps: got 0"),
    "inference by number": (LOOPED, {"looped_inference": 3}, "looped_inference: got 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_effect_or_no_meaning_is_refused(name: str) -> None:
    wrapper, given, message = WRONG[name]
    model = make(wrapper, **(NORMS if "looped" in wrapper else {}))
    with pytest.raises(ValueError, match=message):
        model(ids(2, LENGTH), **given)


@pytest.mark.parametrize("layers", [{}, {"attn_softclamp_logits": True}], ids=["fused", "table"])
def test_a_gradient_has_no_gradient_as_the_documentation_says(layers: dict[str, Any]) -> None:
    assert "create_graph=True" in (TransformerWrapper.forward.__doc__ or "")
    model = make(**layers)
    weights = list(model.parameters())
    loss = model(ids(2, LENGTH)).square().mean()
    grads = torch.autograd.grad(loss, weights, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.stack([grad.square().sum() for grad in grads]).sum().backward()
