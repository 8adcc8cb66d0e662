"""Every command of the README runs as it stands there, on configs that are made small."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from xtdist.config import load
from xtdist.train import RunSpec

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
MAKE = [b for b in BLOCKS if b.startswith("make ")]
SHELL = [b for b in BLOCKS if not b.startswith("make ")]
BIN = Path(sys.executable).parent
SMALL_MODEL = {"dim": 32, "depth": 1, "heads": 2, "attention": {"dim_head": 16, "kv_heads": 2}}


def test_the_readme_has_commands() -> None:
    assert len(MAKE) >= 2
    assert len(SHELL) >= 5


@pytest.mark.parametrize(
    "target", sorted({w.split()[1] for b in MAKE for w in b.splitlines() if w.startswith("make ")})
)
def test_make_knows_every_target(target: str) -> None:
    out = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr


def test_the_tree_in_the_readme_is_the_tree() -> None:
    block = README.split("```text\n")[-1].split("```")[0]
    named = {line.split()[0] for line in block.splitlines()}
    tops = {f"{p.name}/" for p in ROOT.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    parts = {f"{p.parent.name}/" for p in (ROOT / "xtdist").glob("*/__init__.py")}
    assert tops | parts <= named
    for name in named - {"xtdist/"}:
        assert (ROOT / name).exists() or (ROOT / "xtdist" / name).exists(), name


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_the_settings_in_the_readme_are_settings(block: str, tmp_path: Path) -> None:
    run = yaml.safe_load((ROOT / "jobs" / "configs" / "llama_1b.yaml").read_text())
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run | yaml.safe_load(block)))
    load(RunSpec, tmp_path / "run.yaml")


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_python_examples_run(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what they write is not for the tree
    exec(compile(example, "README.md", "exec"), {})


@dataclass
class Sandbox:
    """A folder with the tree's jobs/ and cluster/, where commands run."""

    folder: Path
    port: int

    def bash(self, script: str, **env: str) -> str:
        """Run ``script`` with this environment's programs on PATH; its output."""
        words = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        words |= {"PATH": f"{BIN}:{words['PATH']}", "OMP_NUM_THREADS": "1", **env}
        out = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        assert out.returncode == 0, f"{script}\n{out.stdout}"
        return out.stdout


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    shutil.copytree(ROOT / "cluster", folder / "cluster")
    corpus = folder / "corpus"
    corpus.mkdir()
    for i in range(30):
        (corpus / f"{i}.txt").write_text(f"def read_file_{i}(path):\n    return open(path)\n" * 40)
    for path in (folder / "jobs" / "configs").glob("*.yaml"):
        tree = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump(_small(path.stem, tree, corpus)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    return Sandbox(folder, port)


def _small(name: str, tree: dict[str, Any], corpus: Path) -> dict[str, Any]:
    if name.startswith("prepare"):
        size = {"vocab_size": 300} if tree["tokenizer"]["kind"] == "bpe" else {}
        tree["source"] = {"kind": "files", "path": str(corpus)}
        return tree | {"tokenizer": tree["tokenizer"] | size, "valid_fraction": 0.2}
    if "loop" in tree:
        tree["model"] |= SMALL_MODEL
        tree["data"]["seq_len"] = 128
        tree["batch"] = {"tokens_per_step": 128 * max(8, tree["workers"].get("count", 0))}
        tree["optim"]["schedule"] = {"kind": "cosine", "warmup_steps": 1}
        tree["loop"] |= {"steps": 4, "valid_every": 2, "sample_tokens": 4}
        tree["checkpoint"] = {"every": 2}
    return tree


@pytest.fixture(scope="module")
def head(sandbox: Sandbox) -> Iterator[dict[str, str]]:
    """A cluster that stands for the one at HEAD."""
    out = sandbox.bash("cluster/local.sh up head", XTDIST_CPUS="2")
    words = out.replace("export ", "").split()
    yield dict(w.split("=", 1) for w in words)
    sandbox.bash("cluster/local.sh down head")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SHELL)))
def test_a_block_of_commands_runs(sandbox: Sandbox, number: int, request: Any) -> None:
    """In the order of the README: later blocks use what earlier ones made."""
    script = SHELL[number].replace("/corpus", str(sandbox.folder / "corpus"))
    script = script.replace("/shared/demo", str(sandbox.folder / "data" / "demo"))
    script = script.replace("/shared", str(sandbox.folder / "shared"))
    script = script.replace("8000", str(sandbox.port)).replace(
        "workers.count=64", "workers.count=2"
    )
    env: dict[str, str] = {"XTDIST_CPUS": "2"}
    if "http://HEAD:8265" in script:
        head = request.getfixturevalue("head")
        script = script.replace("http://HEAD:8265", head["RAY_API_SERVER_ADDRESS"])
        env |= {k: v for k, v in head.items() if k.startswith("RAY_AUTH")}
    if script.startswith("xtdist serve"):
        out = _served(sandbox, script)
        assert '"object":"text_completion"' in out.replace(" ", "")
    else:
        assert "Traceback" not in sandbox.bash(script, **env)


def _served(sandbox: Sandbox, script: str) -> str:
    """The first line in the background; the others when it answers."""
    first, rest = script.split("\n", 1)
    words = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    child = subprocess.Popen(
        ["bash", "-c", f"exec {first}"],
        cwd=sandbox.folder,
        env=words | {"PATH": f"{BIN}:{words['PATH']}"},
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            assert child.poll() is None, "serve ended"
            assert time.monotonic() < deadline, "serve did not answer"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{sandbox.port}/health", timeout=20):
                    break
            except OSError:
                time.sleep(0.5)
        return sandbox.bash(rest)
    finally:
        child.terminate()
        child.wait(60)
