"""Weights from and to x-transformers: files, and weights of another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from option_grid import Case, build, config_of
from safetensors.torch import save_file

from xtdist.config import CheckpointError
from xtdist.model import build_model
from xtdist.model.compat_weights import (
    from_x_transformers,
    load_x_transformers,
    to_x_transformers,
)

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
    name = "attn_layers.layers.0.1.to_k.weight"
    with pytest.raises(CheckpointError, match=r"no weight .*layers\.0\.1\.to_k\.weight"):
        from_x_transformers({k: v for k, v in theirs.items() if k != name}, config)
    with pytest.raises(CheckpointError, match="x-transformers has no such weight"):
        to_x_transformers({"odd": torch.ones(1)}, config)
