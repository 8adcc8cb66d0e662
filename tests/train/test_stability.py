"""Steps that must not become part of a run: it goes back, on all ranks, and says so."""

from __future__ import annotations

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import Outcome, run_ranks
from runs import checkpoints, folder_of, records, steps_of
from safetensors.torch import load_file

from xtdist.config import CheckpointError, ConfigError
from xtdist.train import RunSpec
from xtdist.train.callbacks.early_stop import waited
from xtdist.train.spec.loop import EarlyStopSpec, LoopSpec, ProfileSpec
from xtdist.train.stability.interventions import (
    FILE,
    Intervention,
    Interventions,
    append,
    read,
    stopped_early,
)
from xtdist.train.stability.spikes import Spikes

SHORT = {"loop.steps": 6, "checkpoint.every": 2, "loop.valid_every": 0}
SPIKE = {
    "loop.steps": 16,
    "checkpoint.every": 4,
    "loop.valid_every": 0,
    "stability.spike": {
        "kind": "rollback",
        "window": 8,
        "lasting": 1,
        "back_steps": 2,
        "skip_steps": 4,
        "lr_factor": 0.5,
    },
}
SKIP = {"stability.non_finite": {"then": "skip"}}
ENDS = {"loop.valid_every": 2, "loop.early_stop": {"patience": 1, "min_delta": 100.0}}

JOBS: list[tuple[str, dict[str, Any], str | None]] = [
    ("healthy", SHORT, None),
    ("healed", SHORT, "nan_once"),
    ("skipped", SHORT | SKIP, "nan_data"),
    ("left_out", SHORT | {"data.skip": [[2, 3]]}, "noted_batches"),
    ("spiked", SPIKE, "poisoned"),
    ("spike_left_out", SPIKE | {"data.skip": [[9, 13]]}, "noted_batches"),
    ("spiked_later", SPIKE | {"loop.steps": 11}, None),
    ("spiked_later", SPIKE, "poisoned"),
    ("spiked_again", SPIKE | {"stability.spike.most": 1}, "poisoned_again"),
    ("early", SHORT | ENDS, None),
    ("early", SHORT | ENDS, None),
    ("profiled", SHORT | {"loop.profile": {"first": 1, "steps": 2}}, None),
    ("full", SHORT, "no_memory"),
    ("ended", SHORT | {"checkpoint.every": 100}, "sigterm"),
]


@pytest.fixture(scope="module")
def runs(make_spec: Any) -> dict[str, tuple[RunSpec, Outcome]]:
    """Of jobs with the same name, the last one."""
    specs = [make_spec(name, changes) for name, changes, _ in JOBS]
    faults = {i: fault for i, (_, _, fault) in enumerate(JOBS) if fault}
    outcomes = run_ranks(specs, patches=faults)
    return {s.name: (s, o) for s, o in zip(specs, outcomes, strict=True)}


def rows_of(spec: RunSpec) -> list[Intervention]:
    return list(read(folder_of(spec)).rows)


