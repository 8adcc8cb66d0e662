"""Which paths are understood, and what is tried again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from xtdist.config import ConfigError, DataError, ResourceError
from xtdist.data.storage.location import locate
from xtdist.data.storage.retry import Backoff, TransferError, retry, worth_retrying


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://host/x", "unknown scheme 'http'"),
        ("hdfs://host/x", "s3://bucket/path"),
        ("s3:///key", "names no bucket"),
        ("s3://id:hunter2@bucket/key", "credentials"),
        ("s3://bucket/key?secret_key=hunter2", "'secret_key' is not allowed; credentials"),
        ("s3://bucket/key?session_token=hunter2", "credentials come only from"),
        ("s3://bucket/key?speed=hunter2", "unknown option 'speed'; allowed: endpoint_override"),
        ("s3://bucket/key?scheme=ftp", "allowed: http, https"),
        ("s3://bucket/key?anonymous=maybe", "allowed: true, false"),
        ("s3://bucket/a#b", "%23"),
        ("gs://bucket/a?region=x", "for S3 only"),
    ],
)
def test_a_uri_that_is_not_understood_is_refused_without_its_secrets(uri: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        locate(uri)
    assert said in str(error.value)
    assert "hunter2" not in str(error.value)


def test_paths_and_uris_become_a_file_system_and_a_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/x").path == str(tmp_path / "x")
    there = locate("s3://bucket//a/b%20c/?region=eu-west-1&endpoint_override=127.0.0.1:1")
    assert (there.name, there.path, there.remote) == ("s3://bucket/a/b c", "bucket/a/b c", True)
    assert there.filesystem.region == "eu-west-1"
    assert there.join("d").path == "bucket/a/b c/d"
    google = locate("gs://bucket/a?anonymous=true&endpoint_override=127.0.0.1:1&scheme=http")
    assert (google.filesystem.type_name, google.path) == ("gcs", "bucket/a")


def test_the_endpoint_of_the_environment_is_used(
    s3_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{s3_server}")
    there = locate("s3://bucket")
    assert there.filesystem.get_file_info("bucket").is_file is False
    with there.filesystem.open_output_stream("bucket/from-environment") as out:
        out.write(b"x")
    assert there.filesystem.get_file_info("bucket/from-environment").size == 1


def failing(errors: list[OSError]) -> Callable[[], str]:
    def action() -> str:
        if errors:
            raise errors.pop(0)
        return "done"

    return action


def test_waits_double_up_to_the_longest_with_a_random_share() -> None:
    waits: list[float] = []
    backoff = Backoff(tries=9, first_wait_s=1, longest_wait_s=16)
    assert retry(failing([TransferError()] * 8), what="x", backoff=backoff, sleep=waits.append)
    for wait, whole in zip(waits, (1, 2, 4, 8, 16, 16, 16, 16), strict=True):
        assert whole / 2 <= wait <= whole
    assert len({w / round(w) for w in waits}) > 1


def test_what_fails_for_long_is_told_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    now: list[float] = [0.0]
    told: list[tuple[float, str]] = []

    def sleep(wait: float) -> None:
        told.append((now[0], capsys.readouterr().err))
        now[0] += wait

    retry(
        failing([TransferError("cut")] * 7),
        what="s3://b/k",
        backoff=Backoff(first_wait_s=1.0),
        sleep=sleep,
        clock=lambda: now[0],
    )
    for at, text in told:
        assert text == ("s3://b/k: cut; trying again\n" if at > 5 else "")
    assert told[-1][0] > 5


def test_tries_and_time_are_bounded() -> None:
    calls: list[float] = []
    with pytest.raises(DataError, match=r"^s3://b/k: failed 8 times .* last: cut"):
        retry(failing([TransferError("cut")] * 99), what="s3://b/k", sleep=calls.append)
    assert len(calls) == 7
    now = [0.0]

    def sleep(wait: float) -> None:
        now[0] += wait

    backoff = Backoff(tries=1000, longest_wait_s=5, total_s=60)
    with pytest.raises(DataError):
        retry(
            failing([TransferError("cut")] * 999),
            what="x",
            backoff=backoff,
            sleep=sleep,
            clock=lambda: now[0],
        )
    assert 50 < now[0] <= 60


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (OSError("AWS Error SLOW_DOWN (HTTP status 503) during GetObject"), True),
        (OSError("AWS Error UNKNOWN (HTTP status 429) during GetObject"), True),
        (OSError("AWS Error NETWORK_CONNECTION during HeadObject: curlCode: 7"), True),
        (OSError("AWS Error ACCESS_DENIED (HTTP status 403) during HeadObject"), False),
        (OSError("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation"), False),
        (OSError("google::cloud::Status(PERMISSION_DENIED: no)"), False),
        (OSError("google::cloud::Status(UNAVAILABLE: later)"), True),
        (PermissionError("no"), False),
        (FileNotFoundError("no"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (TransferError("short"), True),
        (ConnectionResetError("reset"), True),
    ],
)
def test_only_what_may_work_later_is_tried_again(error: OSError, again: bool) -> None:
    assert worth_retrying(error) is again


def test_errors_that_no_retry_helps_keep_their_kind() -> None:
    with pytest.raises(FileNotFoundError):
        retry(failing([FileNotFoundError()]), what="x")
    with pytest.raises(ResourceError, match="No space left"):
        retry(failing([OSError(errno.ENOSPC, "No space left on device")]), what="x")
    with pytest.raises(DataError, match=r"x: access denied .*AWS_ACCESS_KEY_ID"):
        retry(failing([OSError("AWS Error ACCESS_DENIED (HTTP status 403)")]), what="x")
