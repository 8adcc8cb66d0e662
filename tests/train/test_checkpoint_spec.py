"""Where checkpoints go and which are kept, as the user says it."""

from __future__ import annotations

from pathlib import Path

import pytest

from xtdist.config import ConfigError, from_mapping
from xtdist.train.spec import CheckpointSpec

RUN = Path("/runs/mine")


@pytest.mark.parametrize(
    ("url", "place", "lease"),
    [
        (None, "/runs/mine/checkpoints", "/runs/mine"),
        ("/big/disk/", "/big/disk/mine", "/runs/mine"),
        ("s3://bucket/team", "s3://bucket/team/mine", "s3://bucket/team/mine"),
        ("s3://b/t?region=eu", "s3://b/t/mine?region=eu", "s3://b/t/mine?region=eu"),
    ],
)
def test_a_run_has_a_place_of_its_own_under_the_url(
    url: str | None, place: str, lease: str
) -> None:
    spec = CheckpointSpec(url=url)
    assert (spec.place(RUN), spec.lease_place(RUN)) == (place, lease)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"url": "gs://bucket/x"}, "s3://bucket/path"),
        ({"url": ""}, "leave it out"),
        ({"url": "s3://"}, "names no bucket"),
        ({"url": "s3://key:secret@bucket/x"}, "credentials"),
        ({"keep": 0}, "keep"),
        ({"every_minutes": 0}, "every_minutes"),
        ({"keep_best": 1, "metric": "train/grad_norm"}, "lower_is_better: must be given"),
    ],
)
def test_what_can_not_be_honoured_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_mapping(CheckpointSpec, changes)


@pytest.mark.parametrize(
    ("metric", "given", "lower"),
    [
        ("eval/valid/loss", None, True),
        ("eval/valid/bits_per_byte", None, True),
        ("eval/valid/accuracy", None, False),
        ("eval/valid/accuracy", True, True),
        ("train/grad_norm", False, False),
    ],
)
def test_which_way_is_better_follows_from_the_metric_or_is_said(
    metric: str, given: bool | None, lower: bool
) -> None:
    spec = CheckpointSpec(keep_best=1, metric=metric, lower_is_better=given)
    assert spec.retention.lower_is_better is lower
