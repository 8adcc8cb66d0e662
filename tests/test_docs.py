"""The documents beside the README: their patches apply to the tree and do what they say, their
examples run, their links lead somewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import yaml

from xtdist.config import load
from xtdist.train import RunSpec

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / "xtdist/README.md").read_text()
MOVING = (ROOT / "xtdist/model/MIGRATION.md").read_text()
PAGES = sorted(
    p
    for p in ROOT.rglob("*.md")
    if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)
    and "site-packages" not in p.parts
)
NORM, CALLBACK = re.findall(r"```diff\n(.*?)```", GUIDE, re.DOTALL)


def patched(folder: Path, patch: str) -> Path:
    """A copy of the package with ``patch`` applied, in ``folder``."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "xtdist", folder / "xtdist", ignore=ignored)
    subprocess.run(
        ["git", "apply", "-p1", "-"], cwd=folder, input=patch, text=True, check=True, timeout=60
    )
    return folder


def run(tree: Path, program: str, *paths: Path) -> str:
    """Run ``program`` with the package of ``tree``."""
    where = os.pathsep.join(map(str, (tree, *paths)))
    env = {**os.environ, "PYTHONPATH": where, "PYTHONDONTWRITEBYTECODE": "1"}
    out = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert out.returncode == 0, out.stdout
    return out.stdout


def test_the_guides_model_option_is_one(tmp_path):
    """A model has it, learns with it, and the page of options lists it."""
    (settings,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    said = run(
        patched(tmp_path, NORM),
        f"""
import torch, yaml, xtdist
from xtdist.config import from_mapping
from xtdist.model import build_model
from xtdist.model.config import ModelConfig
from xtdist.model.options.matrix import matrix
tree = yaml.safe_load({settings!r})["model"]
sizes = dict(dim=16, depth=1, heads=2, num_tokens=10, max_seq_len=8)
net = build_model(from_mapping(ModelConfig, tree | sizes))
norm = net.layers.final_norm
x = torch.randn(3, 16)
torch.testing.assert_close(norm(x), x / (x.abs().mean(-1, keepdim=True) + 1e-6))
net(torch.arange(8)[None]).sum().backward()
assert all(p.grad is not None for p in net.parameters())
assert "mean-abs norm" in matrix()
print(xtdist.__file__)
""",
    )
    assert str(tmp_path) in said


@pytest.mark.slow
def test_the_guides_callback_is_called(tmp_path):
    tree = patched(tmp_path, CALLBACK)
    run(
        tree,
        """
from pathlib import Path
from conftest import make_dataset
from ranks import run_ranks
from xtdist.config import from_mapping
from xtdist.data import load_tokenizer
from xtdist.train import RunSpec, fit_to_data
data = make_dataset(Path("."), seed=0)
spec = from_mapping(RunSpec, {
    "name": "beats", "output": str(Path("runs").resolve()),
    "data": {"path": str(data.resolve()), "seq_len": 16},
    "model": {"dim": 16, "depth": 1, "heads": 2},
    "batch": {"tokens_per_step": 64, "micro_batch_tokens": 64},
    "loop": {"steps": 3, "valid_every": 0}, "engine": {"precision": "fp32"},
})
spec = fit_to_data(spec, vocab_size=load_tokenizer(data / "tokenizer.json").vocab_size)
assert run_ranks([spec])[0].ok
""",
        ROOT / "tests/train",
    )
    step, loss = (tree / "runs/beats/heartbeat").read_text().split()
    assert step == "3"
    assert 0 < float(loss) < 10


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", GUIDE + MOVING, re.DOTALL))
def test_the_examples_run(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(textwrap.dedent(example), "README.md", "exec"), {})


def test_the_three_lines_of_the_jobs_are_settings_of_a_run(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "jobs/README.md").read_text(), re.DOTALL)
    tree = yaml.safe_load((ROOT / "jobs/configs/demo_ar.yaml").read_text())
    tree["batch"]["tokens_per_step"] = 64 * tree["data"]["seq_len"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree | yaml.safe_load(block)))
    assert load(RunSpec, tmp_path / "run.yaml", []).config.workers.count == 64


def test_the_jobs_page_names_every_job():
    named = set(re.findall(r"^\| `(\w+\.py)`", (ROOT / "jobs/README.md").read_text(), re.MULTILINE))
    assert named == {p.name for p in (ROOT / "jobs").glob("*.py")}


def test_the_layers_of_the_guide_are_those_that_are_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = [line.replace("xtdist.", "") for line in contracts["contracts"][0]["layers"]]
    shown = GUIDE.split("    cli    ")[1].split("\n\n")[0]
    first = ["cli", *(re.split(r"\s{3,}", line.strip())[0] for line in shown.splitlines()[1:])]
    assert first == layers


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_within_the_tree_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), link
