"""What runs read of mixtures with documents kept apart: the same on any number of workers, and in a
run that goes on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import Outcome, run_ranks
from runs import checkpoints, folder_of, records, steps_of

from xtdist.checkpoint import read_manifest
from xtdist.checkpoint.weights import load_weights
from xtdist.data import TokenDataset, View, open_view
from xtdist.train import RunSpec

MASKED: dict[str, Any] = {
    "objective": {"kind": "nonautoregressive", "self_cond": True},
    "model.causal": False,
}
BASE: dict[str, Any] = {
    "loop.steps": 6,
    "loop.valid_every": 6,
    "checkpoint.every": 6,
    "batch.micro_batch_tokens": 64,
}
KINDS: dict[str, dict[str, Any]] = {
    "packed": {"data.documents": "packed", "model.position": {"kind": "learned"}},
    "masked": {"data.documents": "masked"},
    "nar": {"data.documents": "packed", **MASKED},
}


@pytest.fixture(scope="module")
def mixture(dataset: Path, other_dataset: Path) -> dict[str, Any]:
    """Two corpora, other shares from step 4 of the data, and a step that is left out."""
    return {
        "data.path": None,
        "data.corpora": {
            "one": {"path": str(dataset), "weight": 0.75},
            "two": {"path": str(other_dataset), "weight": 0.25},
        },
        "data.phases": [{"from_step": 4, "weights": {"one": 0, "two": 1}}],
        "data.skip": [[1, 2]],
    }


def view_of(spec: RunSpec, split: str = "train") -> View:
    return open_view(
        spec.data,
        split,
        seq_len=spec.data.seq_len,
        seed=spec.seed,
        global_batch=spec.global_batch,
    )


def noted(spec: RunSpec) -> dict[int, list[tuple[int, list[int], list[int] | None]]]:
    """By step what all workers read: sample id, tokens, documents; in the order of the ids."""
    steps: dict[int, list[Any]] = {}
    for path in sorted(folder_of(spec).glob("batches-*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            documents = row["documents"] or [None] * len(row["tokens"])
            steps.setdefault(row["step"], []).extend(
                zip(row["sample_ids"], row["tokens"], documents, strict=True)
            )
    return {step: sorted(rows, key=lambda row: row[0]) for step, rows in steps.items()}


def traced(spec: RunSpec, step: int) -> list[tuple[int, list[int]]]:
    """The same without documents, from the text of the datasets by way of the trace."""
    view, rows = view_of(spec), []
    for row in view.trace(step).rows:
        data, tokens = view.datasets[row.corpus], [view.tokenizer.pad_id] * (spec.data.seq_len + 1)
        for piece in row.pieces:
            ((start,), _) = data.document_bounds(np.array([piece.document]))
            part = data.read(int(start) + piece.start, int(start) + piece.stop)
            tokens[piece.column : piece.column + len(part)] = part.tolist()
        rows.append((row.sample_id, tokens))
    return rows


Runs = dict[str, tuple[RunSpec, Outcome]]


def kinds_on(workers: int, make_spec: Any, mixture: dict[str, Any]) -> Runs:
    """Every kind on so many workers, what they read noted."""
    count = {"workers.count": workers}
    specs = {
        kind: make_spec(f"{kind}{workers}", {**BASE, **mixture, **more, **count})
        for kind, more in KINDS.items()
    }
    noting = dict.fromkeys(range(len(specs)), "noted_batches")
    outcomes = run_ranks(list(specs.values()), patches=noting)
    return {n: (s, o) for (n, s), o in zip(specs.items(), outcomes, strict=True)}


@pytest.fixture(scope="module")
def three(make_spec: Any, mixture: dict[str, Any]) -> Runs:
    """3 workers, which don't divide the 8 sequences of a step."""
    return kinds_on(3, make_spec, mixture)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_workers_together_read_what_the_trace_says(three: Runs, kind: str) -> None:
    spec, outcome = three[kind]
    assert outcome.ok, outcome.printed
    batches = noted(spec)
    assert sorted(batches) == list(range(6))
    for step, rows in batches.items():
        assert [(i, tokens) for i, tokens, _ in rows] == traced(spec, step)
        assert all(documents is not None for _, _, documents in rows)
    assert all(0 <= share <= 1 for share in records(spec, "perf/data_wait_share"))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_reads_the_same_samples(
    three: Runs, make_spec: Any, mixture: dict[str, Any], workers: int
) -> None:
    for kind, (spec, outcome) in kinds_on(workers, make_spec, mixture).items():
        assert outcome.ok, outcome.printed
        other = three[kind][0]
        assert noted(spec) == noted(other)
        for key in ("train/loss", "eval/valid/loss", "eval/one/loss", "eval/two/bits_per_byte"):
            assert records(spec, key) == pytest.approx(records(other, key), rel=1e-5), key


