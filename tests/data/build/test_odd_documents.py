"""Documents that are empty, huge, full of NULs or not text; text that changes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xtdist.config import DataError, to_mapping
from xtdist.data import (
    ByteTokenizerConfig,
    FilesSource,
    LocalRunner,
    PrepareConfig,
    Progress,
    TokenDataset,
    prepare,
)
from xtdist.data.build import encode, long_documents

Make = Callable[..., PrepareConfig]
ONE = LocalRunner(workers=1)


def texts_of(folder: Path) -> list[str]:
    found = []
    for split in ("train", "valid"):
        ds = TokenDataset.open(folder, split, verify="full")
        ids = [ds.doc_ids(np.array([i]))[0] for i in range(ds.num_documents)]
        texts = [ds.tokenizer.decode(tokens[:-1]) for tokens in ds.documents()]
        assert ids == [hashlib.sha256(t.encode()).digest()[:16] for t in texts]
        found += texts
    return found


def test_odd_documents_are_kept_exactly_or_counted(tmp_path: Path) -> None:
    odd = {"a": b"\0\0\0", "b": "\u200bw\U0001f40b".encode(), "c": b"\r\n x \r", "d": b"x" * 70_000}
    odd |= {str(i): f"plain {i}".encode() for i in range(12)}
    left_out = {"empty": b"", "blank": b" \t\n", "bad": b"ab\xff", "half": "é".encode()[:1]}
    (tmp_path / "text").mkdir()
    for name, raw in {**odd, **left_out}.items():
        (tmp_path / "text" / f"{name}.txt").write_bytes(raw)
    config = PrepareConfig(
        output=str(tmp_path / "d"),
        source=FilesSource(path=str(tmp_path / "text"), bad_documents="skip"),
        tokenizer=ByteTokenizerConfig(),
        valid_fraction=0.3,
        shard_tokens=1000,
        runner=ONE,
    )
    report = prepare(config)
    assert sorted(t.encode() for t in texts_of(tmp_path / "d")) == sorted(odd.values())
    assert (report.empty, report.unreadable, report.duplicates) == (2, 2, 0)
    said = json.loads((tmp_path / "d" / "report.json").read_text())
    assert said["left_out"] == {"duplicates": 0, "known": 0, "empty": 2, "unreadable": 2}
    alone = [
        s
        for split in ("train", "valid")
        for s in TokenDataset.open(tmp_path / "d", split).manifest.splits[split]
        if s.tokens > 2000
    ]
    assert [(s.docs, s.tokens) for s in alone] == [(1, 70_001)]


def test_long_documents_give_the_shards_that_short_ones_give(
    units: Make, built_of_units: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long: list[int] = []

    def counted(text: str, *args: object) -> object:
        long.append(len(text))
        return long_documents.long_document(text, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(encode, "LONG_CHARS", 500)
    monkeypatch.setattr(encode, "long_document", counted)
    prepare(units(tmp_path / "d"))
    assert len(long) > 20
    for path in built_of_units.iterdir():
        assert (tmp_path / "d" / path.name).read_bytes() == path.read_bytes()


def test_only_the_units_whose_text_changed_are_made_anew(
    units: Make, lines: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    raw = lines.read_bytes()
    own.write_bytes(raw)
    source = {"kind": "jsonl", "path": str(own)}

    def stop(progress: Progress) -> None:
        if progress.stage == "encode" and progress.done_bytes > 0.8 * progress.total_bytes:
            raise KeyboardInterrupt

    fixed = {"source": source, "tokenizer": ByteTokenizerConfig()}
    with pytest.raises(KeyboardInterrupt):
        prepare(units(tmp_path / "d", **fixed), stop)
    finished = {p.name: p.stat().st_ino for p in tmp_path.glob(".d.build/*/dataset/*.arrow")}
    at = raw.index(b'{"text": "0: ') + 10  # in the first unit; the size stays
    own.write_bytes(raw[:at] + b"9" + raw[at + 1 :])
    prepare(units(tmp_path / "d", **fixed))
    prepare(units(tmp_path / "whole", **fixed))
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "d" / path.name).read_bytes()
    made = {p.name: p.stat().st_ino for p in (tmp_path / "d").iterdir()}
    kept = {name for name, inode in finished.items() if made.get(name) == inode}
    assert kept == {n for n in finished if "-00000-" not in n}


def test_text_that_changed_behind_its_time_of_change_is_found_out(
    units: Make, lines: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(lines.read_bytes())
    config = units(tmp_path / "d", source={"kind": "jsonl", "path": str(own)})

    def disturb(progress: Progress) -> None:
        if progress.stage == "encode":
            before = os.stat(own)
            own.write_bytes(lines.read_bytes().replace(b" cat", b" bat"))
            os.utime(own, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(DataError, match=r"changed while it was read \(at own.jsonl"):
        prepare(config, disturb)
    prepare(config)
    assert not any(" cat" in text for text in texts_of(tmp_path / "d"))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_a_document_of_200_mb_needs_less_than_600_mb_of_memory(tmp_path: Path, kind: str) -> None:
    (tmp_path / "text").mkdir()
    words = np.random.default_rng(0).choice(["the", "cat", "sat", "on", "mats"], 1_000_000)
    block = " ".join(words)
    with open(tmp_path / "text" / "big.txt", "w") as file:
        for i in range(200_000_000 // len(block) + 1):
            file.write(f"{block}\n{i}")
    for i in range(20):
        (tmp_path / "text" / f"{i}.txt").write_text(f"small {i}")
    config = PrepareConfig(
        output=str(tmp_path / "d"),
        source=FilesSource(path=str(tmp_path / "text")),
        tokenizer={"kind": kind} if kind == "byte" else {"kind": "bpe", "vocab_size": 300},  # type: ignore[arg-type]
        valid_fraction=0.3,
        runner=ONE,
    )
    code = """
import json, sys, threading, time
from xtdist.config import from_mapping
from xtdist.data import PrepareConfig, prepare
most = 0
def watch():
    global most
    while True:
        for line in open("/proc/self/smaps_rollup"):
            if line.startswith("Anonymous:"):
                most = max(most, int(line.split()[1]))
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
prepare(from_mapping(PrepareConfig, json.loads(sys.argv[1])))
print(most // 1024)
"""
    args = [sys.executable, "-c", code, json.dumps(to_mapping(config))]
    out = subprocess.run(args, capture_output=True, text=True, check=True)
    assert 200 < int(out.stdout) < 600
