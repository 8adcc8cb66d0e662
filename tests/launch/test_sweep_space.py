"""The trials of a sweep: drawn from its seed, and every one of them possible before any starts."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from xtdist.cli.main import main
from xtdist.config import ConfigError, from_mapping
from xtdist.launch.sweep.draw import points_of, trials_of
from xtdist.launch.sweep.run import plan_sweep
from xtdist.launch.sweep.spec import SweepSpec

RUN: dict[str, Any] = {
    "name": "base",
    "data": {"path": "nowhere", "seq_len": 16},
    "model": {"dim": 32, "depth": 1, "heads": 4, "attention": {"dim_head": 8}},
    "batch": {"tokens_per_step": 64},
    "loop": {"steps": 40, "valid_every": 10},
}
RATE = {"kind": "log_uniform", "low": 1e-4, "high": 1e-2}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(RUN))
    return path


def sweep_of(base: Path | str = "base.yaml", **changes: Any) -> SweepSpec:
    tree = {"name": "s", "base": str(base), "space": {"optim.lr": RATE}, **changes}
    return from_mapping(SweepSpec, tree)


def test_draws_follow_from_the_seed_and_more_trials_keep_the_first_ones() -> None:
    space = {"optim.lr": RATE, "model.depth": {"kind": "integer", "low": 1, "high": 9}}
    few = list(points_of(sweep_of(space=space, search={"kind": "random", "trials": 5})))
    assert len(few) == 5
    assert few == list(points_of(sweep_of(space=space, search={"kind": "random", "trials": 5})))
    many = list(points_of(sweep_of(space=space, search={"kind": "random", "trials": 20})))
    assert many[:5] == few
    assert few != list(points_of(sweep_of(space=space, seed=1)))[:5]
    # a place's draws do not depend on the other places
    alone = list(points_of(sweep_of(search={"kind": "random", "trials": 5})))
    assert [p["optim.lr"] for p in alone] == [p["optim.lr"] for p in few]


def test_draws_are_spread_as_their_kind_says() -> None:
    space = {
        "log": RATE,
        "plain": {"kind": "uniform", "low": -1.0, "high": 3.0},
        "whole": {"kind": "integer", "low": 2, "high": 8, "step": 3},
        "word": {"kind": "choice", "values": ["a", None, 2]},
    }
    points = list(points_of(sweep_of(space=space, search={"kind": "random", "trials": 2000})))
    logs = [math.log10(p["log"]) for p in points]
    assert all(-4 <= x <= -2 for x in logs)
    assert sum(logs) / 2000 == pytest.approx(-3, abs=0.05)
    assert sum(x < -3.5 for x in logs) / 2000 == pytest.approx(0.25, abs=0.05)
    plain = [p["plain"] for p in points]
    assert all(-1 <= x <= 3 for x in plain)
    assert sum(plain) / 2000 == pytest.approx(1, abs=0.1)
    for value, among in ((2, "whole"), (5, "whole"), (8, "whole"), ("a", "word"), (None, "word")):
        assert sum(p[among] == value for p in points) / 2000 == pytest.approx(1 / 3, abs=0.05)
    assert {p["whole"] for p in points} == {2, 5, 8}


def test_nothing_is_drawn_twice_and_a_finite_space_ends() -> None:
    space = {
        "model.depth": {"kind": "integer", "low": 1, "high": 3},
        "model.tie_embedding": {"kind": "choice", "values": [True, False]},
    }
    points = list(points_of(sweep_of(space=space, search={"kind": "random", "trials": 50})))
    every = {(d, t) for d, t in itertools.product((1, 2, 3), (True, False))}
    assert {tuple(p.values()) for p in points} == every
    assert len(points) == 6
    grid = list(points_of(sweep_of(space=space, search={"kind": "grid"})))
    assert [tuple(p.values()) for p in grid] == list(itertools.product((1, 2, 3), (True, False)))


def test_a_trial_is_the_base_with_overrides_and_its_values(base: Path) -> None:
    space = {
        "optim": {
            "kind": "choice",
            "values": [{"kind": "muon", "lr": 0.02}, {"lr": 1e-3}],
        },
        "model.depth": {"kind": "choice", "values": [2]},
    }
    sweep = sweep_of(base, space=space, search={"kind": "grid"}, overrides=["loop.steps=30"])
    first, second = trials_of(sweep, "/where")
    assert (first.spec.optim.kind, first.spec.optim.lr, first.spec.model.depth) == ("muon", 0.02, 2)
    assert (second.spec.optim.kind, second.spec.optim.lr) == ("adamw", 1e-3)
    assert (first.spec.name, second.spec.name) == ("trial-000", "trial-001")
    assert first.spec.output == "/where"
    assert first.spec.loop.steps == 30


def test_trials_of_two_sweeps_do_not_share_a_place_for_checkpoints(base: Path) -> None:
    overrides = ["checkpoint.url=s3://bucket/all/"]
    (trial,) = trials_of(
        sweep_of(base, name="mine", overrides=overrides, search={"kind": "random", "trials": 1}),
        "/where",
    )
    assert trial.spec.checkpoint.place(Path("/where/trial-000")) == "s3://bucket/all/mine/trial-000"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no such place": (
        {"space": {"optim.lrr": RATE}},
        "space, at optim.lrr=0.0001: override 'optim.lrr=0.0001': unknown key 'lrr'; .*'lr'",
    ),
    "an end of a range": (
        {"space": {"optim.lr": {"kind": "uniform", "low": 0.0, "high": 1.0}}},
        "space, at optim.lr=0: .*optim.lr: got 0.0; it should be greater than 0",
    ),
    "one of the choices": (
        {"space": {"model.depth": {"kind": "choice", "values": [1, 2, "three"]}}},
        'space, at model.depth=three: .*got "three"',
    ),
    "a corner of two": (
        {
            "space": {
                "model.heads": {"kind": "choice", "values": [4, 3]},
                "model.attention.kv_heads": {"kind": "choice", "values": [1, 2]},
            }
        },
        "at model.heads=3 model.attention.kv_heads=2: .*it must divide heads",
    ),
    "what is each trial's own": ({"space": {"output": RATE}}, "gives each trial its output itself"),
    "what holds each trial's own": (
        {"space": {"track": {"kind": "choice", "values": [{"mlflow": False}]}}},
        "space: track: a sweep gives each trial its track.parent_run itself",
    ),
    "a place within another": (
        {"space": {"optim.lr": RATE, "optim": {"kind": "choice", "values": [{"lr": 0.5}]}}},
        "optim.lr and optim set the same place",
    ),
    "a value twice": (
        {"space": {"optim.lr": {"kind": "choice", "values": [0.1, 0.2, 0.1]}}},
        "got 0.1 twice",
    ),
    "a grid of a range": ({"search": {"kind": "grid"}}, "search.kind: got grid, and optim.lr"),
    "an empty range": (
        {"space": {"optim.lr": {"kind": "uniform", "low": 1.0, "high": 1.0}}},
        "low: got 1.0, not less than high",
    ),
    "an override": ({"overrides": ["loop.stepz=3"]}, "unknown key 'stepz'"),
    "a metric": ({"metric": "eval/test/loss"}, "metric: got 'eval/test/loss'.*eval/valid/loss"),
    "no validation": ({"overrides": ["loop.valid_every=0"]}, "metric: .*loop.valid_every=0"),
    "no stop": ({"stop": {"kind": "asha", "grace_steps": 40}}, "stop.grace_steps: got 40.*40 step"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_what_can_not_be_is_one_error_before_anything_starts(
    changes: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        plan_sweep(sweep_of(base, output=str(tmp_path / "runs"), **changes))
    assert not (tmp_path / "runs").exists()


def test_the_command_says_where_a_place_is_wrong(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sweep.yaml"
    config.write_text(yaml.safe_dump({"name": "s", "base": str(base), "space": {"optim.lr": RATE}}))
    assert main(["sweep", str(config), "model.dpeth=3"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "did you mean 'depth'?" in said
    assert main(["sweep", str(config), "space={optim.lr: {kind: log, low: 1, high: 2}}"]) == 2
    assert "kinds: 'choice', 'uniform', 'log_uniform', 'integer'" in capsys.readouterr().err
    assert main(["sweep", str(config), f"output={tmp_path / 'runs'}"]) == 2  # and there is no data
    assert "nowhere" in capsys.readouterr().err