def weights_of(spec: RunSpec) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted((checkpoints(spec)[-1] / "weights").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def settled(spec: RunSpec, key: str) -> list[float]:
    """A metric of the steps that count: repeated ones replace those before."""
    lines = (folder_of(spec) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if key in row]
    found: dict[int, float] = {}
    for row in rows:
        found = {s: v for s, v in found.items() if s < row["step"]} | {row["step"]: row[key]}
    return list(found.values())


def batches(spec: RunSpec, rank: int) -> dict[int, list[int]]:
    """The samples of each step that a rank was given last."""
    lines = (folder_of(spec) / f"batches-{rank}.jsonl").read_text().splitlines()
    return {row["step"]: row["sample_ids"] for row in map(json.loads, lines)}


@pytest.mark.slow
def test_a_nan_that_does_not_come_again_leaves_no_trace_in_the_result(runs: Any) -> None:
    healthy, healed = runs["healthy"][0], runs["healed"][0]
    assert runs["healed"][1].ok, runs["healed"][1].printed
    assert settled(healed, "train/loss") == records(healthy, "train/loss")
    assert settled(healed, "train/grad_norm") == records(healthy, "train/grad_norm")
    a, b = weights_of(healthy), weights_of(healed)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    # the first pass of step 0, before any checkpoint; then the fourth, of step 2
    found = [(row.what, row.why, row.step, row.from_step) for row in rows_of(healed)]
    assert found == [("retry", "non_finite", 0, 0), ("retry", "non_finite", 2, 2)]
    assert not (folder_of(healthy) / FILE).exists()


@pytest.mark.slow
def test_data_whose_loss_stays_nan_is_left_out_as_if_the_config_had_said_so(runs: Any) -> None:
    skipped, twin = runs["skipped"][0], runs["left_out"][0]
    assert runs["skipped"][1].ok, runs["skipped"][1].printed
    assert [(row.what, row.skip) for row in rows_of(skipped)] == [("retry", None), ("skip", (2, 3))]
    assert settled(skipped, "train/loss") == records(twin, "train/loss")
    assert all(batches(skipped, rank) == batches(twin, rank) for rank in (0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spiked", "spiked_later"])
def test_a_spike_is_taken_back_and_the_data_around_it_left_out(runs: Any, name: str) -> None:
    spiked, twin = runs[name][0], runs["spike_left_out"][0]
    assert runs[name][1].ok, runs[name][1].printed
    (row,) = rows_of(spiked)
    assert (row.what, row.why, row.step, row.data_step) == ("skip", "spike", 11, 11)
    assert (row.skip, row.from_step, row.lr_factor) == ((9, 13), 8, 0.5)
    for rank in (0, 1):  # step 8 was repeated, and then the data jumps
        assert {step: batches(twin, rank)[step] for step in range(8, 16)} == {
            step: ids for step, ids in batches(spiked, rank).items() if step >= 8
        }
    assert 11 not in steps_of(spiked)  # the checkpoint of another history
    assert steps_of(spiked)[-1] == 16
    assert max(settled(spiked, "train/loss")) < 10
    lr = settled(spiked, "train/lr")
    assert lr[8:] == [value / 2 for value in records(twin, "train/lr")[8:]]
    assert lr[:8] == records(twin, "train/lr")[:8]
    assert records(spiked, "stability/data_steps_left_out") == [4.0]


@pytest.mark.slow
def test_more_spikes_than_allowed_end_the_run_on_every_rank(runs: Any) -> None:
    spec, outcome = runs["spiked_again"]
    assert "the loss has a spike from step 10 on" in outcome.same_error
    assert "stability.spike.most" in outcome.same_error
    assert [row.what for row in rows_of(spec)] == ["skip", "stop"]


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends_and_stays_ended(runs: Any) -> None:
    spec, outcome = runs["early"]
    assert outcome.ok, outcome.printed
    assert len(records(spec, "train/loss")) == 4  # also after the second start
    assert len(rows_of(spec)) == 1
    assert steps_of(spec)[-1] == 4
    assert stopped_early(folder_of(spec), 4)
    assert not stopped_early(folder_of(spec), 2)


@pytest.mark.slow
def test_chosen_steps_are_traced_on_every_rank(runs: Any) -> None:
    spec, outcome = runs["profiled"]
    assert outcome.ok, outcome.printed
    for rank in (0, 1):
        with gzip.open(folder_of(spec) / "profile" / f"rank-{rank}.json.gz") as file:
            names = [event.get("name") for event in json.load(file)["traceEvents"]]
        forwards = names.count("aten::embedding")
        assert 2 <= forwards < 6  # two steps, not all
    assert not (folder_of(runs["healthy"][0]) / "profile").exists()


@pytest.mark.slow
def test_a_full_device_is_explained(runs: Any) -> None:
    error = runs["full"][1].same_error
    assert error.startswith("ResourceError: the GPU's memory is full: CUDA out of memory. Lower")
    assert "batch.micro_batch_tokens" in error


@pytest.mark.slow
def test_a_sigterm_to_one_rank_saves_the_step_on_all(runs: Any) -> None:
    spec, outcome = runs["ended"]
    assert outcome.ok, outcome.printed
    assert steps_of(spec) == [4]  # it came in the third step; all agree in the next one
    assert len(records(spec, "train/loss")) == 4
    assert outcome.printed.count("SIGTERM: saving a checkpoint") == 1


def test_a_spike_is_measured_by_median_and_median_distance() -> None:
    rng = np.random.default_rng(0)
    past = rng.normal(4.0, 0.1, 50).tolist()
    spikes = Spikes(window=32, sigmas=6.0, past=past)
    window = np.array(past[-32:])
    sigma = 1.4826 * np.median(np.abs(window - np.median(window)))
    limit = np.median(window) + 6 * sigma
    assert spikes.score(limit) == pytest.approx(6.0)
    assert not Spikes(window=32, sigmas=6.0, past=past).add(limit - 1e-6)
    assert Spikes(window=32, sigmas=6.0, past=past).add(limit + 1e-6)
    assert not Spikes(window=64, sigmas=6.0, past=past).add(1e9)  # too little to judge by
    assert not spikes.add(float("inf"))
    assert not Spikes(window=8, sigmas=6.0, past=[2.0] * 8).add(2.01)  # no deviation at all


def test_spikes_depend_on_the_last_values_alone() -> None:
    values = np.random.default_rng(1).standard_cauchy(300).tolist()
    whole = Spikes(window=16, sigmas=3.0)
    found = [whole.add(v) for v in values]
    again = Spikes(window=16, sigmas=3.0, past=values[200 - 16 : 200])
    assert [again.add(v) for v in values[200:]] == found[200:]
    assert any(found)


def test_interventions_survive_a_torn_line_and_refuse_a_damaged_one(tmp_path: Path) -> None:
    row = Intervention(what="skip", why="spike", step=5, data_step=5, text="a", skip=(3, 9))
    append(tmp_path, row)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"what": "ski')
    assert [r.skip for r in read(tmp_path).rows] == [(3, 9)]
    append(tmp_path, row)
    assert [r.skip for r in read(tmp_path).rows] == [(3, 9), (3, 9)]
    lines = (tmp_path / FILE).read_text()
    (tmp_path / FILE).write_text(lines.replace('"skip": [3, 9]', '"skip": [3, "x"]', 1))
    with pytest.raises(CheckpointError, match="line 1"):
        read(tmp_path)
    good = lines.split("\n")[0]
    for was, now in (
        ("[3, 9]", "[9, 3]"),
        ("[3, 9]", "[-5, 9]"),
        ('"lr_factor": 1.0', '"lr_factor": NaN'),
    ):
        assert was in good
        (tmp_path / FILE).write_text(f"{good}\n{good.replace(was, now)}\n")
        with pytest.raises(CheckpointError, match=r"interventions\.jsonl, line 2"):
            read(tmp_path)
    (tmp_path / FILE).write_bytes(b"\xff\xfe\n")
    with pytest.raises(CheckpointError, match="line 1"):
        read(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    with pytest.raises(CheckpointError, match="can't be read"):
        read(tmp_path)


def test_what_is_left_out_adds_to_what_the_config_leaves_out(make_spec: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        ends = np.sort(rng.choice(40, 4, replace=False)).tolist()
        given = [ends[:2], ends[2:]]
        more = [tuple(sorted(rng.choice(40, 2, replace=False).tolist())) for _ in range(3)]
        rows = [
            Intervention(what="skip", why="spike", step=0, data_step=0, text="", skip=pair)
            for pair in more
        ]
        spec = make_spec("union", {"data.skip": given})
        after = Interventions(tuple(rows)).applied_to(spec).data.skip
        left_out = {step for pair in [*given, *more] for step in range(*pair)}
        assert {step for pair in after for step in range(*pair)} == left_out
        assert all(a[1] <= b[0] for a, b in pairwise(after))


def test_the_factor_on_the_rate_holds_from_its_step_on() -> None:
    rows = [
        Intervention(
            what="skip", why="spike", step=9, data_step=9, text="", lr_factor=f, from_step=s
        )
        for f, s in ((0.5, 4), (0.1, 8))
    ]
    found = [Interventions(tuple(rows)).lr_factor(step) for step in (3, 4, 7, 8)]
    assert found == [1.0, 0.5, 0.5, 0.05]


@pytest.mark.parametrize(
    ("values", "min_delta", "expected"),
    [([], 0.0, 0), ([3.0, 2.0, 2.0, 2.5], 0.0, 2), ([3.0, 2.95, 2.91], 0.1, 2), ([1, 0.5], 0, 0)],
)
def test_patience_counts_from_the_best(
    values: list[float], min_delta: float, expected: int
) -> None:
    assert waited(values, min_delta=min_delta) == expected


def test_what_can_never_happen_is_refused() -> None:
    with pytest.raises(ConfigError, match="valid_every"):
        LoopSpec(steps=10, valid_every=0, early_stop=EarlyStopSpec())
    with pytest.raises(ConfigError, match=r"early_stop.metric: got 'train/loss'"):
        LoopSpec(steps=10, early_stop=EarlyStopSpec(metric="train/loss"))
    with pytest.raises(ConfigError, match=r"profile"):
        LoopSpec(steps=10, profile=ProfileSpec(first=9, steps=2))
