"""Weights folders: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_crashes import save as commit_step

from xtdist.checkpoint import (
    CheckpointStore,
    WeightsConfig,
    find_weights,
    load_weights,
    save_weights,
)
from xtdist.checkpoint.layout import hash_file, write_manifest
from xtdist.checkpoint.objects import default_cache
from xtdist.checkpoint.weights import locate_weights
from xtdist.config import CheckpointError, from_mapping
from xtdist.data import byte_tokenizer
from xtdist.model import ModelConfig, build_model
from xtdist.nn.quantize import quantize_int8
from xtdist.objective import AutoregressiveConfig, Objective, build_objective

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


def test_where_a_run_is_now_stays_there_when_newer_checkpoints_come(tmp_path: Path) -> None:
    saved(tmp_path / "checkpoints" / "step_00000005-aa" / "weights")
    located = locate_weights(tmp_path)
    saved(tmp_path / "checkpoints" / "step_00000006-aa" / "weights")
    assert locate_weights(located) == located == str(find_weights(located))
    assert locate_weights(tmp_path) == str(find_weights(tmp_path)) != located


def commit(store: CheckpointStore, step: int) -> str:
    commit_step(store, step)
    return store.names()[-1]


def test_where_a_run_on_a_store_is_now_is_said_without_fetching(bucket: str) -> None:
    store = CheckpointStore(bucket)
    first = commit(store, 5)
    located = locate_weights(bucket)
    assert located == f"{bucket}/{first}" == locate_weights(f"{located}/weights")
    newer = commit(store, 6)
    assert locate_weights(located) == located
    assert locate_weights(f"{bucket}/weights-ema") == f"{bucket}/{newer}/weights-ema"
    assert locate_weights(f"{bucket}?region=x") == f"{bucket}/{newer}?region=x"
    with pytest.raises(CheckpointError, match="no checkpoints there"):
        locate_weights(f"{bucket}/nowhere")
    assert not default_cache().exists()


def test_config_json_is_plain_data_that_a_person_can_read(tmp_path: Path) -> None:
    saved(tmp_path / "w")
    raw = json.loads((tmp_path / "w" / "config.json").read_text())
    assert raw["model"]["dim"] == 16
    assert raw["objective"]["kind"] == "autoregressive"


def test_int8_weights_are_those_of_the_fp32_model_quantised(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    x = torch.zeros(1, 3, dtype=torch.long)
    wanted = quantize_int8(load_weights(tmp_path / "a", dtype=torch.float32).model)
    got = load_weights(tmp_path / "a", dtype=torch.int8).model
    with torch.no_grad():
        assert torch.equal(got(x), wanted(x))


def saved_objective(folder: Path, objective: dict[str, object]) -> Objective:
    wanted = from_mapping(
        WeightsConfig,
        {
            "model": {**TREE, "num_tokens": 259, "causal": False},
            "objective": {"kind": "nonautoregressive", **objective},
            "meta": {},
        },
    )
    generator = torch.Generator().manual_seed(3)
    trained = build_objective(
        wanted.objective,
        build_model(wanted.model, generator=generator),
        mask_id=257,
        pad_id=258,
        generator=generator,
    )
    state = trained.state_dict()
    net = {n.removeprefix("net."): t for n, t in state.items() if n.startswith("net.")}
    own = {n: t for n, t in state.items() if not n.startswith("net.")}
    tokenizer = folder.parent / "source_tokenizer.json"
    byte_tokenizer().save(tokenizer)
    save_weights(folder, net, wanted, tokenizer=tokenizer, own=own)
    return trained


CRITIC = {"dim": 24, "depth": 1, "heads": 2, "causal": False, "attention": {"dim_head": 8}}


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        ({}, set()),
        ({"self_cond": True}, {"self_conditioning"}),
        ({"self_cond": True, "self_token_critic": True}, {"self_conditioning", "critic_head"}),
        ({"token_critic": CRITIC}, {"token_critic"}),
    ],
    ids=["nothing", "conditioned", "self critic", "critic"],
)
def test_an_objectives_own_parameters_are_saved_beside_the_network(
    tmp_path: Path, objective: dict[str, object], own: set[str]
) -> None:
    saved_ = saved_objective(tmp_path / "w", objective)
    assert (tmp_path / "w" / "objective.safetensors").exists() == bool(own)
    loaded = load_weights(tmp_path / "w")
    assert not any(part.training for part in loaded.trained.modules())
    assert loaded.trained.net is loaded.model
    want, got = saved_.state_dict(), loaded.trained.state_dict()
    assert want.keys() == got.keys()
    assert {n.split(".")[0] for n in got} == {"net", *own}
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name
    half = load_weights(tmp_path / "w", dtype=torch.bfloat16)
    assert {p.dtype for p in half.trained.parameters()} == {torch.bfloat16}


def test_own_parameters_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    saved_objective(folder, {"self_cond": True})
    for name, change, problem in (
        ("more", {"self_token_critic": True}, "2 tensors missing, 'critic_head.weight' first"),
        ("less", {"self_cond": False}, "2 tensors unknown, 'self_conditioning.gain' first"),
    ):
        other = tmp_path / name
        shutil.copytree(folder, other)
        tree = json.loads((other / "config.json").read_text())
        tree["objective"] |= change
        (other / "config.json").write_text(json.dumps(tree))
        files = {n: hash_file(other / n) for n in FILES}
        write_manifest(other, files, {"kind": "weights"})
        with pytest.raises(CheckpointError, match=problem):
            load_weights(other)
    (folder / "objective.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"objective\.safetensors"):
        load_weights(folder)


FILES = ("model.safetensors", "objective.safetensors", "config.json", "tokenizer.json")
