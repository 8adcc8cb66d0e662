"""The command line in this process: what it prints, its exit code, and what it leaves behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from xtdist.checkpoint import WeightsConfig, save_weights
from xtdist.cli.main import main
from xtdist.config import from_mapping
from xtdist.data import BpeTokenizerConfig, ByteTokenizerConfig, FilesSource, PrepareConfig, prepare
from xtdist.model.wrapper import build_model

WORDS = ["def", "return", "class", "self", "for", "in", "if", "None", "x", "y", "0", "(", ")", "="]


@dataclass(frozen=True)
class Ended:
    """A command's end."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]
Refused = Callable[..., str]


@pytest.fixture
def xtdist(capsys: pytest.CaptureFixture[str]) -> Command:
    """``xtdist("train", …)`` runs one command line."""

    def run(*words: object) -> Ended:
        capsys.readouterr()
        code = main([str(w) for w in words])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(xtdist: Command, tmp_path: Path) -> Refused:
    """``refused("train", …)``: the message of a command that a user's mistake ended, which is all
    that it left behind."""

    def run(*words: object) -> str:
        before = tree(tmp_path)
        ended = xtdist(*words)
        assert ended.code == 2, ended
        assert ended.err.startswith("error: ")
        assert ended.err.count("error: ") == 1
        assert "Traceback" not in ended.out + ended.err
        assert tree(tmp_path) == before
        return ended.err

    return run


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below ``folder``, with its digest."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        if p.is_file()
        else "folder"
        for p in folder.rglob("*")
    }


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(30):
        words = rng.choice(WORDS, size=rng.integers(20, 80))
        (root / f"{i}.txt").write_text(" ".join(words))
    return root


@pytest.fixture(scope="session")
def datasets(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the text as ``byte`` and as ``bpe`` tokens. Read only."""
    root = tmp_path_factory.mktemp("datasets")
    kinds = {"byte": ByteTokenizerConfig(), "bpe": BpeTokenizerConfig(vocab_size=270)}
    for name, tokenizer in kinds.items():
        prepare(
            PrepareConfig(
                output=str(root / name),
                source=FilesSource(path=str(text)),
                tokenizer=tokenizer,
                valid_fraction=0.3,
            )
        )
    return root


@pytest.fixture
def make_config(tmp_path: Path, datasets: Path) -> Callable[..., Path]:
    """``make_config({"loop.steps": "many"})``: a YAML whose run would go to ``tmp_path/runs``."""

    def make(changes: dict[str, Any] | None = None) -> Path:
        tree_: dict[str, Any] = {
            "name": "tiny",
            "output": str(tmp_path / "runs"),
            "data": {"path": str(datasets / "byte"), "seq_len": 16},
            "model": {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}},
            "optim": {"lr": 1e-3, "schedule": {"kind": "constant", "warmup_steps": 1}},
            "batch": {"tokens_per_step": 64, "micro_batch_tokens": 32},
            "loop": {"steps": 4},
            "engine": {"precision": "fp32"},
            "workers": {"count": 2},
        }
        for path, value in (changes or {}).items():
            *parents, last = path.split(".")
            node = tree_
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = value
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(tree_, sort_keys=False))
        return path

    return make


@pytest.fixture
def cluster_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if connected to a Ray cluster of 2 CPUs; nothing is started."""
    import ray

    monkeypatch.setattr("xtdist.launch.trainer.connect", lambda *a, **k: False)
    monkeypatch.setattr("xtdist.serve.server.connect", lambda *a, **k: False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})


@pytest.fixture
def save_model(tmp_path: Path, datasets: Path) -> Callable[..., Path]:
    """``save_model("name", …)``: a folder with the weights of a random model that takes 32
    tokens."""

    def save(
        name: str, *, kind: str = "autoregressive", tokenizer: str = "byte", num_tokens: int = 259
    ) -> Path:
        model: dict[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "attention": {"dim_head": 8}}
        model |= {"num_tokens": num_tokens, "max_seq_len": 32, "causal": kind == "autoregressive"}
        config = from_mapping(
            WeightsConfig, {"model": model, "objective": {"kind": kind}, "meta": {"step": 7}}
        )
        net = build_model(config.model, generator=torch.Generator().manual_seed(0))
        path = datasets / tokenizer / "tokenizer.json"
        save_weights(tmp_path / name, net.state_dict(), config, tokenizer=path)
        return tmp_path / name

    return save
