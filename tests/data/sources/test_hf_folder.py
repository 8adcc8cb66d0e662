"""Folders that the real Hugging Face library wrote, read without it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from readings import documents, in_units, texts

from xtdist.config import DataError
from xtdist.data import HfFolderSource
from xtdist.data.sources import inputs

hf = pytest.importorskip("datasets")
TEXTS = [f"row {i} é\0" for i in range(40)]
WAYS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda d: d,
    "shuffled": lambda d: d.shuffle(seed=3),
    "selected": lambda d: d.select([5, 3, 3, 30]),
    "filtered": lambda d: d.filter(lambda row: row["id"] % 3 == 0),
    "two put together": lambda d: hf.concatenate_datasets([d, d.select(range(3))]),
}


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(hf.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
    hf.disable_progress_bars()
    yield
    hf.enable_progress_bars()
    patch.undo()


def rows(found: list[str | None] = TEXTS, name: str = "text") -> Any:  # type: ignore[assignment]
    return hf.Dataset.from_dict({"id": list(range(len(found))), name: found})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_rows_come_in_the_order_that_the_library_gives(
    tmp_path: Path, way: str, shards: int
) -> None:
    made = WAYS[way](rows())
    made.save_to_disk(tmp_path / "d", num_shards=shards)
    source = HfFolderSource(path=str(tmp_path / "d"))
    expected = hf.load_from_disk(str(tmp_path / "d"))["text"]
    assert texts(source) == list(expected)
    assert len(inputs(source)) == shards
    assert [d.text for d in in_units(source, 1)] == list(expected)


def test_eleven_files_keep_the_order_of_the_state_file_not_of_their_names(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "d", num_shards=11)
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    for i, entry in enumerate(state["_data_files"]):
        (tmp_path / "d" / entry["filename"]).rename(tmp_path / "d" / f"{99 - i}.arrow")
        entry["filename"] = f"{99 - i}.arrow"
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    assert texts(HfFolderSource(path=str(tmp_path / "d"))) == TEXTS
    assert list(hf.load_from_disk(str(tmp_path / "d"))["text"]) == TEXTS


def test_a_split_of_several_is_chosen_and_names_say_which(tmp_path: Path) -> None:
    hf.DatasetDict({"train": rows(), "test": rows(["t"])}).save_to_disk(tmp_path / "d")
    found = list(documents(HfFolderSource(path=str(tmp_path / "d"), split="test")))
    assert [tuple(d) for d in found] == [("test/data-00000-of-00001.arrow:0", "t")]
    assert texts(HfFolderSource(path=str(tmp_path / "d"), split="train")) == TEXTS
    for split in (None, "validation"):
        with pytest.raises(DataError, match=r"source\.split: got .*give one of 'train', 'test'"):
            inputs(HfFolderSource(path=str(tmp_path / "d"), split=split))
    with pytest.raises(DataError, match=r"source\.split: got 'x'.*one dataset.*leave"):
        inputs(HfFolderSource(path=str(tmp_path / "d" / "train"), split="x"))


def test_a_column_of_large_strings_and_another_name_is_read(tmp_path: Path) -> None:
    made = rows(name="body").cast_column("body", hf.Value("large_string"))
    made.save_to_disk(tmp_path / "d")
    assert texts(HfFolderSource(path=str(tmp_path / "d"), field="body")) == TEXTS
    with pytest.raises(DataError, match=r"no column 'text'; set source\.field.*'body'"):
        in_units(HfFolderSource(path=str(tmp_path / "d")), 1)
    with pytest.raises(DataError, match=r"column 'id' is int64"):
        in_units(HfFolderSource(path=str(tmp_path / "d"), field="id"), 1)


def test_a_row_with_null_is_named_or_skipped_with_its_number_in_the_file(tmp_path: Path) -> None:
    rows([*TEXTS[:30], None, "x"]).save_to_disk(tmp_path / "d", num_shards=2)
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow, row 14: the text is null"):
        texts(HfFolderSource(path=str(tmp_path / "d")))
    found = texts(HfFolderSource(path=str(tmp_path / "d"), bad_documents="skip"))
    assert found == [*TEXTS[:30], None, "x"]


def test_an_arrow_file_that_was_cut_short_is_named_wherever_it_was_cut(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "d")
    path = tmp_path / "d" / "data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as out:  # two batches, so that a cut may fall between them
        table = pa.table({"text": TEXTS})
        with pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table, max_chunksize=20)
    source, raw = HfFolderSource(path=str(tmp_path / "d"), bad_documents="skip"), path.read_bytes()
    assert texts(source) == TEXTS
    for size in range(0, len(raw), 7):
        path.write_bytes(raw[:size])
        with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow: can't be read"):
            texts(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", None, r"has no state\.json; give a folder that save_to_disk"),
        ("state.json", "{", r"state\.json: not JSON"),
        ("state.json", "[]", r"state\.json: not a JSON object"),
        ("state.json", "{}", r"state\.json: names no data files"),
        ("state.json", '{"_data_files": []}', r"state\.json: names no data files"),
        ("state.json", '{"_data_files": [{"filename": "../x"}]}', r"names no data files"),
        ("state.json", '{"_data_files": [{"filename": 5}]}', r"names no data files"),
        ("state.json", '{"_data_files": [{"filename": "no"}]}', r"d/no: can't be read \(No such"),
        ("data-00000-of-00001.arrow", "text", r"arrow: can't be read"),
        ("data-00000-of-00001.arrow", None, r"arrow: can't be read \(No such file"),
    ],
)
def test_a_folder_that_is_none_of_theirs_is_refused_by_name(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    rows().save_to_disk(tmp_path / "d")
    if content is None:
        (tmp_path / "d" / name).unlink()
    else:
        (tmp_path / "d" / name).write_text(content)
    with pytest.raises(DataError, match=message):
        texts(HfFolderSource(path=str(tmp_path / "d")))


def test_rows_that_were_selected_in_an_old_format_are_refused_not_mixed_up(tmp_path: Path) -> None:
    rows().save_to_disk(tmp_path / "d")
    state = json.loads((tmp_path / "d" / "state.json").read_text())
    state["_indices_data_files"] = [{"filename": "indices.arrow"}]
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="flatten_indices"):
        texts(HfFolderSource(path=str(tmp_path / "d")))


@pytest.mark.parametrize("splits", [["../x"], [".."], [5], "train", None])
def test_splits_that_leave_the_folder_are_refused(tmp_path: Path, splits: object) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    for split in ("../x", "..", "train"):
        with pytest.raises(DataError, match=r"source\.split: "):
            inputs(HfFolderSource(path=str(tmp_path / "d"), split=split))


FLIPS = """
import os, random, sys
from pathlib import Path
from xtdist.config import DataError
from xtdist.data import HfFolderSource
from xtdist.data.sources import plan_units, read_unit
folder, rng = Path(sys.argv[1]), random.Random(5)
path, source, ends = folder / "data.arrow", HfFolderSource(path=str(folder)), []
def read():
    for unit in plan_units(source, 10**9):
        list(read_unit(source, unit))
read()
whole = path.read_bytes()
for at in rng.sample(range(900), 70):
    raw = bytearray(whole)
    raw[at] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            read()
        except DataError:
            os._exit(1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    ends.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(*ends)
"""


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_a_flipped_bit_of_an_arrow_file_never_ends_the_process(tmp_path: Path, kind: str) -> None:
    texts = pa.array([f"row {i} " + "x" * 40 for i in range(200)])
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(pa, kind)())
    table = pa.table({"text": column})
    with pa.ipc.new_stream(str(tmp_path / "data.arrow"), table.schema) as file:
        file.write_table(table)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "data.arrow"}]}')
    args = [sys.executable, "-c", FLIPS, str(tmp_path)]
    ends = subprocess.run(args, capture_output=True, text=True, check=True).stdout.split()
    assert len(ends) == 70
    assert set(ends) == {"0", "1"}
