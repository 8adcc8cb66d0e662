"""Validations and samples by tasks beside the workers: what they find is what the workers find."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ranks import Outcome, run_ranks
from runs import checkpoints, folder_of, records, steps_of

from xtdist.config import ConfigError, from_mapping, to_mapping
from xtdist.optim import lr_at
from xtdist.track import read_series
from xtdist.train import RunSpec
from xtdist.train.aside import AsideJob, examine

Runs = dict[str, tuple[RunSpec, Outcome]]
BOTH = {
    "checkpoint.every": 4,
    "checkpoint.keep": 9,
    "optim.ema": {"decay": 0.7, "evaluate": True},
    "loop.sample_prompts": ("def ",),
    "loop.sample_tokens": 4,
    "batch.micro_batch_tokens": 32,
}
NAR = {
    "objective": {"kind": "nonautoregressive"},
    "model.causal": False,
    "data.documents": "masked",
    "checkpoint.every": 4,
}
ASIDE = {"loop.aside": {}}
LATE = ASIDE | {"checkpoint.every": 4, "optim.groups": [{"match": "*", "lr_scale": 0.5}]}
KEEP_ONE = {"checkpoint.every": 1, "checkpoint.keep": 1, "loop.valid_every": 1, "loop.steps": 12}
LOSSES = ("eval/valid/loss", "eval/valid/ema_loss", "eval/valid/bits_per_byte")


@pytest.fixture(scope="module")
def runs(make_spec: Any) -> Runs:
    specs = {
        "by the workers": make_spec("workers", BOTH),
        "nar": make_spec("nar", NAR),
        "task_in_thread": make_spec("task", BOTH | ASIDE),
        "task_that_reads_long": make_spec("long", KEEP_ONE | ASIDE),
        "task_that_fails": make_spec("late", LATE),
        "task_in_thread later": make_spec("late", LATE | {"loop.steps": 12}),
        "no Ray": make_spec("alone", ASIDE | {"checkpoint.every": 4}),
    }
    faults = {i: name.split()[0] for i, name in enumerate(specs) if name.startswith("task")}
    outcomes = run_ranks(list(specs.values()), patches=faults)
    return {n: (s, o) for (n, s), o in zip(specs.items(), outcomes, strict=True)}


def job_of(spec: RunSpec, number: int, **changes: Any) -> dict[str, Any]:
    path = checkpoints(spec)[number]
    job = AsideJob(
        spec=spec,
        place=str(path.parent),
        name=path.name,
        step=steps_of(spec)[number],
        validate=True,
    )
    return to_mapping(job) | changes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["by the workers", "nar"])
def test_a_task_alone_finds_the_losses_that_the_workers_find_together(
    runs: Runs, name: str
) -> None:
    spec, outcome = runs[name]
    assert outcome.ok, outcome.printed
    for number in (0, 1):
        found = examine(job_of(spec, number))["metrics"]
        seen = [key for key in LOSSES if records(spec, key)]
        assert len(seen) == (3 if name == "by the workers" else 2)
        for key in seen:
            assert found[key] == pytest.approx(records(spec, key)[number], rel=1e-6)


@pytest.mark.slow
def test_sequences_that_workers_share_are_whole_in_a_task(runs: Runs) -> None:
    spec, _ = runs["by the workers"]
    job = job_of(spec, 1)
    job["spec"]["engine"] |= {"sequence_parallel": 2, "zero_stage": 3, "hpz_partition_size": 2}
    assert examine(job)["metrics"]["eval/valid/loss"] == pytest.approx(
        records(spec, "eval/valid/loss")[1], rel=1e-6
    )


@pytest.mark.slow
def test_a_run_with_tasks_has_the_steps_losses_and_samples_of_one_without(runs: Runs) -> None:
    workers, _ = runs["by the workers"]
    spec, outcome = runs["task_in_thread"]
    assert outcome.ok, outcome.printed
    assert records(spec, "train/loss") == records(workers, "train/loss")
    series, wanted = read_series(folder_of(spec)), read_series(folder_of(workers))
    for key in LOSSES:
        assert series[key].steps[-1] == 8  # the end waits for it
        by_step = dict(zip(wanted[key].steps, wanted[key].values, strict=True))
        for step, value in zip(series[key].steps, series[key].values, strict=True):
            assert value == pytest.approx(by_step[step], rel=1e-6)
    assert samples(spec)[-1] == samples(workers)[-1]
    assert samples(spec)[-1]["step"] == 8


def samples(spec: RunSpec) -> list[dict[str, Any]]:
    lines = (folder_of(spec) / "samples.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_checkpoint_that_a_task_reads_is_kept_and_the_newest_is_next(runs: Runs) -> None:
    """The task itself compares its checkpoint with the manifest when it ends."""
    spec, outcome = runs["task_that_reads_long"]
    assert outcome.ok, outcome.printed
    assert records(spec, "aside/misses") == []
    steps = read_series(folder_of(spec))["eval/valid/loss"].steps
    assert 2 <= len(steps) < 12  # some were overtaken
    assert steps[-1] == 12
    assert steps_of(spec) == [12]


@pytest.mark.slow
def test_tasks_that_fail_are_warnings_and_the_next_attempt_makes_up_for_the_last(
    runs: Runs,
) -> None:
    _, outcome = runs["task_that_fails"]
    assert outcome.ok, outcome.printed
    spec, outcome = runs["task_in_thread later"]
    assert outcome.ok, outcome.printed
    assert len(records(spec, "train/loss")) == 12
    assert records(spec, "aside/misses") == [1.0, 2.0]
    notes = (folder_of(spec) / "notes.jsonl").read_text()
    assert "no validation of the checkpoint of step 4: its node burnt down" in notes
    assert "no validation of the checkpoint of step 8: nobody answers" in notes
    assert read_series(folder_of(spec))["eval/valid/loss"].steps == [8, 12]


@pytest.mark.slow
def test_the_rate_is_the_schedule_s_whatever_the_groups_make_of_it(runs: Runs) -> None:
    spec, _ = runs["task_that_fails"]
    assert records(spec, "train/lr") == [lr_at(spec.optim, step, 8) for step in range(12)]


@pytest.mark.slow
def test_workers_without_ray_say_so(runs: Runs) -> None:
    _, outcome = runs["no Ray"]
    assert outcome.same_error.startswith("ConfigError: loop.aside: needs Ray")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "early stop": ({"loop.early_stop": {}}, r"loop\.early_stop: decides at the step"),
    "nothing": ({"loop.valid_every": 0}, r"loop\.aside: has nothing to do"),
    "not aligned": (
        {"loop.valid_every": 10},
        r"loop\.valid_every: got 10 .* checkpoint\.every is 4; give a multiple of that, 8 ",
    ),
    "too often": ({"loop.valid_every": 2}, r"loop\.valid_every: got 2 .* 4 for example"),
    "best": ({"checkpoint.keep_best": 1}, r"checkpoint\.keep_best: got 1 with loop\.aside"),
    "cpus": ({"loop.aside": {"cpus": 0}}, r"loop\.aside\.cpus"),
    "gpus": ({"loop.aside": {"gpus": 2}}, r"loop\.aside\.gpus"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_task_can_not_give_is_refused(make_spec: Any, name: str) -> None:
    changes, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        make_spec("refused", ASIDE | {"checkpoint.every": 4} | changes)


def test_the_best_by_what_is_known_at_the_save_may_be_kept(make_spec: Any) -> None:
    best = {"checkpoint.keep_best": 1, "checkpoint.metric": "train/loss"}
    spec = make_spec("best", ASIDE | {"checkpoint.every": 4} | best)
    assert from_mapping(RunSpec, to_mapping(spec)) == spec
