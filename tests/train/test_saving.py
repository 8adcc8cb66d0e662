"""Saving beside the steps: what a full disk, a slow one and an object store do to a run."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from ranks import Outcome, run_ranks
from runs import checkpoints, folder_of, records, steps_of

from xtdist.checkpoint import CheckpointStore, find_weights, load_weights, read_manifest
from xtdist.config import to_mapping
from xtdist.train import RunSpec
from xtdist.train.aside import AsideJob, examine

EVERY = {"checkpoint.every": 1, "loop.valid_every": 2}
TEMPLATE = "{{ messages[0].content }}"


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """A place on an S3 server, which the environment names as users do."""
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("AWS_")]:
        patch.delenv(name)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/bucket", headers={"Authorization": "AWS test:test"})
    assert connection.getresponse().status == 200
    yield "s3://bucket/team"
    server.stop()
    patch.undo()


@pytest.fixture(scope="module")
def runs(
    make_spec: Any, s3_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[RunSpec, Outcome]]]:
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # the cache of what is fetched
    store = {"checkpoint.url": s3_url, "checkpoint.every": 2}
    template = tmp_path_factory.mktemp("chat") / "any name.jinja"
    template.write_text(TEMPLATE)
    talks = {"checkpoint.keep": 2, "checkpoint.chat_template": str(template)}
    specs = {
        "well": make_spec("well", EVERY | talks),
        "full_at_first": make_spec("full_at_first", EVERY | {"checkpoint.keep": 9}),
        "full_for_ever": make_spec("full_for_ever", EVERY | {"checkpoint.max_misses": 3}),
        "slow_save": make_spec("slow_save", EVERY | {"checkpoint.keep": 9}),
        "store": make_spec("store", store | {"loop.steps": 4}),
        "store again": make_spec("store", store),
    }
    faults = dict(enumerate(specs))
    outcomes = run_ranks(
        list(specs.values()),
        patches={i: n for i, n in faults.items() if n.startswith(("full", "slow"))},
    )
    yield {n: (s, o) for (n, s), o in zip(specs.items(), outcomes, strict=True)}
    patch.undo()


@pytest.mark.slow
def test_the_newest_are_kept_and_their_manifests_say_what_they_are(runs: Any) -> None:
    spec, outcome = runs["well"]
    assert outcome.ok, outcome.printed
    assert steps_of(spec)[-1] == 8
    assert len(steps_of(spec)) == 2
    meta = read_manifest(checkpoints(spec)[-1]).meta
    assert meta["step"] == 8
    assert meta["tokens"] == 8 * 128
    assert meta["config"]["batch"]["tokens_per_step"] == 128
    assert meta["metric"] == records(spec, "eval/valid/loss")[-1]
    assert meta["environment"]["world"] == 2
    assert len(meta["model_fingerprint"]) == len(meta["tokenizer_sha256"]) == 64
    assert all(s >= 0 for s in records(spec, "perf/checkpoint_s"))


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_no_step_and_saving_catches_up(runs: Any) -> None:
    spec, outcome = runs["full_at_first"]
    assert outcome.ok, outcome.printed
    assert records(spec, "train/loss") == records(runs["well"][0], "train/loss")
    assert max(records(spec, "checkpoint/misses")) == 2
    assert steps_of(spec)[-1] == 8
    assert len(list((folder_of(spec) / "checkpoints").iterdir())) == len(steps_of(spec))
    assert "NOT saved (1 in a row): rank 1: " in outcome.printed
    assert "No space left on device" in outcome.printed


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_the_reason_on_every_rank(runs: Any) -> None:
    spec, outcome = runs["full_for_ever"]
    error = outcome.same_error
    assert error.startswith("CheckpointError: ")
    assert "3 checkpoints in a row could not be saved (checkpoint.max_misses)" in error
    assert "No space left on device" in error
    assert len(records(spec, "train/loss")) >= 3
    assert steps_of(spec) == []


@pytest.mark.slow
def test_a_save_that_takes_longer_than_its_interval_holds_no_step_up(runs: Any) -> None:
    spec, outcome = runs["slow_save"]
    assert outcome.ok, outcome.printed
    assert records(spec, "train/loss") == records(runs["well"][0], "train/loss")
    steps = steps_of(spec)
    assert steps[0] == 1
    assert steps[-1] == 8  # the last one is waited for
    assert len(steps) < 8  # those in between were deferred
    assert records(spec, "checkpoint/misses") == []


@pytest.mark.slow
def test_a_run_goes_on_from_an_object_store_and_its_weights_are_found_there(runs: Any) -> None:
    spec, outcome = runs["store"]
    assert outcome.ok, outcome.printed
    assert runs["store again"][1].ok, runs["store again"][1].printed
    assert not (folder_of(spec) / "checkpoints").exists()
    store = CheckpointStore(runs["store again"][0].checkpoint.place(folder_of(spec)))
    assert [store.manifest(n).meta["step"] for n in store.names()] == [4, 6, 8]
    rows = (folder_of(spec) / "metrics.jsonl").read_text().splitlines()
    losses = [row["train/loss"] for row in map(json.loads, rows) if "train/loss" in row]
    assert losses == records(runs["well"][0], "train/loss")
    commit = store.open(store.names()[-1])
    assert load_weights(commit.path).meta["step"] == 8
    assert find_weights(commit.path) == commit.path / "weights"
    aside = AsideJob(spec=spec, place=store.url, name=store.names()[-1], step=8, validate=True)
    found = examine(to_mapping(aside))["metrics"]  # a task beside the workers finds them too
    assert found["eval/valid/loss"] == pytest.approx(
        records(runs["well"][0], "eval/valid/loss")[-1], rel=1e-6
    )


def test_the_chat_template_of_a_run_lies_with_its_weights_and_is_vouched_for(runs):
    weights = find_weights(folder_of(runs["well"][0]))
    assert (weights / "chat_template.jinja").read_text() == TEMPLATE
    assert "chat_template.jinja" in read_manifest(weights).files
    others = find_weights(folder_of(runs["slow_save"][0]))
    assert "chat_template.jinja" not in read_manifest(others).files
