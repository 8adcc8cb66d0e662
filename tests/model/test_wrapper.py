"""The language model as a whole: positions, causality, cache seam, copies, errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.model import Encoder, ModelConfig, TransformerWrapper, build_model
from xtdist.nn.attention.cache import Kept, Read
from xtdist.nn.attention.rotation import RotaryRotation

LLAMA: dict[str, Any] = {"attention": {"dim_head": 16, "kv_heads": 2, "qk_rmsnorm": True}}
GPT2: dict[str, Any] = {
    "attention": {"dim_head": 16},
    "position": {"kind": "learned"},
    "norm": {"kind": "layernorm"},
    "feedforward": {"kind": "mlp", "bias_in": True, "bias_out": True},
    "tie_embedding": True,
}
NOPE: dict[str, Any] = {
    "attention": {"dim_head": 8, "backend": "eager"},
    "position": {"kind": "none"},
}
KINDS = pytest.mark.parametrize("options", [LLAMA, GPT2, NOPE], ids=["llama", "gpt2", "nope"])


def make(options: dict[str, Any], **more: Any) -> TransformerWrapper:
    tree = {"dim": 32, "depth": 2, "heads": 4, "num_tokens": 40, "max_seq_len": 24}
    config = from_mapping(ModelConfig, {**tree, **options, **more})
    return build_model(config, generator=torch.Generator().manual_seed(3)).eval()


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 40, shape, generator=torch.Generator().manual_seed(seed))


class OneSequence:
    """A KVCache that keeps one sequence in lists."""

    def __init__(self) -> None:
        self.store: dict[int, Kept] = {}

    def update(self, layer: int, new: Kept) -> list[Read]:
        old = self.store.get(layer, tuple(t[:, :, :0] for t in new))
        kept = tuple(torch.cat(both, dim=2) for both in zip(old, new, strict=True))
        self.store[layer] = kept
        return [Read(rows=slice(None), kept=kept)]


@KINDS
def test_changing_later_tokens_leaves_earlier_logits_bit_identical(options: dict[str, Any]) -> None:
    model, x = make(options), ids(2, 24)
    y = x.clone()
    y[:, 10:] = (y[:, 10:] + 7) % 40
    a, b = model(x), model(y)
    assert torch.equal(a[:, :10], b[:, :10])
    assert not torch.allclose(a[:, 10:], b[:, 10:])


@KINDS
def test_an_encoder_sees_later_tokens(options: dict[str, Any]) -> None:
    model, x = make(options, causal=False), ids(1, 12)
    y = x.clone()
    y[:, -1] = (y[:, -1] + 1) % 40
    assert (model(x)[:, 0] != model(y)[:, 0]).any()


@KINDS
def test_explicit_positions_equal_the_implicit_ones(options: dict[str, Any]) -> None:
    model, x = make(options), ids(2, 9)
    want = model(x)
    assert torch.equal(model(x, pos=torch.arange(9)), want)
    assert torch.equal(model(x, pos=torch.arange(9).expand(2, 9)), want)


def test_rotary_logits_depend_on_distances_only() -> None:
    model, x = make(LLAMA), ids(1, 9)
    shifted = model(x, pos=torch.arange(9) + 1000)
    torch.testing.assert_close(shifted, model(x), atol=1e-4, rtol=1e-4)
    stretched = model(x, pos=torch.arange(9) * 3)
    assert (stretched - model(x)).abs().max() > 1e-3


@KINDS
@pytest.mark.parametrize("cuts", [[7, 1, 1, 3], [1] * 12], ids=["chunks", "single"])
def test_a_cache_fed_in_pieces_gives_the_logits_of_the_whole(
    options: dict[str, Any], cuts: list[int]
) -> None:
    model, x, cache = make(options), ids(1, 12), OneSequence()
    pieces, at = [], 0
    for cut in cuts:
        pos = torch.arange(at, at + cut)[None]
        pieces.append(model(x[:, at : at + cut], pos=pos, cache=cache))
        at += cut
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(x), atol=2e-5, rtol=1e-4)
    spec = model.cache_spec()
    assert len(cache.store) == len(spec.layers)
    assert [(t.shape[1], t.shape[3]) for t in cache.store[0]] == list(spec.layers[0])


@KINDS
@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_padding_changes_nothing_for_real_tokens(options: dict[str, Any], causal: bool) -> None:
    model, x = make(options, causal=causal), ids(2, 10)
    mask = torch.ones(2, 10, dtype=torch.bool)
    mask[0, 6:] = False
    out = model(x, mask=mask)
    assert out.isfinite().all()
    torch.testing.assert_close(out[0, :6], model(x[:1, :6])[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(out[1], model(x[1:])[0], atol=2e-5, rtol=1e-4)


@KINDS
def test_left_padding_and_empty_sequences_stay_finite(options: dict[str, Any]) -> None:
    for causal in (True, False):
        model, x = make(options, causal=causal), ids(2, 6)
        mask = torch.zeros(2, 6, dtype=torch.bool)
        mask[0, 2:] = True
        out = model(x, mask=mask)
        assert out.isfinite().all()
        alone = model(x[:1, 2:], pos=torch.arange(2, 6))
        torch.testing.assert_close(out[:1, 2:], alone, atol=2e-5, rtol=1e-4)


@KINDS
def test_copies_are_equal_and_independent(options: dict[str, Any]) -> None:
    model, x = make(options), ids(1, 5)
    want = model(x)
    twins = (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(0.5)
    for twin in twins:
        torch.testing.assert_close(twin(x), want)


def test_a_copied_tied_head_is_tied_to_the_copy() -> None:
    twin, x = copy.deepcopy(make(GPT2)), ids(1, 5)
    hidden = twin(x, return_embeddings=True)
    old = twin.to_logits(hidden)
    with torch.no_grad():
        twin.token_embedding.weight.mul_(2)
    torch.testing.assert_close(twin.to_logits(hidden), 2 * old)
    assert [name for name, _ in twin.named_parameters() if "head" in name] == []


@KINDS
def test_every_parameter_gets_a_finite_gradient(options: dict[str, Any]) -> None:
    model = make(options).train()
    model(ids(2, 24)).square().mean().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name


@KINDS
def test_a_model_in_bf16_stays_close_to_fp32(options: dict[str, Any]) -> None:
    model, x = make(options), ids(2, 24)
    want, got = model(x), copy.deepcopy(model).bfloat16()(x)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().max() < 0.05 * want.abs().max()


def test_a_cast_to_bf16_keeps_far_rotary_positions_apart() -> None:
    model = make(LLAMA).bfloat16()
    rotation = model.layers._rotation(torch.arange(2000, 3000)[None], None)
    assert isinstance(rotation, RotaryRotation)
    table = rotation.tables.query
    angle = torch.arange(2000, 3000).double()
    assert table.cos.dtype == torch.float32
    assert (table.cos[0, 0, :, 0].double() - angle.cos()).abs().max() < 1e-3
    assert table.sin[0, 0, :, 0].unique().numel() > 990


def test_the_same_generator_state_gives_the_same_model_and_no_global_state_is_used() -> None:
    before = torch.get_rng_state()
    a, b = make(LLAMA).state_dict(), make(LLAMA).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[k], b[k]) for k in a)
    torch.manual_seed(3)
    c = build_model(make(LLAMA).config).state_dict()
    assert {k: v.shape for k, v in c.items()} == {k: v.shape for k, v in a.items()}


def test_the_start_loss_is_near_that_of_a_uniform_guess() -> None:
    for options in (LLAMA, GPT2):
        model, x = make(options, num_tokens=1000, depth=8), ids(8, 24)
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), ids(8 * 24, seed=1))
        assert abs(loss.item() - 6.908) < 0.4


@KINDS
def test_a_config_survives_its_round_trip_and_builds_the_same(
    options: dict[str, Any],
) -> None:
    model = make(options)
    config = from_mapping(ModelConfig, to_mapping(model.config))
    assert config == model.config
    again = build_model(config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(ids(1, 6)), model(ids(1, 6)))


def test_wanted_rows_and_embeddings_agree_with_the_full_logits() -> None:
    model, x = make(GPT2), ids(2, 7)
    full, rows = model(x), torch.tensor([13, 0, 6])
    torch.testing.assert_close(model(x, logit_rows=rows), full.flatten(0, 1)[rows])
    both = model(x, return_logits_and_embeddings=True)
    assert torch.equal(both.embeddings, model(x, return_embeddings=True))
    assert torch.equal(both.logits, full)


def test_summed_embeddings_act_like_another_token() -> None:
    model, x = make(LLAMA), ids(1, 5)
    weight = model.token_embedding.weight
    y = (x + 1) % 40
    got = model(x, sum_embeds=weight[y] - weight[x])
    torch.testing.assert_close(got, model(y), atol=1e-5, rtol=1e-4)


def test_dropout_acts_in_training_only() -> None:
    options = {"attention": {"dropout": 0.5}, "feedforward": {"kind": "glu", "dropout": 0.5}}
    for model in (make(options), make({"emb_dropout": 0.5}), make({"attention": {"dropout": 0.5}})):
        x = ids(1, 8)
        assert torch.equal(model(x), model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


BAD_INPUTS = {
    "float ids": (lambda m: m(torch.zeros(1, 4)), "token ids"),
    "one axis": (lambda m: m(ids(4)), r"\(b, n\)"),
    "float mask": (lambda m: m(ids(1, 4), mask=torch.ones(1, 4)), "True = a real"),
    "mask shape": (
        lambda m: m(ids(1, 4), mask=torch.ones(1, 5, dtype=torch.bool)),
        "True = a real",
    ),
    "float pos": (lambda m: m(ids(1, 4), pos=torch.zeros(4)), "pos: got"),
    "pos shape": (lambda m: m(ids(1, 4), pos=torch.arange(5)), "pos: got"),
    "too long": (lambda m: m(ids(1, 25)), "max_seq_len=24"),
    "cache, no pos": (lambda m: m(ids(1, 4), cache=OneSequence()), "needs pos"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_an_input_the_model_can_not_take_is_one_clear_error(case: str) -> None:
    call, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        call(make(GPT2))


def test_an_encoder_refuses_a_cache() -> None:
    model = make(LLAMA, causal=False)
    with pytest.raises(ValueError, match="only a causal model"):
        model(ids(1, 4), pos=torch.arange(4), cache=OneSequence())


BAD_CONFIGS = {
    "kv heads": ({"attention": {"kv_heads": 3}}, "must divide heads"),
    "odd rotary": ({"position": {"kind": "rotary", "dim": 7}}, "rotated in pairs"),
    "wide rotary": ({"position": {"kind": "rotary", "dim": 128}}, "rotated in pairs"),
    "typo": ({"attention": {"kv_head": 2}}, "did you mean 'kv_heads'"),
    "no vocabulary": ({"num_tokens": 0}, "size of the vocabulary"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_can_not_be_built_is_one_clear_error(case: str) -> None:
    options, message = BAD_CONFIGS[case]
    with pytest.raises(ConfigError, match=message):
        make(options)


def test_an_encoder_by_keywords_is_bidirectional() -> None:
    net = TransformerWrapper(num_tokens=9, max_seq_len=8, attn_layers=Encoder(dim=16, depth=1))
    assert net.config.causal is False
    assert net.layers.sublayers[0].branch.geometry.causal is False
