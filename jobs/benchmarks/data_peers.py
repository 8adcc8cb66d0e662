"""Readers of shuffled windows of tokens: ours and those of other libraries, each in a process of
its own, so that neither threads nor memory of one disturb another.

A reader is a generator: it prepares its files, then gives batches without end, ``torch.int64`` of
(batch, seq_len + 1), or inputs and targets of it. Peers that keep samples get windows that are cut
already.
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from data_corpora import ROWS_PER_TABLE, Corpus
from torch import Tensor

from xtdist.data import DataConfig, Loader, open_view
from xtdist.data.config import CorpusConfig
from xtdist.data.storage.config import CacheConfig

Batches = Iterator[Tensor | tuple[Tensor, Tensor]]
Reader = Callable[[Corpus], Batches]
OURS = "xtdist"
NEVER = 10**9
JOIN_S = 5
SETTLE_S = 0.5
START_S = 120
CHUNK_BYTES = 64 * 2**20


def config_of(
    corpus: Corpus, documents: Literal["joined", "masked", "packed"], *, mixture: bool
) -> DataConfig:
    """What ours reads: all tokens, or both halves with other weights."""
    cache = CacheConfig(folder=corpus.dataset("plans"))
    if not mixture:
        return DataConfig(path=corpus.dataset("whole"), documents=documents, cache=cache)
    halves = {"first": 0.7, "second": 0.3}
    corpora = {n: CorpusConfig(path=corpus.dataset(n), weight=w) for n, w in halves.items()}
    return DataConfig(corpora=corpora, documents=documents, cache=cache)


def ours(
    corpus: Corpus, documents: Literal["joined", "masked", "packed"], *, mixture: bool = False
) -> Batches:
    """From the folder to the batch: view, order and loader."""
    config = config_of(corpus, documents, mixture=mixture)
    view = open_view(config, seq_len=corpus.seq_len, seed=1, global_batch=corpus.batch)
    with Loader(view, steps=range(NEVER)) as loader:
        for batch in loader:
            yield batch.tokens


def memory_map(corpus: Corpus, *, pairs: bool) -> Batches:
    """Random places of a plain file that is mapped anew for each batch, so that memory doesn't seem
    to leak; the way of nanoGPT, whose inputs and targets (``pairs``) are read one by one."""
    generator = torch.Generator().manual_seed(1)
    width = corpus.width
    while True:
        tokens = np.memmap(corpus.flat, np.uint16, mode="r")
        starts = torch.randint(len(tokens) - width, (corpus.batch,), generator=generator).tolist()

        if pairs:
            targets = [s + 1 for s in starts]
            yield runs(tokens, starts, width - 1), runs(tokens, targets, width - 1)
        else:
            yield runs(tokens, starts, width)


def runs(tokens: Any, starts: Sequence[int], size: int) -> Tensor:
    """Rows of ``size`` ids, each widened on its own."""
    return torch.stack([torch.from_numpy(tokens[s : s + size].astype(np.int64)) for s in starts])


def cut(corpus: Corpus) -> Any:
    """All windows as rows over the plain file; nothing is copied."""
    flat = np.memmap(corpus.flat, np.uint16, mode="r")
    return np.lib.stride_tricks.sliding_window_view(flat, corpus.width)[:: corpus.seq_len]


def hf_datasets(corpus: Corpus, *, kind: str) -> Batches:
    """Hugging Face datasets, map style: lists of random row numbers."""
    import datasets

    path = corpus.folder / "rows.arrow"
    if not path.exists():
        write_rows(path, corpus)
    dataset = datasets.Dataset.from_file(str(path)).with_format(kind)
    generator = np.random.default_rng(1)
    while True:
        order = generator.permutation(len(dataset))
        for first in range(0, len(order) - corpus.batch + 1, corpus.batch):
            rows = dataset[order[first : first + corpus.batch].tolist()]["tokens"]
            yield torch.as_tensor(rows).to(torch.int64)


def write_rows(path: Path, corpus: Corpus) -> None:
    """All windows in the stream form of Arrow, which datasets maps."""
    rows = cut(corpus)
    schema = pa.schema([pa.field("tokens", pa.list_(pa.uint16()))])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for first in range(0, len(rows), ROWS_PER_TABLE):
            part = rows[first : first + ROWS_PER_TABLE]
            offsets = np.arange(len(part) + 1, dtype=np.int32) * corpus.width
            column = pa.ListArray.from_arrays(offsets, pa.array(part.reshape(-1)))
            writer.write_batch(pa.record_batch([column], schema))


def stacked(corpus: Corpus, rows: Iterator[Any]) -> Batches:
    """Batches of single windows; numpy's or torch's."""
    while some := list(itertools.islice(rows, corpus.batch)):
        if len(some) < corpus.batch:
            return
        yield torch.from_numpy(np.stack([np.asarray(row) for row in some]).astype(np.int64))


def litdata_tokens(corpus: Corpus) -> Batches:
    """litData: its loader of tokens, shuffled, read from start to end."""
    from litdata import StreamingDataset
    from litdata.streaming.item_loader import TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder = corpus.folder / "litdata"
    folder.mkdir()
    flat = np.memmap(corpus.flat, np.uint16, mode="r")
    writer = BinaryWriter(
        str(folder), chunk_bytes=CHUNK_BYTES, item_loader=TokensLoader(corpus.width)
    )
    size = corpus.width * min(1000, len(flat) // corpus.width)
    for i, first in enumerate(range(0, len(flat) - size + 1, size)):
        writer.add_item(i, torch.from_numpy(flat[first : first + size].copy()))
    writer.done()
    writer.merge()
    dataset = StreamingDataset(
        str(folder), item_loader=TokensLoader(corpus.width), shuffle=True, seed=1
    )
    while True:
        yield from stacked(corpus, (row for row in dataset))


def mosaicml_streaming(corpus: Corpus) -> Batches:
    """MosaicML streaming: windows as rows of MDS shards, shuffled, read from start to end. A thread
    looks after the files of every sample (0.2 ms each); it does all of that before anything is
    timed. Shared memory has fixed names; what is left of it goes."""
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    folder, column = str(corpus.folder / "mds"), f"ndarray:uint16:{corpus.width}"
    with MDSWriter(out=folder, columns={"tokens": column}) as writer:
        for row in cut(corpus):
            writer.write({"tokens": row})
    clean_stale_shared_memory()
    try:
        dataset = StreamingDataset(
            local=folder,
            shuffle=True,
            batch_size=corpus.batch,
            shuffle_seed=1,
            predownload=corpus.tokens,
        )
        while True:
            yield from stacked(corpus, (sample["tokens"] for sample in dataset))
    finally:
        clean_stale_shared_memory()


READERS: Mapping[str, Reader] = {
    OURS: partial(ours, documents="joined"),
    f"{OURS}, two corpora": partial(ours, documents="joined", mixture=True),
    f"{OURS}, masked": partial(ours, documents="masked"),
    f"{OURS}, packed": partial(ours, documents="packed"),
    "memory map, inputs and targets": partial(memory_map, pairs=True),
    "memory map, windows": partial(memory_map, pairs=False),
    "datasets, numpy": partial(hf_datasets, kind="numpy"),
    "datasets, torch": partial(hf_datasets, kind="torch"),
    "litdata": litdata_tokens,
    "mosaicml-streaming": mosaicml_streaming,
}
PACKAGES = ("datasets", "litdata", "mosaicml-streaming", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn of a reader: windows read, seconds of the clock and of the processor."""

    windows: int
    wall: float
    cpu: float


