"""What is known of a run's datasets before a worker starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xtdist.config import ConfigError, DataError, from_mapping, to_mapping
from xtdist.data import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    FilesSource,
    PrepareConfig,
    TokenDataset,
    View,
    prepare,
)
from xtdist.launch.datasets import (
    check_datasets,
    corpora_of,
    data_lines,
    data_paths,
    known_data,
    with_absolute_paths,
)
from xtdist.launch.preflight import resolve
from xtdist.train import RunSpec
from xtdist.train.spec import RunDataConfig

Make = Callable[..., RunDataConfig]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Datasets a and b in bytes, c in pairs of them."""
    root, rng = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    for name, words in (("a", 40), ("b", 60), ("c", 40)):
        (root / f"{name}-text").mkdir()
        for i in range(20):
            text = " ".join(rng.choice(["on", "off", "to"], size=words))
            (root / f"{name}-text" / f"{i}.txt").write_text(f"{name} {text}")
        prepare(
            PrepareConfig(
                output=str(root / name),
                source=FilesSource(path=str(root / f"{name}-text")),
                tokenizer=BpeTokenizerConfig(vocab_size=265)
                if name == "c"
                else ByteTokenizerConfig(),
                valid_fraction=0.3,
            )
        )
    return {name: str(root / name) for name in "abc"}


@pytest.fixture
def mixture(folders: dict[str, str]) -> Make:
    """``mixture("a", "b", documents="packed")``: with weights 1, 2, 3 …"""

    def make(*names: str, **more: Any) -> RunDataConfig:
        corpora = {n: {"path": folders[n], "weight": i} for i, n in enumerate(names, 1)}
        return from_mapping(RunDataConfig, {"corpora": corpora, "seq_len": 16, **more})

    return make


def view_of(data: RunDataConfig) -> View:
    """As far as the manifests say it."""
    tree: dict[str, Any] = {"name": "run", "data": to_mapping(data), "loop": {"steps": 1}}
    tree |= {"model": {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}}}
    return known_data(from_mapping(RunSpec, tree))


def test_all_corpora_are_there(mixture: Make, folders: dict[str, str]) -> None:
    data = mixture("a", "b")
    assert check_datasets(data).vocab_size == 259
    a, b = corpora_of(view_of(data))
    train = TokenDataset.open(folders["b"])
    assert (a.name, b.name, b.path) == ("a", "b", folders["b"])
    assert (b.dataset_id, b.tokens, b.documents) == (
        train.dataset_id,
        train.total_tokens,
        train.num_documents,
    )


def test_corpora_of_different_tokenizers_are_refused(mixture: Make) -> None:
    with pytest.raises(DataError, match=r"data\.corpora\.c\.path: .*another tokenizer.*259\)"):
        check_datasets(mixture("a", "c"))


def test_a_corpus_that_is_too_short_for_a_window_is_named(
    mixture: Make, folders: dict[str, str]
) -> None:
    valid = TokenDataset.open(folders["a"], "valid").total_tokens
    long = valid  # one token short of a window
    for documents in ("joined", "masked"):
        with pytest.raises(DataError, match=f"{folders['a']}: its valid split has {valid} tokens"):
            check_datasets(mixture("b", "a", seq_len=long, documents=documents))
    check_datasets(mixture("b", "a", seq_len=valid - 1))
    check_datasets(mixture("b", "a", seq_len=long, documents="packed"))


def test_a_corpus_that_is_not_there_is_named(folders: dict[str, str]) -> None:
    corpora = {"a": {"path": folders["a"], "weight": 1}, "no": {"path": "/no/where", "weight": 1}}
    with pytest.raises(DataError, match="/no/where: no such folder"):
        check_datasets(from_mapping(RunDataConfig, {"corpora": corpora}))


def test_a_run_of_a_mixture_is_resolved(mixture: Make, tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "name": "run",
        "output": str(tmp_path),
        "data": to_mapping(mixture("a", "b", documents="packed")),
        "model": {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}},
        "optim": {"schedule": {"kind": "constant", "warmup_steps": 1}},
        "batch": {"tokens_per_step": 160},
        "loop": {"steps": 10},
    }
    spec = resolve(from_mapping(RunSpec, tree))
    assert (spec.model.num_tokens, spec.model.max_seq_len) == (259, 16)
    tree["model"]["shift_tokens"] = 1
    for documents in ("masked", "packed"):
        tree["data"]["documents"] = documents
        with pytest.raises(ConfigError, match=f"data.documents: got {documents}, but model can't"):
            from_mapping(RunSpec, tree)
    tree["data"]["documents"] = "joined"
    from_mapping(RunSpec, tree)


def test_paths_become_absolute_unless_they_are_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    paths = {"a": "some/where", "b": "~/data", "c": "s3://bucket/data?region=x", "d": "/there"}
    corpora = {name: {"path": path, "weight": 1} for name, path in paths.items()}
    data = from_mapping(RunDataConfig, {"corpora": corpora})
    want = {"a": f"{tmp_path}/some/where", "b": "/home/me/data", "c": paths["c"], "d": "/there"}
    assert data_paths(data) == {f"data.corpora.{n}.path": p for n, p in want.items()}
    assert with_absolute_paths(data).sources == want
    plain = RunDataConfig(path="some/where")
    assert data_paths(plain) == {"data.path": want["a"]}
    assert with_absolute_paths(plain) == dataclasses.replace(plain, path=want["a"])


def test_the_plan_says_what_is_read(mixture: Make, folders: dict[str, str]) -> None:
    phases = [{"from_step": 1000, "weights": {"a": 9, "b": 1}}]
    data = mixture("a", "b", phases=phases, skip=[[5, 8], [20, 21]], documents="masked")
    a, b = corpora_of(view_of(data))
    assert data_lines(data, (a, b)) == [
        f"data     33.33 % a: {a.tokens:,} tokens in {folders['a']} (id {a.dataset_id[:12]})",
        f"         66.67 % b: {b.tokens:,} tokens in {folders['b']} (id {b.dataset_id[:12]})",
        "         from step 1,000 of the data: a 90 %, b 10 %",
        "         documents masked",
        "         steps of the data that are left out: 5 to 7, 20 to 20",
    ]
