"""The vision transformer against x-transformers with the same weights, and its parts by hand."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from xtdist.config import ConfigError
from xtdist.model import CrossAttender, Decoder, Encoder
from xtdist.model.compat_weights import from_x_transformers
from xtdist.model.outputs import LogitsAndEmbeddings
from xtdist.model.vision import ViTransformerWrapper

xt = pytest.importorskip("x_transformers")

STACK: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8}
SIZES: dict[str, Any] = {"image_size": 12, "patch_size": 4}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "classes": ({"num_classes": 5}, {}),
    "no head": ({}, {}),
    "registers": ({"num_classes": 5, "num_register_tokens": 3}, {}),
    "norm and channels": ({"num_classes": 5, "post_emb_norm": True, "channels": 1}, {}),
    "rotary": ({"num_classes": 5, "num_register_tokens": 2}, {"rotary_pos_emb": True}),
    "grouped keys": ({"num_classes": 5}, {"attn_kv_heads": 2, "use_rmsnorm": True}),
}
NAMES = {
    "pos_embedding": "positions.weight",
    "register_tokens": "registers.weight",
    "patch_to_embedding.0.gamma": "patch_embedding.pixel_norm.gain",
    "patch_to_embedding.1.weight": "patch_embedding.proj.weight",
    "patch_to_embedding.1.bias": "patch_embedding.proj.bias",
    "patch_to_embedding.2.gamma": "patch_embedding.norm.gain",
    "post_emb_norm.gamma": "post_emb_norm.gain",
    "mlp_head.weight": "head.weight",
    "mlp_head.bias": "head.bias",
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def perturb(module: nn.Module) -> None:
    for seed, weight in enumerate(module.parameters()):
        weight.add_(0.1 * noise(*weight.shape, seed=seed))


def ours_of(kind: str) -> ViTransformerWrapper:
    keywords, stack = KINDS[kind]
    net = ViTransformerWrapper(attn_layers=Encoder(**STACK, **stack), **SIZES, **keywords)
    perturb(net)
    return net


def pair_of(kind: str) -> tuple[nn.Module, ViTransformerWrapper]:
    keywords, stack = KINDS[kind]
    theirs = xt.ViTransformerWrapper(
        attn_layers=xt.Encoder(**STACK, **stack, verbose=False), **SIZES, **keywords
    )
    perturb(theirs)
    ours = ours_of(kind)
    state = theirs.state_dict()
    layers = {name: state.pop(name) for name in list(state) if name.startswith("attn_layers.")}
    found = from_x_transformers(layers, ours.layers.config)
    for name, weight in state.items():
        found[NAMES[name]] = weight[0] if name == "pos_embedding" else weight
    ours.load_state_dict(found)
    return theirs.eval(), ours.eval()


def image(kind: str, *, batch: int = 2) -> Tensor:
    return noise(batch, KINDS[kind][0].get("channels", 3), 12, 12, seed=7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_see_as_x_transformers(kind: str) -> None:
    theirs, ours = pair_of(kind)
    img = image(kind)
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(ours(img), theirs(img), **close)
    got, want = ours(img, return_embeddings=True), theirs(img, return_embeddings=True)
    torch.testing.assert_close(got, want, **close)
    both = ours(img, return_logits_and_embeddings=True)
    assert isinstance(both, LogitsAndEmbeddings)
    for got, want in zip(both, theirs(img, return_logits_and_embeddings=True), strict=True):
        torch.testing.assert_close(got, want, **close)


def test_patches_are_cut_row_by_row() -> None:
    net = ours_of("classes")
    img = image("classes", batch=1)
    changed = img.clone()
    changed[:, :, 4:8, 8:12] += 1.0  # row 1, column 2 of a 3 x 3 grid
    moved = (net.patch_embedding(img) != net.patch_embedding(changed)).any(dim=-1)[0]
    assert moved.nonzero().flatten().tolist() == [5]


def test_logits_are_the_head_of_the_mean_patch_without_registers() -> None:
    net = ours_of("registers").eval()
    logits, embeddings = net(image("registers"), return_logits_and_embeddings=True)
    assert embeddings.shape == (2, 9, 32)
    weights = net.state_dict()
    want = embeddings.sum(dim=1) / 9 @ weights["head.weight"].T + weights["head.bias"]
    torch.testing.assert_close(logits, want)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_and_the_model_pickles(kind: str) -> None:
    net = ours_of(kind)
    img = image(kind)
    net(img).square().sum().backward()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(img), net(img))


def test_images_of_a_batch_do_not_see_each_other() -> None:
    net = ours_of("registers").eval()
    img = image("registers")
    alone = torch.cat((net(img[:1]), net(img[1:])))
    torch.testing.assert_close(net(img), alone, atol=1e-6, rtol=1e-5)


def test_layers_with_a_context_or_a_condition_are_given_it() -> None:
    stack = Encoder(**STACK, cross_attend=True, use_adaptive_rmsnorm=True, dim_condition=6)
    net = ViTransformerWrapper(attn_layers=stack, num_classes=5, **SIZES)
    perturb(net)
    img, context, condition = noise(2, 3, 12, 12), noise(2, 4, 32), noise(2, 6)
    out = net(img, context=context, condition=condition)
    assert not torch.allclose(out, net(img, context=-context, condition=condition))
    assert not torch.allclose(out, net(img, context=context, condition=-condition))
    mask = torch.tensor([[True] * 2 + [False] * 2] * 2)
    short = net(img, context=context[:, :2], condition=condition)
    masked = net(img, context=context, context_mask=mask, condition=condition)
    torch.testing.assert_close(masked, short, atol=1e-6, rtol=1e-5)


def test_what_can_not_be_is_refused() -> None:
    stack = Encoder(**STACK)
    with pytest.raises(ConfigError, match="5 does not divide image_size=12"):
        ViTransformerWrapper(attn_layers=stack, image_size=12, patch_size=5)
    with pytest.raises(ConfigError, match="give an Encoder"):
        ViTransformerWrapper(attn_layers=Decoder(**STACK), **SIZES)
    with pytest.raises(TypeError, match="did you mean 'num_classes'"):
        ViTransformerWrapper(attn_layers=stack, num_class=5, **SIZES)
    net = ViTransformerWrapper(attn_layers=stack, **SIZES)
    with pytest.raises(ValueError, match=r"give \(batch, 3, 12, 12\)"):
        net(noise(2, 3, 12, 8))
    for wrong in (noise(2, 3, 12, 12).to(torch.uint8), noise(2, 3, 12, 12).double()):
        with pytest.raises(ValueError, match=r"img: got .*give torch.float32, the type of the"):
            net(wrong)
    with pytest.raises(ValueError, match="img: got a list"):
        net([1.0])
    with pytest.raises(ValueError, match="choose one"):
        net(noise(2, 3, 12, 12), return_embeddings=True, return_logits_and_embeddings=True)
    cross = ViTransformerWrapper(attn_layers=CrossAttender(**STACK), **SIZES)
    with pytest.raises(ValueError, match="context: missing"):
        cross(noise(2, 3, 12, 12))


def test_in_bf16_the_logits_are_nearly_those_of_fp32() -> None:
    net = ours_of("registers").eval()
    img = image("registers")
    want = net(img)
    got = net.bfloat16()(img.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got - want).norm() < 0.05 * want.norm()


def test_autocast_casts_the_pixels() -> None:
    net = ours_of("registers").eval()
    img = image("registers")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(img.bfloat16())
        with pytest.raises(ValueError, match=r"img: got torch.float64"):
            net(img.double())
    assert (half - net(img)).norm() < 0.05 * net(img).norm()