def take_turn(batches: Batches, size: int, *, seconds: float) -> Turn:
    """Read for so many processor seconds. What threads read ahead after it counts too: they began
    ahead."""
    wall, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.process_time() - cpu < seconds:
        for _ in range(8):
            next(batches)
        count += 8 * size
    wall = time.perf_counter() - wall
    settle(SETTLE_S)
    return Turn(windows=count, wall=wall, cpu=time.process_time() - cpu)


def settle(seconds: float) -> None:
    """Wait until threads have read as far ahead as they do, so many seconds at most."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 5e-4:
            return


def serve(pipe: Connection, name: str, corpus: Corpus) -> None:
    """The process of one reader: None when it is ready, what went wrong otherwise; then turns of so
    many seconds as are asked for, until None is."""
    torch.set_num_threads(1)
    try:
        batches = READERS[name](corpus)
        first = next(batches)
        if isinstance(first, tuple):
            first = torch.cat([first[0][:, :1], first[1]], 1)
        corpus.check(first, in_order="packed" not in name)
        settle(START_S)
    except ImportError as e:
        pipe.send(f"not installed ({e.name or e})")
        return
    except Exception:
        traceback.print_exc(file=sys.stderr)
        pipe.send("failed (see above)")
        return
    pipe.send(None)
    while (seconds := pipe.recv()) is not None:
        pipe.send(take_turn(batches, corpus.batch, seconds=seconds))
    batches.close()  # type: ignore[attr-defined]
    pipe.send(None)


def measure(
    names: Sequence[str], corpus: Corpus, context: BaseContext, *, seconds: float, repeats: int
) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """Turns of every reader, all in turn, another one first each time, after one that doesn't
    count; and why readers are missing."""
    pipes: dict[str, Connection] = {}
    missing: dict[str, str] = {}
    processes = []
    for name in names:  # one after the other: they write their files
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, name, corpus), daemon=True)  # type: ignore[attr-defined]
        process.start()
        there.close()
        processes.append(process)
        problem = here.recv()
        if problem is None:
            pipes[name] = here
        else:
            missing[name] = problem
    turns: dict[str, list[Turn]] = {name: [] for name in pipes}
    there_are = list(pipes)
    for i in range(repeats + 1):
        at = i % max(1, len(there_are))
        for name in there_are[at:] + there_are[:at]:
            pipes[name].send(seconds)
            turn = pipes[name].recv()
            if i:
                turns[name].append(turn)
    for pipe in pipes.values():
        pipe.send(None)
        pipe.recv()
    for process in processes:
        process.join(JOIN_S)
        process.kill()  # a peer's threads may go on waiting
    return turns, missing
