"""Weights folders: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.checkpoint import WeightsConfig, find_weights, load_weights, save_weights
from xtdist.config import CheckpointError, from_mapping
from xtdist.data import byte_tokenizer
from xtdist.model import ModelConfig, build_model
from xtdist.objective import AutoregressiveConfig

TREE = {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}, "max_seq_len": 32}


def config(**changes: object) -> WeightsConfig:
    model = from_mapping(ModelConfig, {**TREE, "num_tokens": 259, **changes})
    return WeightsConfig(
        model=model, objective=AutoregressiveConfig(), meta={"step": 7, "run": "r"}
    )


def saved(
    folder: Path, *, dtype: torch.dtype = torch.float32, **changes: object
) -> torch.nn.Module:
    wanted = config(**changes)
    model = build_model(wanted.model, generator=torch.Generator().manual_seed(3)).to(dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = folder.parent / "source_tokenizer.json"
    byte_tokenizer().save(tokenizer)
    save_weights(folder, model.state_dict(), wanted, tokenizer=tokenizer)
    return model


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_model_gives_the_same_logits_in_the_saved_dtype(
    tmp_path: Path, tie: bool, dtype: torch.dtype
) -> None:
    model = saved(tmp_path / "w", dtype=dtype, tie_embedding=tie)
    loaded = load_weights(tmp_path / "w")
    assert next(loaded.model.parameters()).dtype == dtype
    assert not loaded.model.training
    assert loaded.meta == {"step": 7, "run": "r"}
    assert loaded.tokenizer.sha256 == byte_tokenizer().sha256
    x = torch.randint(0, 259, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded.model(x), model.eval()(x))


def test_tied_embeddings_are_written_once_and_stay_tied(tmp_path: Path) -> None:
    saved(tmp_path / "tied", tie_embedding=True)
    saved(tmp_path / "free", tie_embedding=False)
    sizes = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("tied", "free")}
    assert sizes["free"] - sizes["tied"] >= 259 * 16 * 4
    model = load_weights(tmp_path / "tied").model
    x = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        before = model(x)
        next(p for p in model.parameters() if p.shape == (259, 16)).mul_(2)
        after = model(x)
    assert not torch.allclose(before, after)


def test_dtype_casts_and_the_digest_is_of_the_content(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    a, b = load_weights(tmp_path / "a", dtype=torch.bfloat16), load_weights(tmp_path / "b")
    assert next(a.model.parameters()).dtype == torch.bfloat16
    assert a.digest == b.digest
    saved(tmp_path / "c", tie_embedding=True)
    assert load_weights(tmp_path / "c").digest != a.digest


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_changed_byte_in_a_weights_folder_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("weights") / "w"
    saved(folder)
    victim = folder / data.draw(
        st.sampled_from(["model.safetensors", "config.json", "tokenizer.json"])
    )
    raw = bytearray(victim.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    victim.write_bytes(raw)
    with pytest.raises(CheckpointError, match=victim.name):
        load_weights(folder)


def test_weights_of_another_model_name_the_first_tensor_that_differs(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    saved(folder)
    other = config(dim=24)
    tokenizer = tmp_path / "source_tokenizer.json"
    state = build_model(config().model).state_dict()
    save_weights(folder, state, other, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_weights(folder)
    state.pop(next(iter(state)))
    save_weights(folder, state, config(), tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="missing"):
        load_weights(folder)


def test_a_pickle_is_not_weights(tmp_path: Path) -> None:
    saved(tmp_path / "w")
    torch.save({"x": torch.zeros(1)}, tmp_path / "w" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_weights(tmp_path / "w")


def test_a_run_means_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (5, 30, 9):
        saved(tmp_path / "checkpoints" / f"step_{step:08d}-aa" / "weights")
    found = find_weights(tmp_path)
    assert found == tmp_path / "checkpoints" / "step_00000030-aa" / "weights"
    assert find_weights(found.parent) == found
    with pytest.raises(CheckpointError, match="no weights there"):
        find_weights(tmp_path / "nowhere")


def test_config_json_is_plain_data_that_a_person_can_read(tmp_path: Path) -> None:
    saved(tmp_path / "w")
    raw = json.loads((tmp_path / "w" / "config.json").read_text())
    assert raw["model"]["dim"] == 16
    assert raw["objective"]["kind"] == "autoregressive"
