"""Weights folders made to do harm: refused with a sentence, nothing of them run or believed.

Their manifests are right: whoever makes the files makes the digests. They are read in a process
that ends when a pickle names a class, a program is started, a file outside is opened or any file is
written; its memory and CPU are measured.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny_server import save_tiny

from xtdist.checkpoint.layout import MANIFEST, FileEntry, hash_file, manifest_text, read_manifest

TENSORS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


class Bomb:
    def __reduce__(self):
        return os.system, ("touch /tmp/xtdist-was-here",)


def reseal(folder: Path, **others: FileEntry) -> None:
    """Make the manifest say what is there now."""
    names = [n for n in (TENSORS, CONFIG, TOKENIZER) if (folder / n).is_file()]
    files = {n: hash_file(folder / n) for n in names} | others
    (folder / MANIFEST).write_text(manifest_text(files, {"kind": "weights"}))


def header_of(raw: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def with_header(header: object, data: bytes, *, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensors(change):
    """A case that changes (header, data) of the tensors' file."""

    def apply(folder: Path) -> None:
        header, data = header_of((folder / TENSORS).read_bytes())
        (folder / TENSORS).write_bytes(change(header, data))
        reseal(folder)

    return apply


def config(*path: str, value):
    """A case that changes one number of the config."""

    def apply(folder: Path) -> None:
        tree = json.loads((folder / CONFIG).read_text())
        node = tree
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value
        (folder / CONFIG).write_text(json.dumps(tree))
        reseal(folder)

    return apply


def content(name: str, raw: bytes):
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(raw)
        reseal(folder)

    return apply


def manifest(change):
    def apply(folder: Path) -> None:
        files = dict(read_manifest(folder).files)
        (folder / MANIFEST).write_text(manifest_text(change(files, folder), {"kind": "weights"}))

    return apply


def link(name: str, target: str):
    """A case where a file is a link to one outside, of the same content."""

    def apply(folder: Path) -> None:
        outside = folder.parent / f"secret-{folder.name}-{name}"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside if target == "absolute" else f"../{outside.name}")

    return apply


def fifo(name: str):
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return apply


def sparse(name: str, size: int):
    """A case with a file of ``size`` bytes that takes no room on the disk."""

    def apply(folder: Path) -> None:
        with open(folder / name, "r+b") as file:
            file.truncate(size)

    return apply


def pickles(folder: Path) -> None:
    """Pickles under every name that a loader may look for, and as the tensors themselves."""
    raw = pickle.dumps(Bomb())
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(raw)
    with zipfile.ZipFile(folder / "weights.pth", "w") as file:
        file.writestr("archive/data.pkl", raw)
    (folder / TENSORS).write_bytes(raw)
    for name in ("modeling.py", "__init__.py", "conftest.py", "tokenizer.py"):
        (folder / name).write_text("raise SystemExit(3)")
    reseal(folder)


def first(header):
    return next(name for name in header if name != "__metadata__")


def offsets(begin, end):
    def change(header, data):
        header[first(header)]["data_offsets"] = [begin, end]
        return with_header(header, data)

    return change


def shape(value, dtype="F32"):
    def change(header, data):
        header[first(header)] |= {"shape": value, "dtype": dtype}
        return with_header(header, data)

    return change


def overlapping(header, data):
    names = [n for n in header if n != "__metadata__"]
    same = [n for n in names if header[n]["shape"] == header[names[0]]["shape"]]
    for name in same:
        header[name]["data_offsets"] = header[names[0]]["data_offsets"]
    return with_header(header, data)


