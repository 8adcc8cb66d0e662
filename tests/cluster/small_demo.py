"""The demo's configs, made small: what takes minutes in jobs/configs takes seconds here."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml
from manifests import ROOT


def make_small_demo(folder: Path) -> None:
    """A copy of jobs/ in ``folder``, whose prepare_demo.yaml reads a corpus that is made here and
    whose demo_ar.yaml has a tiny model and four steps."""
    shutil.copytree(ROOT / "jobs", folder / "jobs")
    (folder / "corpus").mkdir()
    for i in range(30):
        text = f"def read_file_{i}(path):\n    return open(path)\n" * 40
        (folder / "corpus" / f"{i}.txt").write_text(text)
    configs = folder / "jobs" / "configs"
    prepare = yaml.safe_load((configs / "prepare_demo.yaml").read_text())
    prepare["source"] = {"kind": "files", "path": str(folder / "corpus")}
    prepare |= {"tokenizer": {"kind": "byte"}, "valid_fraction": 0.2}
    (configs / "prepare_demo.yaml").write_text(yaml.safe_dump(prepare))
    run = yaml.safe_load((configs / "demo_ar.yaml").read_text())
    run["model"] |= {"dim": 32, "depth": 1, "heads": 2, "attention": {"dim_head": 16}}
    run["data"]["seq_len"] = 64
    run["batch"] = {"tokens_per_step": 256}
    run["optim"]["schedule"] = {"kind": "cosine", "warmup_steps": 1}
    run["loop"] |= {"steps": 4, "valid_every": 4, "valid_windows": 4, "sample_prompts": []}
    run["checkpoint"] = {"every": 4}
    (configs / "demo_ar.yaml").write_text(yaml.safe_dump(run))
