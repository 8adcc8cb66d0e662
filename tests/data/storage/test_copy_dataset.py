"""A copy is the dataset, verified, or no dataset; copying again goes on where it stopped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from object_store import make_dataset, put, shards_of

from xtdist.config import ConfigError, DataError
from xtdist.data.storage import copy as copy_module
from xtdist.data.storage.copy import copy_dataset
from xtdist.data.storage.location import locate
from xtdist.data.storage.remote import list_files

Remote = Callable[[str], str]


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("compress", [False, True])
def test_there_and_back_gives_the_same_files(
    remote: Remote, tmp_path: Path, compress: bool
) -> None:
    manifest = make_dataset(tmp_path / "a")
    seen: list[tuple[int, int]] = []
    report = copy_dataset(
        tmp_path / "a", remote("x"), compress=compress, progress=lambda *at: seen.append(at)
    )
    assert (report.copied, report.kept, report.dataset_id) == (4, 0, manifest.dataset_id)
    total = sum(s.bytes for s in shards_of(manifest))
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    copy_dataset(remote("x"), remote("y"))
    copy_dataset(remote("y"), tmp_path / "b")
    copy_dataset(tmp_path / "b", tmp_path / "c")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")
    assert copy_dataset(tmp_path / "a", remote("x")).copied == 0
    assert copy_dataset(remote("x"), tmp_path / "b").copied == 0


def test_a_copy_that_stopped_is_no_dataset_and_goes_on(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path / "a")
    done: list[str] = []
    whole = copy_module._Copy.shard

    def stops(self: copy_module._Copy, info: object) -> tuple[int, bool]:
        if len(done) >= 2:
            raise KeyboardInterrupt
        done.append("")
        return whole(self, info)  # type: ignore[arg-type]

    monkeypatch.setattr(copy_module._Copy, "shard", stops)
    monkeypatch.setattr(copy_module, "SHARDS_AT_A_TIME", 1)
    for target in (remote("x"), str(tmp_path / "b")):
        done.clear()
        with pytest.raises(KeyboardInterrupt):
            copy_dataset(tmp_path / "a", target)
        assert "manifest.json" not in list_files(locate(target))
    monkeypatch.undo()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    for target in (remote("x"), str(tmp_path / "b")):
        report = copy_dataset(tmp_path / "a", target)
        assert (report.copied, report.kept) == (2, 2)


def test_a_damaged_shard_is_repaired_at_the_target_and_refused_at_the_source(
    remote: Remote, tmp_path: Path
) -> None:
    info = make_dataset(tmp_path / "a").splits["train"][1]
    good = (tmp_path / "a" / info.path).read_bytes()
    bad = good[:-1] + bytes([good[-1] ^ 1])
    copy_dataset(tmp_path / "a", remote("x"))
    put(remote("x").replace("x?", f"x/{info.path}?"), bad)
    assert copy_dataset(tmp_path / "a", remote("x")).copied == 1
    copy_dataset(remote("x"), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    (tmp_path / "a" / info.path).write_bytes(bad)
    with pytest.raises(DataError, match=f"{info.path}: content changed"):
        copy_dataset(tmp_path / "a", remote("y"))
    assert "manifest.json" not in list_files(locate(remote("y")))


def test_another_dataset_or_other_files_are_never_overwritten(
    remote: Remote, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "a")
    make_dataset(tmp_path / "other", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    put(remote("z").replace("z?", "z/letter.txt?"), b"dear")
    copy_dataset(tmp_path / "other", remote("x"))
    before = contents(tmp_path / "other")
    for target in (remote("x"), str(tmp_path / "other")):
        with pytest.raises(DataError, match="holds another dataset"):
            copy_dataset(tmp_path / "a", target)
    for target in (remote("z"), str(tmp_path / "mine")):
        with pytest.raises(DataError, match=r"letter\.txt"):
            copy_dataset(tmp_path / "a", target)
    assert contents(tmp_path / "other") == before
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_what_can_not_be_copied_is_said(remote: Remote, tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    with pytest.raises(ConfigError, match="same place"):
        copy_dataset(tmp_path / "a", tmp_path / "a")
    with pytest.raises(ConfigError, match="compress is for remote"):
        copy_dataset(tmp_path / "a", tmp_path / "b", compress=True)
    for source in (tmp_path / "none", remote("none")):
        with pytest.raises(DataError, match=r"has no manifest\.json"):
            copy_dataset(source, tmp_path / "b")


def test_a_plain_copy_is_compressed_when_that_is_asked_for(remote: Remote, tmp_path: Path) -> None:
    manifest = make_dataset(tmp_path / "a")
    copy_dataset(tmp_path / "a", remote("x"))
    assert copy_dataset(tmp_path / "a", remote("x"), compress=True).copied == 4
    names = {shard.path + ".zst" for shard in shards_of(manifest)}
    assert {n for n in list_files(locate(remote("x"))) if ".arrow" in n} == names
    assert copy_dataset(tmp_path / "a", remote("x"), compress=True).copied == 0
    assert copy_dataset(tmp_path / "a", remote("x")).copied == 0  # either is fine


def test_a_changed_tokenizer_is_not_copied(tmp_path: Path) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: content changed"):
        copy_dataset(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b" / "manifest.json").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "report.json"])
def test_a_file_of_the_same_name_is_not_overwritten(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / name).write_text("mine")
    with pytest.raises(DataError, match=f"holds files that are not of this dataset .'{name}'"):
        copy_dataset(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / name).read_text() == "mine"


@pytest.mark.parametrize("pair", [("a", "a/sub"), ("a/sub", "a")])
def test_a_dataset_is_not_copied_into_itself(tmp_path: Path, pair: tuple[str, str]) -> None:
    (tmp_path / pair[0]).parent.mkdir(exist_ok=True)
    make_dataset(tmp_path / pair[0])
    with pytest.raises(ConfigError, match="give a target beside it"):
        copy_dataset(tmp_path / pair[0], tmp_path / pair[1])
