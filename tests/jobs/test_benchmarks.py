"""The benchmark scripts run, count right and say when a check fails."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
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


def test_the_decoding_script_compares_tokens_and_measures_every_kind_of_row(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    peers = ["--engines", "x-transformers", "HF Llama", "CTranslate2"]  # compiling takes long
    words = ["--quick", "--repeats", "1", "--section", "mine", "--output", str(results), *peers]
    done = run("decode.py", *words)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in results.read_text().splitlines() if line[:2] == "| "]
    rows = {(line[0].strip("| "), line[1]): line for line in lines[2:]}
    for engine in ("x-transformers", "HF Llama", "CTranslate2"):
        for name in ("batch 1", "beam 4", "long: 24"):
            assert rows[name, engine][-1] == "the same |"
            assert float(rows[name, engine][-2]) > 0
    assert rows["contrastive", "x-transformers"][-1] == "the same |"
    assert ("int8, batch 2", "CTranslate2") in rows
    assert "streaming bandwidth" in results.read_text()


def test_decoding_is_not_timed_when_engines_disagree(scripts: SimpleNamespace) -> None:
    found = {"xtdist": [[1, 2, 3]], "other": [[1, 2, 4]]}
    with pytest.raises(ValueError, match="other differs in row 0 at token 2"):
        scripts.decode_peers.agree(found, peers=["xtdist", "other"])


def test_the_limit_of_a_step_counts_every_weight_that_it_reads(scripts: SimpleNamespace) -> None:
    shape = scripts.decode.SMALL
    model, _ = scripts.common.build_pair(shape.case(), device="cpu", dtype=torch.float32)
    left = ("token_embedding.weight", "bias")
    weights = sum(p.numel() for n, p in model.named_parameters() if not n.endswith(left))
    assert shape.touched == weights
    kept = sum(h * d for layer in model.cache_spec().layers for h, d in layer)
    row = scripts.decode.Row(name="x", batch=2, prompt=10, new=4)
    assert row.limit_ms(shape, 1e3) == pytest.approx(4 * (weights + 2 * 12 * kept))


@pytest.mark.slow
def test_every_section_of_the_gpu_script_runs_on_a_cpu_without_ray(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS_GPU.md"
    words = ["--device", "cpu", "--quick", "--output", str(results)]
    done = run("gpu.py", *words, prelude=HIDE.replace("'deepspeed', ", ""))
    assert done.returncode == 0, done.stdout + done.stderr
    text = results.read_text()
    for section in (
        *("parity", "backends", "compiled", "decoding", "decoding speed"),
        *("throughput", "sharded", "training", "training, resumed"),
        *("training, speed", "training, memory"),
    ):
        assert f"## {section}\n" in text
    assert "FAILED" not in text
    assert "tokens/s" in text


def test_a_failed_check_a_broken_section_and_a_missing_gpu_change_the_exit_code(
    scripts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = scripts.gpu_checks.Row
    words = ["--device", "cpu", "--sections", "decoding", "--output", str(tmp_path / "R.md")]

    def gives(*rows):
        monkeypatch.setattr(scripts.gpu_checks, "decoding", lambda device, **_: iter(rows))

    gives(row("a", "fine"))
    assert scripts.gpu.main(words) == 0
    gives(row("a", "b", True))
    assert scripts.gpu.main(words) == 1
    assert "**FAILED** b" in (tmp_path / "R.md").read_text()
    gives(None)
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


@pytest.mark.slow
def test_the_data_script_measures_its_four_parts_and_names_missing_peers(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    readers = ["--readers", "masked", "memory map, windows", "litdata"]
    words = ["--quick", "--repeats", "1", "--section", "mine", "--output", str(results), *readers]
    done = run("data.py", *words)
    assert done.returncode == 0, done.stderr
    lines = [line.split(" | ") for line in results.read_text().splitlines() if line[:2] == "| "]
    rows = {line[0].strip("| "): line for line in lines}
    for reader in ("xtdist, masked", "memory map, windows"):
        assert float(rows[reader][-1].strip("| ")) > 0
    if importlib.util.find_spec("litdata") is None:
        assert rows["litdata"][1] == "not installed (litdata)"
    for name in ("build, bytes", "build, BPE", "encode alone, tokenizers", "open"):
        assert float(rows[name][-2]) >= 0
    assert rows["joined"][2].endswith("%")


@pytest.fixture
def corpus(scripts: SimpleNamespace, tmp_path: Path) -> Any:
    """A small one, on disk."""
    made = scripts.data_corpora.Corpus(folder=tmp_path, tokens=50_000, seq_len=64, batch=4)
    made.write(shard_tokens=7_000)
    return made


@pytest.mark.parametrize(
    "name", ["xtdist", "two corpora", "masked", "memory map, windows", "datasets, numpy"]
)
def test_every_reader_gives_stretches_of_the_same_tokens(
    scripts: SimpleNamespace, corpus: Any, name: str
) -> None:
    found = [reader for n, reader in scripts.data_peers.READERS.items() if n.endswith(name)]
    batches = found[0](corpus)
    flat = np.fromfile(corpus.flat, np.uint16)
    stretches = {row.tobytes() for row in np.lib.stride_tricks.sliding_window_view(flat, 65)}
    seen = set()
    for _ in range(20):
        batch = next(batches)
        corpus.check(batch)
        rows = {row.astype(np.uint16).tobytes() for row in batch.numpy()}
        assert rows <= stretches
        seen |= rows
    assert len(seen) > 70  # of 80, and not the same again and again
    batches.close()


def test_a_reader_of_other_tokens_is_not_timed(corpus: Any) -> None:
    batch = torch.from_numpy(np.fromfile(corpus.flat, np.uint16)[: 4 * 65].astype(np.int64))
    corpus.check(batch.view(4, 65))
    batch[3] = (batch[3] + 1) % 256
    with pytest.raises(ValueError, match="not a stretch"):
        corpus.check(batch.view(4, 65))
    with pytest.raises(ValueError, match="int32"):
        corpus.check(batch.view(4, 65).to(torch.int32))


def test_the_dataset_of_many_shards_is_whole(scripts: SimpleNamespace, tmp_path: Path) -> None:
    from xtdist.data import TokenDataset

    folder = tmp_path / "many"
    scripts.data_corpora.write_many_shards(folder, 5, shard_tokens=1000)
    dataset = TokenDataset.open(folder, verify="full")
    ids, ends = scripts.data_corpora.random_documents(1000)
    assert dataset.total_tokens == 5000
    assert dataset.num_documents == 5 * (len(ends) - 1)
    assert (dataset.read(0, 5000).reshape(5, 1000) == ids).all()


def test_what_training_on_a_gpu_lacks_is_a_reason_and_no_failure(
    scripts: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = scripts.gpu_train
    monkeypatch.setattr(script, "NEEDED", (*script.NEEDED, "no_such"))
    for section in (script.trained, script.resumed, script.speed, script.memory):
        (row,) = section("cpu", quick=True)
        assert row.value == "not run: no_such not installed"
        assert not row.failed


def records_of(step_s: dict[int, float]) -> list[dict[str, float]]:
    ends = np.cumsum([0.0, *step_s.values()])
    return [{"step": 0, "time": 0.0}] + [
        {"step": step, "time": end} for step, end in zip(step_s, ends[1:], strict=True)
    ]


@pytest.mark.parametrize("slow_s", [0.0, 0.04])
def test_a_saves_cost_is_what_steps_waited_and_what_they_were_slower(
    scripts: SimpleNamespace, slow_s: float
) -> None:
    """Three steps are done while a checkpoint is written, and one more hears of its end."""
    script = scripts.train_steps
    seconds = dict.fromkeys(range(1, 101), 0.2)
    for saved in (20, 40, 60, 80):
        seconds[saved + 1] += 0.05
        for step in range(saved + 1, saved + 4):
            seconds[step] += slow_s
    records = records_of(seconds)
    saves = [
        script.Save(step=s, began=records[s]["time"], waits_s=0.05, committed=at)
        for s in (20, 40, 60, 80)
        if (at := records[s + 2]["time"] + 0.01)
    ]
    found = script.stalls_of(records, saves)
    assert [save.step for save in found.saves] == [40, 60, 80]
    assert found.step_s == pytest.approx(0.2)
    assert found.slower_s == pytest.approx([3 * slow_s] * 3, abs=1e-9)
    assert found.placebo_s == pytest.approx([0.0] * 3, abs=1e-9)
    assert found.share(60) == pytest.approx((0.05 + 3 * slow_s) / 60)
    with pytest.raises(ValueError, match="save less often"):
        script.stalls_of(records, saves[:1])


def test_a_bare_loop_that_trains_something_else_is_not_compared(scripts: SimpleNamespace) -> None:
    script = scripts.train_steps
    bare = scripts.train_bare.Steps([0.2, 0.2], [5.0, 4.0])
    script._check_same([{"train/loss": 5.0}, {"train/loss": 4.00001}], bare)
    with pytest.raises(ValueError, match="something else"):
        script._check_same([{"train/loss": 5.0}, {"train/loss": 4.1}], bare)
    with pytest.raises(ValueError, match="1 steps of ours"):
        script._check_same([{"train/loss": 5.0}], bare)


def test_projected_goodput_is_that_of_faults_at_all_times_between_checkpoints(
    scripts: SimpleNamespace,
) -> None:
    mtbf, down, interval, stall = 11_160.0, 20.0, 60, 0.3
    useful = total = 0.0
    for lost in np.arange(interval) + 0.5:  # since the last checkpoint, at the fault
        total += mtbf
        useful += (mtbf - down - lost) * (interval - stall) / interval
    found = scripts.train.goodput(stall / interval, down_s=down, interval_s=interval, mtbf_s=mtbf)
    assert found == pytest.approx(useful / total, rel=1e-12)


@pytest.mark.ray
@pytest.mark.long
def test_the_training_script_compares_the_same_losses_and_measures_checkpoints(
    tmp_path: Path,
) -> None:
    results = tmp_path / "RESULTS.md"
    words = ["--quick", "--parts", "overhead", "stalls", "goodput", "--output", str(results)]
    done = run("train.py", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    text = results.read_text()
    for part in ("Overhead", "Stalls", "Goodput"):
        assert f"### {part}\n" in text
    assert "FAILED" not in text
    assert "not known: needs" in text  # no fault was measured


def test_requests_of_a_load_leave_on_time_however_slow_the_server_is(
    scripts: SimpleNamespace,
) -> None:
    answer = b'HTTP/1.1 200 OK\r\nRetry-After: 3\r\n\r\ndata: {"usage":{"completion_tokens":7}}\n\n'
    came: list[float] = []

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.append(loop.time() - began)
            await reader.readuntil(b"}")
            first = len(came) == 1
            await asyncio.sleep(0.3)
            if first:
                writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: {")  # and breaks off
            else:
                writer.write(answer)
            writer.close()

        server = await asyncio.start_server(slow, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        due = [0.0, 0.05, 0.1]
        found = await scripts.serve_load.load(url, due, [{"prompt": [1]}] * 3)
        server.close()
        return found

    broken, *whole = asyncio.run(main())
    assert (broken.status, broken.good, broken.tokens) == (0, False, 0)
    assert [(r.status, r.tokens, r.retry_after) for r in whole] == [(200, 7, True)] * 2
    assert came[2] < 0.3  # before the first one is answered
    assert all(r.first >= 0.3 for r in whole)  # counted from when they should have left


def test_arrivals_are_seeded_and_as_many_as_their_rate_says(scripts: SimpleNamespace) -> None:
    poisson = scripts.serve_load.poisson
    times = poisson(50.0, 100.0, seed=3)
    assert times == poisson(50.0, 100.0, seed=3) != poisson(50.0, 100.0, seed=4)
    assert abs(len(times) - 5000) < 4 * 5000**0.5
    gaps = np.diff(times)
    assert abs(gaps.std() / gaps.mean() - 1) < 0.1  # as in an exponential distribution


def test_a_summary_of_a_load_counts_good_requests_from_their_due_time(
    scripts: SimpleNamespace,
) -> None:
    load = scripts.serve_load
    good = load.Result(due=1.0, status=200, arrivals=[1.5, 1.6, 1.8], end=2.0, tokens=10)
    bad = load.Result(due=0.0, status=503, arrivals=[9.0], end=9.0)
    found = load.Summary.of([good, bad])
    assert found.rate == pytest.approx(10 / 2.0)
    assert found.first == pytest.approx((500, 500))
    assert found.between == pytest.approx((100, 200))
    assert found.statuses == {200: 1, 503: 1}
    other = load.Summary(rate=7, first=(1, 2), between=(3, 4), statuses=found.statuses)
    middle = load.median_of([found, other, other])
    assert (middle.rate, middle.first, middle.statuses[503]) == (7, (1, 2), 3)


@pytest.mark.long
def test_the_serving_script_puts_every_server_and_part_into_its_section(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    words = ["--quick", "--repeats", "1", "--on", "ours", "--output", str(results)]
    done = run("serve.py", *words, "--servers", "engine", "ours", "plain", "transformers")
    assert done.returncode == 0, done.stderr
    text = results.read_text()
    for name in ("the engine, no HTTP", "xtdist, uvicorn alone", "x-transformers, FastAPI"):
        assert f"| 4 | {name} |" in text
    assert "| 4 | transformers, continuous batching |" in text
    assert "refused with Retry-After | all |" in text
    for part in ("Streams", "Mixed traffic", "Overload", "Clients that take their time"):
        assert f"### {part}\n" in text


@pytest.mark.long
def test_the_script_on_mup_says_what_moves_with_the_width(tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    done = run("mup.py", "--quick", "--section", "mine", "--output", str(results))
    assert done.returncode == 0, done.stderr
    text = results.read_text()
    assert text.count("| muP | ") == 4  # two optimizers, two widths
    assert text.count("| plain | ") == 4
    assert (tmp_path / "mup.png").stat().st_size > 10_000


def test_the_best_rate_is_that_of_the_least_loss(scripts: SimpleNamespace) -> None:
    assert scripts.mup.best_rate([3.0, float("inf"), 2.0, 2.5], [1, 2, 4, 8]) == 4