BIG = 10**9
DEEP = b'{"a":' * 100_000
CASES = {
    "pickles": pickles,
    "header of 2**63 bytes": tensors(lambda h, d: with_header(h, d, size=2**63)),
    "header of all bytes": tensors(lambda h, d: with_header(h, d, size=10**8)),
    "header of no JSON": tensors(lambda h, d: with_header(b"{" * 1000, d)),
    "header nested": tensors(lambda h, d: with_header(DEEP, d)),
    "header of a list": tensors(lambda h, d: with_header([], d)),
    "header of another thing": tensors(lambda h, d: with_header({"a": {"b": 1}}, d)),
    "no header": content(TENSORS, b""),
    "half a header": tensors(lambda h, d: with_header(h, d)[:100]),
    "data cut off": tensors(lambda h, d: with_header(h, d[:-4])),
    "data too long": tensors(lambda h, d: with_header(h, d + b"1234")),
    "offsets beyond": tensors(offsets(0, 2**62)),
    "offsets backwards": tensors(offsets(8, 0)),
    "offsets negative": tensors(offsets(-8, 0)),
    "tensors overlap": tensors(overlapping),
    "shape of 2**64": tensors(shape([2**32, 2**32])),
    "shape negative": tensors(shape([-1, 4])),
    "shape of nothing": tensors(shape([0, 2**60])),
    "dtype unknown": tensors(shape([1], dtype="F128")),
    "depth": config("model", "depth", value=BIG),
    "depth of 300": config("model", "depth", value=300),
    "tensors of a pipe": fifo(TENSORS),
    "dim": config("model", "dim", value=BIG),
    "dim beyond int64": config("model", "dim", value=10**30),
    "heads": config("model", "heads", value=BIG),
    "dim_head": config("model", "attention", "dim_head", value=BIG),
    "num_tokens": config("model", "num_tokens", value=BIG),
    "max_seq_len": config("model", "max_seq_len", value=10**18),
    "T5 distances": config(
        "model", "position_bias", value={"kind": "t5", "max_distance": 10**11, "buckets": 32}
    ),
    "sandwich": config("model", "order", "sandwich", value=BIG),
    "experts": config("model", "feedforward", value={"kind": "moe", "experts": BIG}),
    "mult": config("model", "feedforward", "mult", value=1e300),
    "mult large": config("model", "feedforward", "mult", value=1e6),
    "NaN": config("model", "logit_scale", value=float("nan")),
    "an unknown key": config("model", "module", value="os.system"),
    "auto_map": config("auto_map", value={"AutoModel": "modeling.Model"}),
    "another kind": config("objective", "kind", value="os.system"),
    "config of a list": content(CONFIG, b"[]"),
    "config nested": content(CONFIG, DEEP),
    "config of digits": content(CONFIG, b'{"model": ' + b"9" * 10**6 + b"}"),
    "config of YAML": content(CONFIG, b"!!python/object/apply:os.system [id]"),
    "tokenizer of a pickle": content(TOKENIZER, pickle.dumps(Bomb())),
    "tokenizer nested": content(TOKENIZER, DEEP),
    "tokenizer of a list": content(TOKENIZER, b"[]"),
    "manifest names ..": manifest(
        lambda f, d: {**f, "../secret": FileEntry(bytes=1, sha256="0" * 64)}
    ),
    "manifest names /": manifest(
        lambda f, d: {**f, "/etc/passwd": FileEntry(bytes=1, sha256="0" * 64)}
    ),
    "manifest swaps files": manifest(lambda f, d: {**f, CONFIG: f[TOKENIZER]}),
    "manifest without tensors": manifest(lambda f, d: {CONFIG: f[CONFIG]}),
    "tensors linked outside": link(TENSORS, "absolute"),
    "config linked outside": link(CONFIG, "relative"),
    "tokenizer linked outside": link(TOKENIZER, "relative"),
    "config of a pipe": fifo(CONFIG),
    "manifest of a pipe": fifo(MANIFEST),
    "tensors of 1 TB": sparse(TENSORS, 2**40),
    "config of 1 TB": sparse(CONFIG, 2**40),
    "manifest of 1 TB": sparse(MANIFEST, 2**40),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What the watched process says of every case, and of a good folder."""
    root = tmp_path_factory.mktemp("hostile")
    good = save_tiny(root / "good", seed=1)
    folders = [good]
    for number, apply in enumerate(CASES.values()):
        folder = Path(shutil.copytree(good, root / f"case-{number}"))
        apply(folder)
        folders.append(folder)
    child = Path(__file__).with_name("hostile_child.py")
    done = subprocess.run(
        [sys.executable, str(child), *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, (list(CASES)[len(rows) - 2 : len(rows)], rows[-1:], done.stderr)
    return dict(zip(("good", *CASES), rows, strict=True))


def test_a_good_folder_loads_under_the_same_watch(outcomes):
    assert (outcomes["good"]["checked"], outcomes["good"]["loaded"]) == ("loaded", "loaded")


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_with_a_sentence_and_costs_nothing(outcomes, case):
    row = outcomes[case]
    assert row["loaded"].startswith(("CheckpointError: ", "DataError: ")), row
    assert len(row["loaded"]) < 1500
    assert row["cpu_s"] < 20
    assert row["grown_mib"] < 600
    assert not Path("/tmp/xtdist-was-here").exists()
