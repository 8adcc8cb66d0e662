"""The benchmark scripts run, count right and say when a check fails."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "jobs" / "benchmarks"
HIDE = "import sys\nfor name in ('ray', 'mlflow', 'deepspeed', 'transformers', 'tokenizers'):\n"
HIDE += "    sys.modules[name] = None\n"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of the folder, importable as they are for each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    before = {name: sys.modules.pop(name, None) for name in names}
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name, module in before.items():
        sys.modules.pop(name, None)
        if isinstance(module, ModuleType):
            sys.modules[name] = module


def run(script: str, *words: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{prelude}\nimport runpy, sys\nsys.argv[1:] = {list(words)!r}\n"
    code += f"runpy.run_path({str(FOLDER / script)!r}, run_name='__main__')\n"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=500
    )


def test_the_comparison_with_x_transformers_writes_its_section_and_keeps_others(
    tmp_path: Path,
) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\n## other\n\nstays\n\n## mine\n\nold\n")
    words = ["--quick", "--configs", "rotary flash", "--section", "mine", "--output", str(results)]
    done = run("model.py", *words)
    assert done.returncode == 0, done.stderr
    text = results.read_text()
    assert "stays" in text
    assert "old" not in text
    assert "quick: rotary flash, padding mask" in text
    assert "x-transformers 2." in text


@pytest.mark.slow
def test_every_section_of_the_gpu_script_runs_on_a_cpu_without_ray(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS_GPU.md"
    words = ["--device", "cpu", "--quick", "--output", str(results)]
    done = run("gpu.py", *words, prelude=HIDE.replace("'deepspeed', ", ""))
    assert done.returncode == 0, done.stdout + done.stderr
    text = results.read_text()
    for section in ("parity", "backends", "compiled", "decoding", "throughput", "sharded"):
        assert f"## {section}\n" in text
    assert "FAILED" not in text
    assert "tokens/s" in text


def test_a_failed_check_a_broken_section_and_a_missing_gpu_change_the_exit_code(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = scripts.gpu_checks.Row
    words = ["--device", "cpu", "--sections", "decoding", "--output", str(tmp_path / "R.md")]
    monkeypatch.setattr(scripts.gpu_checks, "decoding", lambda device: iter([row("a", "fine")]))
    assert scripts.gpu.main(words) == 0
    monkeypatch.setattr(scripts.gpu_checks, "decoding", lambda device: iter([row("a", "b", True)]))
    assert scripts.gpu.main(words) == 1
    assert "**FAILED** b" in (tmp_path / "R.md").read_text()
    monkeypatch.setattr(scripts.gpu_checks, "decoding", lambda device: iter([None]))
    assert scripts.gpu.main(words) == 1
    if not torch.cuda.is_available():
        assert scripts.gpu.main(["--output", str(tmp_path / "R.md")]) == 3
    monkeypatch.setitem(scripts.gpu.NEEDED, "no_such_module", "no-such")
    assert scripts.gpu.main(words) == 3


def test_kept_and_peak_bytes_are_those_of_a_network_counted_by_hand(
    scripts: SimpleNamespace,
) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False), torch.nn.Sigmoid())
    x = torch.randn(128, 64)
    one = x.numel() * 4
    kept = scripts.common.kept_bytes(net, lambda: net(x).sum())
    assert kept == 2 * one  # the input of the matrix and the output of the sigmoid

    def step() -> None:
        a = torch.empty(1000, dtype=torch.uint8)
        b = torch.empty(3000, dtype=torch.uint8)
        del a
        c = torch.empty(500, dtype=torch.uint8)
        del b, c

    assert scripts.common.peak_bytes(step, device="cpu") == 4000


def test_tables_over_all_pairs_of_positions_are_found(scripts: SimpleNamespace) -> None:
    q = torch.randn(1, 2, 48, 8)
    fused = torch.nn.functional.scaled_dot_product_attention
    assert not scripts.common.square_tables(lambda: fused(q, q, q, is_causal=True), seq_len=48)
    assert scripts.common.square_tables(lambda: q @ q.transpose(-1, -2), seq_len=48)


def test_the_counted_operations_of_a_step_are_those_of_its_matrices(
    scripts: SimpleNamespace,
) -> None:
    from xtdist.model.presets import preset

    config = preset("gpt2-tiny", num_tokens=259, max_seq_len=32)
    d, n, depth = 128, 32, 4
    matrices = depth * 12 * d * d + 259 * d
    other = depth * (5 * d + 2 * d) + d  # biases and gains count as weights too
    attention = depth * 3 * (2 * 2 * n * d) / 2  # two products, forward and twice back, half of all
    parameters = matrices + other + n * d
    counted = scripts.gpu_speed.step_flops(config, parameters=parameters, tokens=1, seq_len=n)
    assert counted == pytest.approx(6 * (matrices + other) + attention)
