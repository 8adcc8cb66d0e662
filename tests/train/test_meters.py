"""What a run says about its time: phases, speed, arithmetic, slow ranks, goodput."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from ranks import run_ranks
from runs import checkpoints, folder_of, steps_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xtdist.config import ConfigError, from_mapping
from xtdist.model import TransformerWrapper
from xtdist.model.config import ModelConfig
from xtdist.track import StragglerConfig, read_goodput
from xtdist.train.meters import Lap, Phases
from xtdist.train.meters.flops import flops_per_token, peak_tflops
from xtdist.train.meters.ranks import Stragglers, own_seconds, slowest_of
from xtdist.train.meters.speed import Speed, buckets_of


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_every_second_belongs_to_the_innermost_phase() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    clock.now = 3.0
    with phases("restore"):
        clock.now = 4.0
    assert phases.lap(step=7).host == {"start": 3.0, "restore": 1.0}
    clock.now = 4.5
    with phases("rest"):
        clock.now = 5.0
        with phases("backward"):
            clock.now = 7.0
            with phases("reduce"):
                clock.now = 10.0
            clock.now = 11.0
        with phases("backward"):
            clock.now = 12.0
    lap = phases.lap(step=8)
    assert lap.host == {"other": 0.5, "rest": 0.5, "backward": 4.0, "reduce": 3.0}
    assert lap.total == 8.0
    assert lap.shown == lap.host


def test_a_collective_of_a_save_or_a_validation_is_part_of_it() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    phases.lap(step=0)
    with phases("evaluate"), phases("reduce"):
        clock.now = 2.0
    assert phases.lap(step=1).host == {"evaluate": 2.0}


def test_a_phase_that_is_left_by_an_error_is_over() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    phases.lap(step=0)
    with pytest.raises(ZeroDivisionError), phases("rest"), phases("forward"):
        raise ZeroDivisionError
    assert phases.now.phase == "other"


def test_a_lap_inside_a_phase_ends_the_start_for_good() -> None:
    clock = Clock()
    phases = Phases(clock=clock)
    with phases("evaluate"):
        phases.lap(step=0)
    clock.now = 1.0
    assert phases.lap(step=1).host == {"other": 1.0}


def test_another_thread_reads_what_a_process_does_and_its_marks_count_nothing() -> None:
    clock = Clock()
    phases = Phases(step=4, clock=clock)
    seen: list[Any] = []

    def look() -> None:
        with phases("checkpoint"):
            seen.append(phases.now)

    clock.now = 2.0
    with phases("forward"):
        clock.now = 5.0
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [(4, "forward", 2.0)]
    assert "checkpoint" not in phases.lap(step=5).host
    assert phases.now == (5, "other", 5.0)


def test_the_wait_for_each_batch_is_counted() -> None:
    clock = Clock()

    def batches() -> Iterator[int]:
        for i in range(3):
            clock.now += 2.0
            yield i

    phases = Phases(clock=clock)
    phases.lap(step=0)
    for _ in phases.over("data", batches()):
        clock.now += 1.0
    assert phases.lap(step=3).host == {"data": 6.0, "other": 3.0}


class Event:
    """A CUDA event whose device is ``behind`` the host."""

    behind, clock = 0.0, Clock()

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: object) -> None:
        self.at = self.clock.now + self.behind

    def query(self) -> bool:
        return self.at <= self.clock.now

    def elapsed_time(self, end: Event) -> float:
        assert self.query()
        assert end.query()
        return 1000 * (end.at - self.at)


def test_on_cuda_spans_are_the_devices_and_those_it_has_not_reached_come_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(Event, "clock", Clock())
    clock = Event.clock
    phases = Phases(torch.device("cuda"), clock=clock)
    phases.lap(step=0)
    clock.now, Event.behind = 1.0, 0.0
    with phases("forward"):  # the host only queues it
        clock.now, Event.behind = 1.5, 3.5
    with phases("backward"):
        Event.behind = 5.5
    lap = phases.lap(step=1)  # the device is still at the forward pass
    assert lap.host == {"other": 1.0, "forward": 0.5}
    assert lap.shown == {"other": 1.0}
    clock.now, Event.behind = 8.0, 0.0
    lap = phases.lap(step=2)
    assert lap.host == {"other": 6.5}
    assert lap.shown == {"forward": 4.0, "backward": 2.0, "other": 1.0}


SMALL = {"dim": 64, "depth": 3, "heads": 4, "num_tokens": 97, "max_seq_len": 32}
MODELS: dict[str, dict[str, Any]] = {
    "glu with shared key heads": {"attention": {"dim_head": 16, "kv_heads": 2}},
    "tied head, mlp": {"tie_embedding": True, "feedforward": {"kind": "mlp"}},
    "experts": {"feedforward": {"kind": "moe", "experts": 4, "top_k": 2, "shared_experts": 1}},
    "wide values": {"attention": {"dim_head": 16, "value_dim_head": 24, "backend": "eager"}},
    "latent, gate": {"attention": {"latent": {"q_dim": 24, "kv_dim": 24}, "gate": {}}},
    "one block for all": {"order": {"tie": True}},
    "narrow embedding": {"embedding": {"dim": 16}},
    "sublayers in their own order": {"order": {"execute": [0, 1, 1, 0, 3]}},
}


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_the_arithmetic_of_a_model_is_what_torch_counts(changes: dict[str, Any]) -> None:
    model = from_mapping(ModelConfig, SMALL | changes)
    net = TransformerWrapper.from_config(model)
    tokens = torch.randint(0, 97, (2, 32))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        net(tokens).sum().backward()
    assert flops_per_token(model, 32) == pytest.approx(
        counted.get_total_flops() / tokens.numel(), rel=0.02
    )


def test_a_window_counts_as_far_as_it_reaches_and_a_context_is_not_known() -> None:
    plain, near = (
        from_mapping(ModelConfig, SMALL | {"attention": {"dim_head": 16, "window": window}})
        for window in (None, 7)
    )
    whole, part = flops_per_token(plain, 32), flops_per_token(near, 32)
    assert whole is not None
    assert part is not None
    assert whole - part == 12 * 3 * 4 * 16 * (32 - 8)
    crossed = from_mapping(ModelConfig, SMALL | {"cross_attention": {}})
    assert flops_per_token(crossed, 32) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", 65.0),
        ("Quadro P4000", None),
    ],
)
def test_a_gpus_peak_is_known_by_its_name(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_rates_are_means_over_the_last_steps_and_leave_out_saves_and_validation() -> None:
    speed = Speed(devices=2, flops=6e6, peak=1.0)
    metrics: dict[str, float] = {}
    for seconds in [*[9.0] * 20, *[0.5] * 9, 1.5]:
        host = {"data": 0.1, "forward": seconds - 0.1, "checkpoint": 3.0, "evaluate": 4.0}
        metrics = speed.metrics(Lap(host=host, shown=host), tokens=1200)  # type: ignore[arg-type]
    assert metrics["perf/step_s"] == pytest.approx(1.5)
    assert metrics["perf/tokens_per_s"] == pytest.approx(12000 / 6)
    assert metrics["perf/tokens_per_s_per_device"] == pytest.approx(1000)
    assert metrics["perf/mfu"] == pytest.approx(2000 * 6e6 / 2e12)
    assert metrics["perf/data_wait_share"] == pytest.approx(0.1 / 1.5)


def test_a_rank_that_stays_slow_is_named_once_with_its_host() -> None:
    config = StragglerConfig(every=10, ratio=1.5, windows=2)
    stragglers = Stragglers(config, ["a", "b", "c"])
    slow, fine, other = [1.0, 1.1, 2.0], [1.0, 1.1, 1.2], [9.0, 1.1, 2.0]
    said = [stragglers.judge(slowest_of(s)) for s in (slow, fine, slow, other, slow, slow, slow)]
    assert [text is not None for text in said] == [False] * 5 + [True, False]
    assert said[5] is not None
    assert said[5].startswith("rank 2 on c is slow: its own work took 2.000 s a step, 1.9 times")
    assert slowest_of([1.0]) is None
    with pytest.raises(ConfigError, match=r"ratio: got 1\.0"):
        StragglerConfig(ratio=1.0)


def test_waiting_for_others_is_not_a_ranks_own_work() -> None:
    host = {"forward": 1.0, "backward": 2.0, "reduce": 50.0, "data": 0.5, "checkpoint": 9.0}
    lap = Lap(host=host, shown=host)  # type: ignore[arg-type]
    assert own_seconds(lap, cuda=False, zero_stage=3) == 3.5
    assert own_seconds(lap, cuda=True, zero_stage=2) == 1.5
    assert own_seconds(lap, cuda=True, zero_stage=3) is None
    assert sum(buckets_of(lap).values()) == lap.total


def test_a_run_tells_where_its_time_went_and_which_rank_is_slow(make_spec: Any) -> None:
    common = {
        "loop.steps": 6,
        "loop.valid_every": 0,
        "checkpoint.every": 3,
        "track.peak_tflops": 0.1,
        "track.stragglers": {"every": 1, "ratio": 1.5, "windows": 2},
    }
    specs = [
        make_spec(f"slow{stage}", {**common, "engine.zero_stage": stage}) for stage in (0, 2, 3)
    ]
    for outcome in run_ranks(specs, patches=dict.fromkeys(range(3), "slow_rank")):
        assert outcome.ok, outcome.printed
    for spec in specs:
        rows = _rows(folder_of(spec) / "metrics.jsonl")
        steps = [row for row in rows if "train/loss" in row]
        assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
        for row in steps:
            parts = ("data_wait", "forward", "backward", "reduce", "optimizer", "rest", "other")
            assert row["perf/step_s"] == pytest.approx(
                sum(row[f"perf/{part}_s"] for part in parts), rel=1e-6
            )
            assert row["perf/forward_s"] > 0
            assert row["perf/backward_s"] > 0
            assert row["perf/rss_gb"] > 0.05
            assert 0 < row["perf/mfu"] < 1
        # Rank 1 sleeps 0.2 s in each forward pass, and rank 0 waits for it.
        assert median(row["perf/slowest_rank"] for row in steps) == 1
        assert median(row["perf/slowest_ratio"] for row in steps) > 1.5
        assert median(row["perf/reduce_s"] for row in steps) > 0.1
        assert median(row["perf/forward_s"] for row in steps) < 0.2
        texts = [note["text"] for note in _rows(folder_of(spec) / "notes.jsonl")]
        assert any(text.startswith("warning: rank 1 on ") for text in texts)
        goodput = read_goodput(folder_of(spec))
        assert goodput.attempts == 1
        assert sum(goodput.seconds.values()) == pytest.approx(goodput.elapsed)
        assert goodput.seconds["productive"] > 6 * 0.2
        assert goodput.seconds["program_start"] > 0
        assert goodput.seconds["checkpoint_save"] > 0
        assert goodput.seconds["wasted_progress"] == 0


@pytest.mark.long
def test_steps_that_are_done_again_are_wasted(make_spec: Any) -> None:
    changes = {"loop.valid_every": 0, "checkpoint.every": 3}
    short = make_spec("again", {**changes, "loop.steps": 6})
    (outcome,) = run_ranks([short])
    assert outcome.ok, outcome.printed
    before = read_goodput(folder_of(short))
    assert before.seconds["wasted_progress"] == 0
    shutil.rmtree(checkpoints(short)[-1])
    (outcome,) = run_ranks([make_spec("again", {**changes, "loop.steps": 8})])
    assert outcome.ok, outcome.printed
    assert steps_of(short)[-1] == 8
    after = read_goodput(folder_of(short))
    assert after.attempts == 2
    assert 0 < after.seconds["wasted_progress"] < before.seconds["productive"]
    assert after.seconds["checkpoint_restore"] > before.seconds["checkpoint_restore"]
    assert sum(after.seconds.values()) == pytest.approx(after.elapsed)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]
