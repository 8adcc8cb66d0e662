"""Units of any kind of source: what they say of themselves, and how much memory one takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xtdist.config import to_mapping
from xtdist.data import FilesSource, JsonlSource
from xtdist.data.sources import Unit, plan_units

MEASURE = """
import gzip, json, sys
from pathlib import Path
import numpy, pyarrow
from pyarrow import parquet
from xtdist.data import FilesSource, JsonlSource, ParquetSource
from xtdist.data.sources import plan_units, read_unit

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024

what, folder = sys.argv[1], Path(sys.argv[2])
one = numpy.random.default_rng(0).integers(97, 123, 10_000_000, numpy.uint8).tobytes().decode()
if what == "one line":
    with open(folder / "a.jsonl", "w") as out:
        out.write('{"text": "')
        for _ in range(20):
            out.write(one)
        out.write('"}')
    source = JsonlSource(path=str(folder))
if what == "packed lines":
    with gzip.open(folder / "a.jsonl.gz", "wt", compresslevel=1) as out:
        for i in range(200_000):
            out.write(json.dumps({"text": one[i : i + 2000]}) + chr(10))
    source = JsonlSource(path=str(folder))
if what == "one row group":
    schema = pyarrow.schema({"text": pyarrow.string()})
    with parquet.ParquetWriter(folder / "a.parquet", schema, use_dictionary=False) as out:
        rows = [one[i : i + 2000] for i in range(200_000)]
        out.write_table(pyarrow.table({"text": rows}), row_group_size=10**9)
        del rows
    source = ParquetSource(path=str(folder))
(unit,) = plan_units(source, 2**40)
pyarrow.default_memory_pool().release_unused()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
before = peak()
print(json.dumps([sum(len(d.text) for d in read_unit(source, unit)), peak() - before]))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "characters", "limit_mb"),
    [
        ("one line", 200_000_000, 450),  # its bytes and its text at a time
        ("packed lines", 400_000_000, 60),
        ("one row group", 400_000_000, 120),
    ],
)
def test_memory_is_that_of_the_largest_document_not_of_the_unit(
    tmp_path: Path, what: str, characters: int, limit_mb: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, str(tmp_path)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    read, peak_mb = json.loads(done.stdout)
    assert read == characters
    assert peak_mb < limit_mb


def test_a_unit_is_plain_data_with_a_name_and_a_size(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_bytes(b"{}\n" * 10)
    first, second, _ = plan_units(JsonlSource(path=str(tmp_path)), 36)
    assert to_mapping(first) == {"number": 0, "parts": [["0.jsonl", 0, 30, 30]]}
    assert (second.name, second.bytes) == ("1.jsonl [0, 30)", 30)
    (whole,) = plan_units(JsonlSource(path=str(tmp_path)), 2**20)
    assert (whole.name, whole.bytes) == ("0.jsonl to 2.jsonl (3 parts)", 90)
    assert isinstance(whole, Unit)


def test_a_unit_lists_no_more_than_so_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtdist.data.sources.plan._MAX_PARTS", 4)
    for i in range(9):
        (tmp_path / f"{i}.txt").touch()
    assert [len(u.parts) for u in plan_units(FilesSource(path=str(tmp_path)), 2**20)] == [4, 4, 1]
