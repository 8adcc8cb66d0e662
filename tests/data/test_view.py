"""A view: the corpora of a run, and what a checkpoint of it belongs to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtdist.config import ConfigError, DataError
from xtdist.data import (
    ByteTokenizerConfig,
    DataConfig,
    PrepareConfig,
    TokenDataset,
    View,
    open_view,
    prepare,
)

MakeSettings = Callable[..., PrepareConfig]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, settings: MakeSettings) -> dict[str, Path]:
    """Two datasets of the same tokenizer: the same text, split and cut into shards differently."""
    root = tmp_path_factory.mktemp("two")
    for name, share, shard in (("web", 0.2, 20_000), ("code", 0.7, 7_000)):
        prepare(
            settings(
                root / name,
                tokenizer=ByteTokenizerConfig(),
                valid_fraction=share,
                shard_tokens=shard,
            )
        )
    return {name: root / name for name in ("web", "code")}


def config_of(two: dict[str, Path], **changes: Any) -> DataConfig:
    corpora = {
        "web": {"path": str(two["web"]), "weight": 0.7},
        "code": {"path": str(two["code"]), "weight": 0.3},
    }
    return DataConfig(**{"corpora": corpora, **changes})


def view_of(config: DataConfig, **changes: Any) -> View:
    return open_view(config, **{"seq_len": 64, "seed": 5, "global_batch": 12, **changes})


def test_a_view_gives_every_corpus_its_share_of_its_own_windows(two: dict[str, Path]) -> None:
    view = view_of(config_of(two))
    assert view.names == ("code", "web") == tuple(view.datasets)
    for name, windows in zip(view.names, view.windows, strict=True):
        data = TokenDataset.open(two[name])
        assert windows.count == (data.total_tokens - 1) // 64
        assert view.datasets[name].dataset_id == data.dataset_id
    samples = view.order.samples_between(0, 50)
    assert np.bincount(samples.corpus.reshape(-1)).tolist() == [180, 420]
    for number, windows in enumerate(view.windows):
        mine = samples.index[samples.corpus == number]
        assert mine.max() < windows.count
        tokens = np.empty((len(mine), 65), np.uint16)
        windows.fill(mine, tokens, None)
        data = TokenDataset.open(two[view.names[number]])
        for row, window in zip(tokens[:20], mine.tolist(), strict=False):
            np.testing.assert_array_equal(row, data.read(window * 64, window * 64 + 65))


def test_the_order_of_the_names_changes_nothing(two: dict[str, Path]) -> None:
    config = config_of(two)
    turned = DataConfig(corpora=dict(reversed(config.corpora.items())))
    one, other = (view_of(c).order.samples_between(0, 20) for c in (config, turned))
    np.testing.assert_array_equal(one.corpus, other.corpus)
    np.testing.assert_array_equal(one.index, other.index)


def test_one_dataset_alone_is_a_view_too(two: dict[str, Path]) -> None:
    view = view_of(DataConfig(path=str(two["web"])), seq_len=32, global_batch=4)
    assert (view.names, view.seq_len, view.global_batch) == (("data",), 32, 4)
    assert view.tokenizer.sha256 == TokenDataset.open(two["web"]).tokenizer.sha256
    valid = open_view(view.config, "valid", seq_len=32, seed=0, global_batch=4)
    assert valid.datasets["data"].split == "valid"
    assert valid.order.counts["data"] != view.order.counts["data"]


def test_corpora_of_different_tokenizers_are_refused_by_name(
    two: dict[str, Path], built: Path
) -> None:
    corpora = {name: {"path": str(path), "weight": 1} for name, path in two.items()}
    corpora["bpe"] = {"path": str(built), "weight": 1}
    with pytest.raises(DataError) as raised:
        view_of(DataConfig(corpora=corpora))  # type: ignore[arg-type]
    text = str(raised.value)
    for word in ("'code'", "'bpe'", str(two["code"]), str(built), "different tokenizers"):
        assert word in text
    assert "'web'" not in text


def test_a_corpus_that_cannot_be_read_is_named(two: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        view_of(DataConfig(path=str(tmp_path / "nowhere")))
    with pytest.raises(DataError, match="no split 'test'"):
        open_view(config_of(two), "test", seq_len=64, seed=0, global_batch=4)
    with pytest.raises(DataError, match=f"{two['code']}.* shorter than one sample"):
        view_of(config_of(two), seq_len=10**6)
    with pytest.raises(ConfigError, match="global_batch: got 0"):
        view_of(config_of(two), global_batch=0)


LATE = {
    "a phase": {"phases": [{"from_step": 100, "weights": {"web": 0, "code": 1}}]},
    "skipped steps": {"skip": [[100, 110], [200, 205]]},
    "both": {
        "phases": [{"from_step": 500, "weights": {"web": 1, "code": 1}}],
        "skip": [[100, 101]],
    },
}


@pytest.mark.parametrize("change", LATE.values(), ids=LATE)
def test_a_resume_may_change_what_lies_in_its_future(
    two: dict[str, Path], change: dict[str, Any]
) -> None:
    """A checkpoint of step 100 has read the steps of data 0 to 99."""
    before, after = view_of(config_of(two)), view_of(config_of(two, **change))
    assert before.identity(100) == after.identity(100)
    assert before.identity(600) != after.identity(600)
    old, new = (v.order.samples_between(0, 100) for v in (before, after))
    np.testing.assert_array_equal(old.index, new.index)
    np.testing.assert_array_equal(old.corpus, new.corpus)


@pytest.mark.parametrize("name", ["math", "data"])
def test_a_resume_may_add_a_corpus_that_later_phases_read(two: dict[str, Path], name: str) -> None:
    corpora = {
        n: {"path": str(p), "weight": w} for (n, p), w in zip(two.items(), (0.7, 0.3), strict=True)
    }
    more = {**corpora, name: {"path": str(two["code"]), "weight": 0}}
    phases = [{"from_step": 100, "weights": {"web": 1, "code": 1, name: 2}}]
    before = view_of(config_of(two))
    after = view_of(DataConfig(corpora=more, phases=phases))  # type: ignore[arg-type]
    assert before.identity(100) == after.identity(100)
    assert set(after.identity(101)["datasets"]) == {"web", "code", name}
    old, new = (v.order.samples_between(0, 100) for v in (before, after))
    np.testing.assert_array_equal(old.index, new.index)


EARLY: dict[str, tuple[dict[str, Any], dict[str, Any], set[str]]] = {
    "skip": ({"skip": [[99, 100]]}, {}, {"skip"}),
    "phases": (
        {"phases": [{"from_step": 99, "weights": {"web": 1, "code": 1}}]},
        {},
        {"phases"},
    ),
    "shuffle": ({"shuffle": {"kind": "blocks"}}, {}, {"shuffle"}),
    "block_tokens": (
        {"shuffle": {"kind": "blocks", "block_tokens": 1000}},
        {},
        {"shuffle"},
    ),
    "documents": ({"documents": "masked"}, {}, {"documents"}),
    "seq_len": ({}, {"seq_len": 63}, {"seq_len"}),
    "seed": ({}, {"seed": 6}, {"seed"}),
    "global_batch": ({}, {"global_batch": 13}, {"global_batch"}),
}


@pytest.mark.parametrize(("config", "args", "fields"), EARLY.values(), ids=EARLY)
def test_what_shaped_the_past_is_named_when_it_changes(
    two: dict[str, Path], config: dict[str, Any], args: dict[str, Any], fields: set[str]
) -> None:
    before = view_of(config_of(two)).identity(100)
    after = view_of(config_of(two, **config), **args).identity(100)
    assert {k for k in before | after if before.get(k) != after.get(k)} == fields
    assert json.loads(json.dumps(after)) == after


def test_other_weights_and_other_data_are_another_identity(
    two: dict[str, Path], tmp_path: Path, settings: MakeSettings
) -> None:
    before = view_of(config_of(two)).identity(10)
    moved = Path(shutil.copytree(two["web"], tmp_path / "moved"))
    assert view_of(config_of({**two, "web": moved})).identity(10) == before
    prepare(settings(tmp_path / "other", tokenizer=ByteTokenizerConfig(), valid_fraction=0.4))
    after = view_of(config_of({**two, "web": tmp_path / "other"})).identity(10)
    assert after["datasets"]["code"] == before["datasets"]["code"]
    assert after["datasets"]["web"] != before["datasets"]["web"]
    heavier = config_of(two).corpora["web"].path
    corpora = {
        "web": {"path": heavier, "weight": 0.8},
        "code": {"path": str(two["code"]), "weight": 0.3},
    }
    after = view_of(DataConfig(corpora=corpora)).identity(10)  # type: ignore[arg-type]
    assert (before["weights"], after["weights"]) == (
        {"web": 0.7, "code": 0.3},
        {"web": 0.8, "code": 0.3},
    )
