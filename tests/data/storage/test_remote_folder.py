"""Reading from an object store gives what a local folder gives, whatever happens on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from object_store import Faults, make_dataset, put, shards_of, uri

from xtdist.config import ConfigError, DataError, ResourceError
from xtdist.data import TokenDataset
from xtdist.data.manifest import MANIFEST_FILE, parse_manifest
from xtdist.data.storage import retry as retry_module
from xtdist.data.storage import transfer
from xtdist.data.storage.config import CacheConfig
from xtdist.data.storage.copy import copy_dataset
from xtdist.data.storage.folder import Folder, LocalFolder, open_folder
from xtdist.data.storage.location import locate
from xtdist.data.storage.transfer import RemoteFile, open_input

Remote = Callable[[str], str]


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module.Backoff, "wait_s", lambda self, failures: 0.002)


def token_hash(folder: Folder) -> str:
    """Of all tokens of all shards, read by pyarrow alone."""
    digest = hashlib.sha256()
    manifest = parse_manifest(folder.read_bytes(MANIFEST_FILE), folder.name)
    for info in shards_of(manifest):
        folder.check(info)
        with pa.memory_map(str(folder.shard(info))) as source:
            column = pa.ipc.open_file(source).read_all().column("tokens")
            digest.update(column.combine_chunks().flatten().to_numpy().tobytes())
        folder.release(info)
    digest.update(folder.read_bytes("tokenizer.json"))
    return digest.hexdigest()


def cache_at(path: Path, limit_gb: float = 1.0) -> CacheConfig:
    return CacheConfig(folder=str(path / "cache"), limit_gb=limit_gb)


def open_at(target: str, path: Path, limit_gb: float = 1.0) -> Folder:
    return open_folder(target, cache_at(path, limit_gb))


@pytest.mark.parametrize("compress", [False, True])
def test_remote_tokens_are_the_local_ones(remote: Remote, tmp_path: Path, compress: bool) -> None:
    make_dataset(tmp_path / "local")
    copy_dataset(tmp_path / "local", remote("ds"), compress=compress)
    names = {f.base_name for f in files_at(remote("ds"))}
    assert any(n.endswith(".zst") for n in names) == compress
    folder = open_at(remote("ds"), tmp_path)
    assert folder.exists()
    assert token_hash(folder) == token_hash(LocalFolder(tmp_path / "local"))
    assert token_hash(folder) == token_hash(LocalFolder(tmp_path / "local"))  # from the cache


def test_a_dataset_reads_the_same_through_a_cache_that_holds_part_of_it(
    remote: Remote, tmp_path: Path
) -> None:
    manifest = make_dataset(tmp_path / "local", shards=8)
    copy_dataset(tmp_path / "local", remote("ds"), compress=True)
    most = 4 * max(s.bytes for s in shards_of(manifest))
    here = TokenDataset.open(tmp_path / "local")
    there = TokenDataset.open(remote("ds"), cache=cache_at(tmp_path, most / 1e9))
    assert there.dataset_id == here.dataset_id
    for start in [0, here.total_tokens // 2, here.total_tokens - 3000, 100, 5000]:
        assert there.read(start, start + 3000).tolist() == here.read(start, start + 3000).tolist()
    assert sum(p.stat().st_size for p in (tmp_path / "cache").rglob("*.arrow")) <= most


def files_at(target: str) -> list[object]:
    from pyarrow import fs

    where = locate(target)
    return where.filesystem.get_file_info(fs.FileSelector(where.path))  # type: ignore[no-any-return]


def check_under_faults(faults: Faults, tmp_path: Path, *, name: str, rounds: int) -> None:
    make_dataset(tmp_path / "local", shards=3)
    expected = token_hash(LocalFolder(tmp_path / "local"))
    for compress in (False, True):
        target = uri(faults.port, f"{name}/{compress}")
        faults.share = 0.2
        copy_dataset(tmp_path / "local", target, compress=compress)
        for i in range(rounds):
            folder = open_at(target, tmp_path / f"{compress}{i}")
            assert token_hash(folder) == expected
        copy_dataset(target, tmp_path / f"back{compress}")
        faults.share = 0.0
        assert token_hash(LocalFolder(tmp_path / f"back{compress}")) == expected
    assert set(faults.did) == set(faults.kinds)


def test_a_fifth_of_requests_spoilt_changes_no_token(faults: Faults, tmp_path: Path) -> None:
    check_under_faults(faults, tmp_path, name="fifth", rounds=1)


@pytest.mark.long
def test_a_fifth_of_requests_spoilt_changes_no_token_in_many_rounds(
    faults: Faults, tmp_path: Path
) -> None:
    check_under_faults(faults, tmp_path, name="many", rounds=30)


def test_a_large_object_in_many_ranges_survives_faults(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CHUNK_BYTES", 1000)
    faults.kinds = ("error", "cut")  # the others need a hash to be seen
    data = bytes(range(256)) * 80
    put(uri(faults.port, "ranges/x"), data)
    faults.share = 0.2
    try:
        file = RemoteFile(locate(uri(faults.port, "ranges/x")))
        assert b"".join(file.chunks()) == data
    finally:
        faults.kinds = ("error", "cut", "short", "flip")
    assert sum(faults.did.values()) > 3


def test_a_remote_file_seeks_and_reads_as_a_local_one(remote: Remote, tmp_path: Path) -> None:
    data = bytes(range(256)) * 10
    (tmp_path / "x").write_bytes(data)
    put(remote("x"), data)
    with open_input(locate(remote("x"))) as there, open_input(locate(tmp_path / "x")) as here:
        for offset, whence, size in [
            (7, 0, 5),
            (3, 1, 900),
            (-9, 2, 100),
            (0, 0, 0),
            (99999, 0, 5),
        ]:
            assert there.seek(offset, whence) == here.seek(offset, whence)
            assert there.read(size) == here.read(size)
            assert there.tell() == here.tell()
        there.seek(0)
        assert there.read() == data


def test_a_shard_of_another_content_is_refused_by_name(remote: Remote, tmp_path: Path) -> None:
    info = make_dataset(tmp_path / "local").splits["train"][0]
    data = bytearray((tmp_path / "local" / info.path).read_bytes())
    data[len(data) // 2] ^= 1
    put(remote("ds").replace("ds?", f"ds/{info.path}?"), bytes(data))
    folder = open_at(remote("ds"), tmp_path)
    folder.check(info)
    with pytest.raises(DataError, match=f"{info.path}: failed 8 times.*sha256"):
        folder.shard(info)
    assert [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".part", ".arrow")] == []


def test_a_shard_of_another_size_or_none_is_refused_by_name(remote: Remote, tmp_path: Path) -> None:
    info, other = make_dataset(tmp_path / "local").splits["train"][:2]
    put(remote("ds").replace("ds?", f"ds/{info.path}?"), b"short")
    folder = open_at(remote("ds"), tmp_path)
    with pytest.raises(DataError, match=f"{info.path}: shard has 5 bytes, not {info.bytes}"):
        folder.check(info)
    with pytest.raises(DataError, match=f"{info.path}: failed 8 times.*5 bytes"):
        folder.shard(info)
    with pytest.raises(DataError, match=f"{other.path}: shard is missing"):
        folder.check(other)
    with pytest.raises(DataError, match=f"{other.path}: shard is missing"):
        folder.shard(other)
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")
    assert not open_at(remote("elsewhere"), tmp_path).exists()


def test_a_shard_flipped_in_the_cache_is_fetched_again(remote: Remote, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "local")
    copy_dataset(tmp_path / "local", remote("ds"))
    expected = token_hash(LocalFolder(tmp_path / "local"))
    assert token_hash(open_at(remote("ds"), tmp_path)) == expected
    cached = sorted((tmp_path / "cache").rglob("*.arrow"))
    assert len(cached) == len(shards_of(manifest))
    for path in cached:
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 16
        path.write_bytes(data)
    cached[0].write_bytes(b"cut")
    assert token_hash(open_at(remote("ds"), tmp_path)) == expected
    for path in cached:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem


def test_a_cache_too_small_for_one_shard_or_what_is_mapped_is_named(
    remote: Remote, tmp_path: Path
) -> None:
    shards = make_dataset(tmp_path / "local").splits["train"]
    copy_dataset(tmp_path / "local", remote("ds"))
    size = max(s.bytes for s in shards)
    with pytest.raises(ResourceError, match=r"cache.limit_gb"):
        open_at(remote("ds"), tmp_path, size / 2 / 1e9).shard(shards[0])
    folder = open_at(remote("ds"), tmp_path, size * 1.5 / 1e9)
    folder.shard(shards[0])
    with pytest.raises(ResourceError, match=r"cache.limit_gb"):
        folder.shard(shards[1])
    folder.release(shards[0])
    assert folder.shard(shards[1]).exists()


def test_what_the_store_denies_is_said_without_another_try(
    faults: Faults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(retry_module.time, "sleep", calls.append)
    with pytest.raises(FileNotFoundError):
        open_at(uri(faults.port, "denied/ds"), tmp_path).read_bytes(MANIFEST_FILE)
    assert calls == []


def test_the_cache_folder_must_be_local_and_writable(remote: Remote, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder: got 's3://"):
        CacheConfig(folder="s3://bucket/cache")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ResourceError, match=r"cache.folder: .*cache"):
        open_at(remote("ds"), tmp_path)
