"""Weights from and to x-transformers: files, and weights of another model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from option_grid import Case, build, config_of
from safetensors.torch import save_file

from xtdist.config import CheckpointError
from xtdist.model import build_model, load_x_transformers
from xtdist.model.compat_weights import from_x_transformers, to_x_transformers

GQA = Case(name="gqa", options=(), layers={"attn_kv_heads": 2, "attn_qk_rmsnorm": True})


def state() -> dict[str, Any]:
    model = build(GQA)
    return to_x_transformers(model.state_dict(), model.config)


def test_query_heads_are_reordered_to_stand_by_their_keys() -> None:
    theirs = state()
    ours = from_x_transformers(theirs, config_of(GQA))
    layer = "attn_layers.layers.0.1."
    gains = ours[next(name for name in ours if name.endswith("norms.query.gain"))]
    # Head 0 and 2 read key head 0 there; heads 0 and 1 do here.
    assert torch.equal(gains, theirs[f"{layer}q_rmsnorm.gamma"][[0, 2, 1, 3]])
    out = ours[next(name for name in ours if name.endswith("to_out.weight"))]
    assert torch.equal(out[:, 16:32], theirs[f"{layer}to_out.weight"][:, 32:48])


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "module"])
def test_weights_are_read_from_a_module_and_from_files(suffix: str, tmp_path: Path) -> None:
    want, theirs = build(GQA), state()
    source: Any = tmp_path / f"theirs.{suffix}"
    if suffix == "pt":
        torch.save(theirs, source)
    elif suffix == "safetensors":
        save_file(theirs, source)
    else:
        xt = pytest.importorskip("x_transformers")
        stack = xt.Decoder(dim=32, depth=2, heads=4, attn_dim_head=16, **GQA.layers, verbose=False)
        source = xt.TransformerWrapper(num_tokens=40, max_seq_len=24, attn_layers=stack)
        source.load_state_dict(theirs)
    got = load_x_transformers(source, want.config)
    model = build_model(want.config)
    model.load_state_dict(got)
    for name, weight in want.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, atol=0.0, rtol=1e-6)


def test_a_file_that_holds_no_weights_is_one_clear_error(tmp_path: Path) -> None:
    config = config_of(GQA)
    with pytest.raises(CheckpointError, match=r"none\.pt: can't be read as weights"):
        load_x_transformers(tmp_path / "none.pt", config)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_x_transformers(tmp_path / "list.pt", config)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: can't be read"):
        load_x_transformers(tmp_path / "bad.safetensors", config)


def test_weights_of_another_model_are_refused_by_name() -> None:
    theirs, config = state(), config_of(GQA)
    with pytest.raises(CheckpointError, match=r"unheard\.of: .*option that xtdist lacks"):
        from_x_transformers({**theirs, "unheard.of": torch.ones(1)}, config)
    plain = config_of(Case(name="plain", options=(), layers={"attn_kv_heads": 2}))
    with pytest.raises(CheckpointError, match=r"q_rmsnorm\.gamma: .*the option qk rmsnorm"):
        from_x_transformers(theirs, plain)
    model = build(GQA)
    with pytest.raises(CheckpointError, match="odd: x-transformers has no such weight"):
        to_x_transformers({**model.state_dict(), "odd": torch.ones(1)}, config)


def test_every_missing_weight_is_named_with_the_shape_that_the_config_needs() -> None:
    theirs, config = state(), config_of(GQA)
    learned = [name for name in theirs if not name.endswith("inv_freq")]
    assert len(learned) > 20
    for name in learned:
        rest = {k: v for k, v in theirs.items() if k != name}
        shape = re.escape(str(tuple(theirs[name].shape)))
        with pytest.raises(CheckpointError, match=rf"^no weight {re.escape(name)}: .*{shape}$"):
            from_x_transformers(rest, config)


def test_missing_sublayers_and_empty_dicts_are_refused() -> None:
    theirs, config = state(), config_of(GQA)
    rest = {k: v for k, v in theirs.items() if not k.startswith("attn_layers.layers.3.")}
    with pytest.raises(CheckpointError, match=r"no weight attn_layers\.layers\.3\..*more are miss"):
        from_x_transformers(rest, config)
    with pytest.raises(CheckpointError, match=r"no weight .*more are missing"):
        from_x_transformers({}, config)


def test_more_layers_than_the_depth_are_refused_as_that() -> None:
    deep = Case(name="deep", options=(), layers={**GQA.layers, "depth": 3})
    model = build(deep)
    theirs = to_x_transformers(model.state_dict(), model.config)
    with pytest.raises(CheckpointError, match=r"more layers than the config: 6 .* gives 4"):
        from_x_transformers(theirs, config_of(GQA))


@pytest.mark.parametrize("shape", [(10, 3), (65, 32), (32,)])
@pytest.mark.parametrize("part", ["to_q", "to_k", "to_v", "to_out"])
def test_wrong_shapes_are_refused_with_both_shapes(part: str, shape: tuple[int, ...]) -> None:
    theirs, name = state(), f"attn_layers.layers.0.1.{part}.weight"
    needed = tuple(theirs[name].shape)
    match = re.escape(f"{name}: its shape is {shape}, the config needs {needed}")
    with pytest.raises(CheckpointError, match=match):
        from_x_transformers({**theirs, name: torch.zeros(shape)}, config_of(GQA))


def test_what_is_no_floating_tensor_is_refused_and_half_precision_is_not() -> None:
    theirs, config, name = state(), config_of(GQA), "token_emb.emb.weight"
    with pytest.raises(CheckpointError, match=r"token_emb.*torch\.int64, .*needs a floating type"):
        from_x_transformers({**theirs, name: theirs[name].long()}, config)
    listed: Any = {**theirs, name: [1.0]}
    with pytest.raises(CheckpointError, match=r"token_emb.*got list, no tensor"):
        from_x_transformers(listed, config)
    numbered: Any = {0: torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"0: got Tensor, no tensor with a name"):
        from_x_transformers(numbered, config)
    half = from_x_transformers({k: v.bfloat16() for k, v in theirs.items()}, config)
    assert {weight.dtype for weight in half.values()} == {torch.bfloat16}


def test_export_names_what_is_missing_or_wrong() -> None:
    model = build(GQA)
    ours, config = model.state_dict(), model.config
    for name in ours:
        rest = {k: v for k, v in ours.items() if k != name}
        with pytest.raises(CheckpointError, match=rf"^no weight {re.escape(name)}: "):
            to_x_transformers(rest, config)
    with pytest.raises(CheckpointError, match=r"no weight .*more are missing"):
        to_x_transformers({}, config)
    name = "layers.sublayers.0.branch.to_out.weight"
    with pytest.raises(CheckpointError, match=r"to_out\.weight: its shape is \(3, 3\)"):
        to_x_transformers({**ours, name: torch.zeros(3, 3)}, config)


@pytest.mark.parametrize("prefix", ["net.", "module.", "module.net.", "_orig_mod."])
def test_prefixes_of_usual_wrappers_are_stripped(prefix: str) -> None:
    theirs, config = state(), config_of(GQA)
    want = from_x_transformers(theirs, config)
    got = from_x_transformers({prefix + name: w for name, w in theirs.items()}, config)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_an_autoregressive_wrapper_is_read_as_the_model_inside() -> None:
    xt = pytest.importorskip("x_transformers")
    stack = xt.Decoder(dim=32, depth=2, heads=4, attn_dim_head=16, **GQA.layers, verbose=False)
    net = xt.TransformerWrapper(num_tokens=40, max_seq_len=24, attn_layers=stack)
    config = config_of(GQA)
    want = load_x_transformers(net, config)
    for source in (xt.AutoregressiveWrapper(net), net.state_dict()):
        got = load_x_transformers(source, config)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_other_prefixes_are_named_with_what_to_do() -> None:
    theirs, config = state(), config_of(GQA)
    odd = {f"decoder.net.{name}": w for name, w in theirs.items()}
    with pytest.raises(CheckpointError, match=r"begin with decoder\.net\.; strip that"):
        from_x_transformers(odd, config)
    two = {**odd, **{f"encoder.{name}": w for name, w in theirs.items()}}
    with pytest.raises(CheckpointError, match=r"several models.*decoder\.net\., encoder\.;"):
        from_x_transformers(two, config)
    beside = {f"net.{name}": w for name, w in theirs.items()} | {"extra": torch.ones(1)}
    with pytest.raises(CheckpointError, match=r"begin with net\.; strip .*leave out .*extra"):
        from_x_transformers(beside, config)


@pytest.mark.parametrize("source", [None, 3, ["a"]], ids=str)
def test_what_is_no_source_of_weights_is_one_sentence(source: Any) -> None:
    config, kind = config_of(GQA), type(source).__name__
    with pytest.raises(CheckpointError, match=f"^source: got {kind}; give an x-transformers"):
        load_x_transformers(source, config)
    with pytest.raises(CheckpointError, match=f"^got {kind}; give a state dict"):
        from_x_transformers(source, config)
    with pytest.raises(CheckpointError, match=f"^got {kind}; give a state dict"):
        to_x_transformers(source, config)
    for convert in (load_x_transformers, from_x_transformers, to_x_transformers):
        with pytest.raises(TypeError, match=f"^config: got {kind}; give the config of a model"):
            convert({}, source)


UNLIKE: dict[str, tuple[dict[str, Any], str]] = {
    "polar, shared keys": (
        {"polar_pos_emb": True, "attn_kv_heads": 2},
        "polar positions: .*x-transformers can't run this either: .*angle per query head",
    ),
    "polar, one key head": (
        {"polar_pos_emb": True, "attn_kv_heads": 1},
        "polar positions: .*another angle for each query head; xtdist",
    ),
    "learned value mix, shared values": (
        {"add_value_residual": True, "attn_kv_heads": 2},
        "can't run this either: it mixes by one number per query head",
    ),
    "forgetting": (
        {"cross_attend": True, "attn_data_dependent_alibi": True},
        "applies attn_data_dependent_alibi to cross attention too.*xtdist doesn't",
    ),
    "relative projection": (
        {"cross_attend": True, "attn_use_rel_proj_pos_bias": True},
        "applies attn_use_rel_proj_pos_bias to cross attention too.*xtdist doesn't",
    ),
    "CoPE": (
        {"cross_attend": True, "attn_use_cope": True},
        "CoPE: .*x-transformers can't build this: .*cross attention too",
    ),
    "selective": (
        {"cross_attend": True, "attn_selective": True},
        "selective attention: .*x-transformers can't build this: .*cross attention selective",
    ),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_models_that_differ_from_x_transformers_are_refused_with_the_reason(kind: str) -> None:
    layers, match = UNLIKE[kind]
    model = build(Case(name=kind, options=(), layers=layers))
    with pytest.raises(CheckpointError, match=match):
        to_x_transformers(model.state_dict(), model.config)
    with pytest.raises(CheckpointError, match=match):
        from_x_transformers({}, model.config)


@pytest.mark.parametrize("kind", UNLIKE)
def test_x_transformers_cannot_run_what_is_said_that_it_cannot(kind: str) -> None:
    xt = pytest.importorskip("x_transformers")
    layers, match = UNLIKE[kind]

    def run() -> dict[str, Any]:
        stack = xt.Decoder(dim=32, depth=2, heads=4, attn_dim_head=16, **layers, verbose=False)
        net = xt.TransformerWrapper(num_tokens=40, max_seq_len=24, attn_layers=stack)
        inputs = {"context": torch.randn(2, 9, 32)} if "cross_attend" in layers else {}
        net(torch.randint(0, 40, (2, 9)), **inputs)
        return dict(net.state_dict())

    if "can't" in match:
        with pytest.raises((RuntimeError, AssertionError)):
            run()
    elif "cross" in match:
        cross = [name for name in run() if name.startswith("attn_layers.layers.1.1.")]
        assert any("alibi" in name or "rel_proj" in name for name in cross)
    else:
        assert run()["attn_layers.polar_pos_emb.learned_bias"].shape[0] == 4


def test_checks_draw_no_random_numbers() -> None:
    theirs, config = state(), config_of(GQA)
    before = torch.get_rng_state()
    to_x_transformers(from_x_transformers(theirs, config), config)
    assert torch.equal(before, torch.get_rng_state())


def test_one_layer_has_no_values_to_mix_and_converts() -> None:
    layers = {"add_value_residual": True, "attn_kv_heads": 2, "depth": 1}
    model = build(Case(name="one", options=(), layers=layers))
    want = model.state_dict()
    got = from_x_transformers(to_x_transformers(want, model.config), model.config)
    assert got.keys() == want.keys()
