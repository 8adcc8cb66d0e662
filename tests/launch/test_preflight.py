"""What is known before a worker starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from xtdist.checkpoint.layout import MANIFEST, write_manifest
from xtdist.config import CheckpointError, ConfigError, ResourceError, from_mapping, to_mapping
from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, TokenDataset, prepare
from xtdist.launch.datasets import known_data
from xtdist.launch.preflight import preflight, resolve
from xtdist.train import RunSpec
from xtdist.train.state import checkpoint_bytes, identity


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("launch")
    (root / "text").mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        (root / "text" / f"{i}.txt").write_text(" ".join(rng.choice(["a", "b", "c"], size=40)))
    config = PrepareConfig(
        output=str(root / "dataset"),
        source=FilesSource(path=str(root / "text")),
        tokenizer=ByteTokenizerConfig(),
        valid_fraction=0.3,
    )
    prepare(config)
    return root / "dataset"


@pytest.fixture
def spec(dataset: Path, tmp_path: Path) -> RunSpec:
    tree = {
        "name": "run",
        "output": str(tmp_path / "runs"),
        "data": {"path": str(dataset), "seq_len": 16},
        "model": {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}},
        "optim": {"schedule": {"kind": "constant", "warmup_steps": 1}},
        "batch": {"tokens_per_step": 160, "micro_batch_tokens": 32},
        "loop": {"steps": 10},
        "engine": {"precision": "fp32"},
        "workers": {"count": 3},
    }
    return resolve(from_mapping(RunSpec, tree))


def commit(spec: RunSpec, step: int) -> Path:
    """A checkpoint of ``spec``, as far as a manifest makes one."""
    folder = Path(spec.output) / spec.name / "checkpoints" / f"step_{step:08d}-aaaaaaaa"
    folder.mkdir(parents=True)
    own = identity(spec, known_data(spec), precision="fp32", step=step)
    write_manifest(folder, {}, {"step": step, "identity": own})
    return folder


def test_the_plan_says_how_a_step_is_cut(spec):
    """10 sequences over 3 workers: 4, 3, 3; in micro-batches of 2: 2 each."""
    plan = preflight(spec, cluster_gpus=0)
    text = "\n".join(plan.lines())
    assert "160 tokens = 10 sequences of 16: 3 workers x 2 micro-batches of 2" in text
    assert "(at most 4 sequences a worker)" in text
    assert f"id {TokenDataset.open(spec.data.path).dataset_id[:12]}" in text
    assert (plan.done_step, plan.finished, plan.spec.engine.precision) == (0, False, "fp32")
    assert not plan.folder.exists()


def test_gpus_are_taken_where_there_are_some(spec):
    assert preflight(spec, cluster_gpus=4).gpus_per_worker == 1
    assert preflight(spec, cluster_gpus=0).gpus_per_worker == 0


def test_the_newest_checkpoint_that_can_be_read_is_where_it_goes_on(spec):
    commit(spec, 4)
    newest = commit(spec, 8)
    assert preflight(spec, cluster_gpus=0).done_step == 8
    (newest / MANIFEST).write_text("{")
    assert preflight(spec, cluster_gpus=0).done_step == 4


def test_a_run_whose_checkpoints_lie_elsewhere_does_not_begin_anew(spec, tmp_path):
    folder = commit(spec, 4).parent.parent
    moved = from_mapping(RunSpec, to_mapping(spec) | {"checkpoint": {"url": str(tmp_path / "new")}})
    assert preflight(moved, cluster_gpus=0).done_step == 0  # not known what it was started with
    for damaged in ("", "[1]", "checkpoint: 1", "checkpoint: {url: 7}", "a: [", "\0"):
        (folder / "config.yaml").write_text(damaged)
        assert preflight(moved, cluster_gpus=0).done_step == 0
    (folder / "config.yaml").write_text(yaml.safe_dump(to_mapping(spec)))
    with pytest.raises(CheckpointError, match=f"{tmp_path}/new/run has no .* {folder}/checkpoints"):
        preflight(moved, cluster_gpus=0)
    (folder / "checkpoints").rename(tmp_path / "old")
    assert preflight(moved, cluster_gpus=0).done_step == 0


def test_a_folder_that_is_a_file_is_a_users_mistake(spec):
    folder = Path(spec.output) / spec.name
    Path(spec.output).mkdir()
    folder.write_text("")
    with pytest.raises(ResourceError, match="is a file"):
        preflight(spec, cluster_gpus=0)
    tree = to_mapping(spec) | {"output": str(folder.parent / "x")}
    tree["checkpoint"] = {"url": str(folder)}
    with pytest.raises(ResourceError, match="is a file"):
        preflight(from_mapping(RunSpec, tree), cluster_gpus=0)


def test_a_run_is_finished_at_its_last_step(spec):
    commit(spec, 10)
    assert preflight(spec, cluster_gpus=0).finished


def test_the_vocabulary_and_the_length_come_from_the_data(spec):
    assert (spec.model.num_tokens, spec.model.max_seq_len) == (259, 16)


def test_the_plan_tells_warm_ups_and_an_order_of_sums(spec):
    tree = to_mapping(spec)
    tree["batch"]["warmup"] = [{"until_step": 3, "tokens_per_step": 64}]
    tree["batch"]["seq_len_warmup"] = [{"until_step": 4, "seq_len": 8}]
    tree["engine"]["reduction"] = "canonical"
    lines = preflight(from_mapping(RunSpec, tree), cluster_gpus=0).lines()
    assert "warm-up  64 tokens before step 3" in lines
    assert "warm-up  rows of 8 before step 4" in lines
    assert "engine   ZeRO-2, fp32, CPU, reduction: canonical" in lines


def test_averaged_weights_count_in_the_space_that_checkpoints_need():
    alone, averaged = (checkpoint_bytes(1_000_000, averaged=each) for each in (False, True))
    assert (alone, averaged) == (17_000_000, 25_000_000)


MODELS = {
    "context": ({"cross_attention": {}}, "model: cross_attention needs context="),
    "condition": ({"norm": {"kind": "adaptive_rmsnorm"}}, "adaptive_rmsnorm needs condition="),
    "tables": ({"embedding": {"tables": [{"name": "x", "tokens": 3}]}}, "needs embed_ids="),
    "heads": ({"head": {"heads": 2}}, "model: it has 2 heads"),
    "pool": ({"pool": {"kind": "mean"}}, "model: it has one output for the whole sequence"),
    "prefix": ({"prefix": True}, "model: prefix=true needs prefix_attn_len="),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_that_tokens_alone_can_not_train_is_refused_when_the_config_is_read(spec, kind):
    changes, message = MODELS[kind]
    tree = to_mapping(spec)
    tree["model"] |= changes
    with pytest.raises(ConfigError, match=message):
        from_mapping(RunSpec, tree)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"head": {"dim": 7}}}, r"model\.head\.dim: got 7, but all 259 tokens"),
    ],
)
def test_what_the_workers_would_refuse_is_refused_before_they_start(spec, changes, message):
    tree = to_mapping(spec)
    tree["model"] |= {"num_tokens": 0, "max_seq_len": 0}
    for part, values in changes.items():
        tree[part] |= values
    with pytest.raises(ConfigError, match=message):
        resolve(from_mapping(RunSpec, tree))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("objective", {"ignore_index": 10**30}),
        ("track", {"stragglers": {"windows": 10**30}}),
        ("stability", {"spike": {"kind": "rollback", "window": 10**30}}),
    ],
)
def test_numbers_that_no_machine_can_hold_are_refused_when_the_config_is_read(spec, part, change):
    tree = to_mapping(spec)
    tree[part] |= change
    with pytest.raises(ConfigError, match=f"{part}.*: got 10{{30}}"):
        from_mapping(RunSpec, tree)


def test_an_objective_s_own_parameters_are_counted(spec):
    alone = preflight(spec, cluster_gpus=0).parameters
    tree = to_mapping(spec)
    tree["model"] |= {"causal": False}
    tree["objective"] = {"kind": "nonautoregressive", "self_token_critic": True}
    both = preflight(from_mapping(RunSpec, tree), cluster_gpus=0).parameters
    assert both == alone + 16 + 1


def test_a_chat_template_is_found_from_everywhere_and_must_be_one(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("talk.jinja").write_text("{{ messages }}")
    checkpoint = replace(spec.checkpoint, chat_template="talk.jinja")
    found = resolve(replace(spec, checkpoint=checkpoint)).checkpoint.chat_template
    assert found == str(tmp_path / "talk.jinja")
    Path("talk.jinja").write_text("{% if messages %}")
    with pytest.raises(ConfigError, match=r"checkpoint\.chat_template: .*talk\.jinja: line 1"):
        resolve(replace(spec, checkpoint=checkpoint))
