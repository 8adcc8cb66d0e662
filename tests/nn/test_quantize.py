"""Int8 weights: as near as their steps allow, small, and refused where they can't be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from xtdist.config import ConfigError
from xtdist.model import ModelConfig, TransformerWrapper, build_model
from xtdist.nn.attention.config import AttentionConfig
from xtdist.nn.feedforward import MoEConfig
from xtdist.nn.linear import Linear
from xtdist.nn.quantize import Int8Matrix, quantize_int8
from xtdist.objective import AutoregressiveWrapper


def make(**overrides: object) -> TransformerWrapper:
    sizes: dict[str, object] = {
        "dim": 64,
        "depth": 2,
        "heads": 2,
        "num_tokens": 100,
        "max_seq_len": 32,
        "attention": AttentionConfig(dim_head=32),
    }
    config = ModelConfig(**{**sizes, **overrides})  # type: ignore[arg-type]
    return build_model(config, generator=torch.Generator().manual_seed(0)).eval()


def nbytes(model: nn.Module) -> int:
    return sum(t.nbytes for t in model.state_dict().values())


@pytest.mark.parametrize("rows", [1, 5, 48])
@pytest.mark.parametrize("sizes", [(64, 48), (37, 50)])
def test_a_product_is_within_half_a_step_of_each_weight(rows: int, sizes: tuple[int, int]) -> None:
    dim_in, dim_out = sizes
    weight = torch.randn(dim_out, dim_in) * torch.logspace(-3, 3, dim_out)[:, None]
    bias, x = torch.randn(dim_out), torch.randn(2, rows, dim_in)
    got = Int8Matrix.of(weight)(x, bias)
    wanted = x.double() @ weight.double().T + bias
    steps = weight.abs().amax(dim=1).double() / 127
    bound = x.double().abs().sum(dim=-1, keepdim=True) * steps / 2
    assert got.shape == wanted.shape
    bound += x.abs().amax(dim=-1, keepdim=True) * 2**-15 * weight.double().abs().sum(dim=1)
    assert ((got - wanted).abs() <= bound + 1e-5 * wanted.abs().mean()).all()
    assert (got - wanted).abs().max() > 0


def test_rows_pieces_and_the_whole_are_the_same_numbers_and_zeros_stay_zero() -> None:
    weight = torch.randn(6, 16)
    weight[2] = 0
    matrix = Int8Matrix.of(weight)
    whole = matrix.whole()
    assert torch.equal(matrix.rows(torch.tensor([[4, 2]])), whole[[4, 2]][None])
    assert torch.equal(torch.cat([m.whole() for m in matrix.split((1, 3, 2))]), whole)
    assert (whole[2] == 0).all()
    top = weight.abs().argmax(dim=1)
    torch.testing.assert_close(whole[range(6), top], weight[range(6), top])


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_in_int8_is_small_and_gives_nearly_the_same_logits_each_time(tied: bool) -> None:
    model = make(tie_embedding=tied)
    small = quantize_int8(copy.deepcopy(model))
    assert nbytes(small) < 0.3 * nbytes(model)
    assert all(isinstance(m.weight, Int8Matrix) for m in small.modules() if type(m) is Linear)
    ids = torch.randint(0, 100, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, got = model(ids), small(ids)
        assert torch.equal(got, small(ids))
    assert (got - wanted).std() < 0.03 * wanted.std()
    assert (got - wanted).abs().max() > 0


def test_a_model_in_int8_has_the_loss_of_its_own_rounded_weights() -> None:
    small = quantize_int8(make())
    rounded = make()
    state = {}
    for name, module in small.named_modules():
        if isinstance(module, Int8Matrix):
            state[name] = module.whole()
    rounded.load_state_dict(state, strict=False)
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = (AutoregressiveWrapper(m).eval()(ids) for m in (small, rounded))
    torch.testing.assert_close(a, b)


def test_what_can_not_be_in_int8_is_refused() -> None:
    with pytest.raises(ConfigError, match="training mode"):
        quantize_int8(make().train())
    with pytest.raises(ConfigError, match="experts"):
        quantize_int8(make(feedforward=MoEConfig(experts=2)))
    with pytest.raises(ConfigError, match="already"):
        quantize_int8(quantize_int8(make()))
    with pytest.raises(ConfigError, match="on meta"):
        quantize_int8(make().to("meta"))


def test_a_product_without_rows_has_none() -> None:
    """A step in the middle of a long prompt asks for no logits."""
    matrix = Int8Matrix.of(torch.randn(8, 16))
    assert matrix(torch.randn(0, 16)).shape == (0, 8)
    assert matrix(torch.randn(2, 0, 16)).shape == (2, 0, 8)