@pytest.mark.slow
def test_the_order_is_the_one_that_the_config_describes(three: Runs) -> None:
    """Steps 0 to 5 read steps 0, 2, 3, 4, 5, 6 of the data; from 4 on the second corpus alone."""
    spec, _ = three["masked"]
    assert [noted(spec)[step][0][0] for step in range(6)] == [0, 16, 24, 32, 40, 48]
    corpora = [[row.corpus for row in view_of(spec).trace(step).rows] for step in range(6)]
    assert [names.count("two") for names in corpora] == [2, 2, 2, 8, 8, 8]


@pytest.mark.slow
def test_every_corpus_is_validated_inside_its_documents(three: Runs) -> None:
    """By the full softmax over each document's part of a window alone."""
    spec, _ = three["masked"]
    model, view = load_weights(folder_of(spec)).model, view_of(spec, "valid")
    nats, targets, text_bytes = 0.0, 0, 0.0
    for name, windows in zip(view.names, view.windows, strict=True):
        data, own, count = view.datasets[name], 0.0, 0
        last = windows.count - 1
        chosen = sorted({i * last // 8 for i in range(9)})
        for index in chosen:
            row = data.read(index * 16, index * 16 + 17).astype(np.int64)
            for part in np.split(row, np.flatnonzero(row == data.tokenizer.eot_id) + 1):
                if len(part) > 1:
                    x = torch.from_numpy(part)[None]
                    with torch.no_grad():
                        logits = model(x[:, :-1])[0]
                    own += F.cross_entropy(logits, x[0, 1:], reduction="sum").item()
                    count += len(part) - 1
        assert records(spec, f"eval/{name}/loss") == pytest.approx([own / count], rel=1e-4)
        nats, targets = nats + own, targets + count
        text_bytes += count * data.text_bytes / data.total_tokens
    assert records(spec, "eval/valid/loss") == pytest.approx([nats / targets], rel=1e-4)
    (bits,) = records(spec, "eval/valid/bits_per_byte")
    assert bits == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-4)


@pytest.mark.slow
def test_what_comes_later_may_change_and_what_was_read_may_not(
    make_spec: Any, mixture: dict[str, Any], dataset: Path, other_dataset: Path
) -> None:
    """All on one folder: a run of 3 steps (of the data: 0, 2, 3), what can't go on from it, what
    can."""
    base = BASE | mixture | {"checkpoint.every": 3, "loop.valid_every": 0}
    one, two = str(dataset), str(other_dataset)
    refused: dict[str, dict[str, Any]] = {
        "data.corpora.one.weight: checkpoint 0.75, config 0.5": {"data.corpora.one.weight": 0.5},
        "data.corpora.one.dataset_id: ": {
            "data.corpora": {
                "one": {"path": two, "weight": 0.75},
                "two": {"path": two, "weight": 0.25},
            }
        },
        "data.skip: checkpoint [[1, 2]], config []": {"data.skip": []},
        "data.skip: checkpoint [[1, 2]], config [[1, 2], [3, 4]]": {"data.skip": [[1, 2], [3, 4]]},
        "data.phases: checkpoint [], config [{'from_step': 3": {
            "data.phases": [{"from_step": 3, "weights": {"one": 1, "two": 1}}]
        },
        "data.documents: checkpoint 'joined', config 'masked'": {"data.documents": "masked"},
        "data.shuffle.kind: checkpoint 'uniform', config 'none'": {"data.shuffle.kind": "none"},
        "data.dataset_id: checkpoint None, config '": {
            "data.path": one,
            "data.corpora": {},
            "data.phases": [],
        },
    }
    future = {
        "data.skip": [[1, 2], [4, 6]],
        "data.phases": [{"from_step": 4, "weights": {"one": 1, "two": 1, "three": 2}}],
        "data.corpora": {
            **mixture["data.corpora"],
            "three": {"path": two, "weight": 0},
        },
    }
    specs = [make_spec("going", base | {"loop.steps": 3})]
    specs += [make_spec("going", base | changes) for changes in refused.values()]
    specs += [make_spec("going", base | future)]
    outcomes = run_ranks(specs, patches=dict.fromkeys(range(len(specs)), "noted_batches"))
    assert outcomes[0].ok, outcomes[0].printed
    for said, outcome in zip(refused, outcomes[1:-1], strict=True):
        error = outcome.same_error
        assert error.startswith("CheckpointError: "), said
        assert f"\n  {said}" in error
    assert outcomes[-1].ok, outcomes[-1].printed
    assert steps_of(specs[-1]) == [3, 6]
    batches = noted(specs[-1])
    for step in range(6):
        rows = [(i, tokens) for i, tokens, _ in batches[step]]
        assert rows == traced(specs[0] if step < 3 else specs[-1], step)
    assert [batches[step][0][0] // 8 for step in range(6)] == [0, 2, 3, 6, 7, 8]
    meta = read_manifest(checkpoints(specs[-1])[-1]).meta
    assert set(meta["identity"]["data"]["corpora"]) == {"one", "two", "three"}
    saved = load_weights(folder_of(specs[-1])).meta["dataset_id"]
    assert saved["two"] == saved["three"] == TokenDataset.open(other_dataset).dataset_id
