"""xtdist data verify|show|trace|copy: look after datasets, and at what a run reads of them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from xtdist.config import ConfigError, DataError, load, to_mapping
from xtdist.data import TracedRow, open_view, read_manifest, verify
from xtdist.data.build.report import split_reports
from xtdist.data.manifest import REPORT_FILE
from xtdist.data.storage.copy import copy_dataset
from xtdist.data.storage.folder import open_folder
from xtdist.track.console import Progress, progress_bar
from xtdist.train.spec import RunSpec

PLACE = "a folder, s3://bucket/path or gs://bucket/path"
BAR_CELLS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("verify", help="every byte of a dataset against its manifest")
    check.add_argument("dataset", help=PLACE)
    show = actions.add_parser("show", help="what a dataset holds")
    show.add_argument("dataset", help=PLACE)
    show.add_argument("--json", action="store_true", help="the manifest and the build's report")
    trace = actions.add_parser("trace", help="the documents in the batch of any step of a run")
    trace.add_argument("config", help="YAML of the run")
    trace.add_argument("overrides", nargs="*", metavar="key.path=value")
    trace.add_argument("--step", type=int, required=True, help="past or future, counted from 0")
    trace.add_argument("--rank", type=int, help="only the rows of this worker, counted from 0")
    trace.add_argument("--world", type=int, help="of so many; workers.count by default")
    trace.add_argument("--json", action="store_true", help="as JSON")
    copy = actions.add_parser(
        "copy", help="a dataset to or from object storage, every byte checked"
    )
    copy.add_argument("source", help=PLACE)
    copy.add_argument("target", help=PLACE)
    copy.add_argument("--compress", action="store_true", help="shards as .zst (remote targets)")


def run(args: argparse.Namespace) -> int:
    {"verify": _verify, "show": _show, "trace": _trace, "copy": _copy}[args.action](args)
    return 0


def _verify(args: argparse.Namespace) -> None:
    with _bytes_bar("verify") as show:
        report = verify(args.dataset, progress=show)
    if not report.ok:
        raise DataError("\n".join(report.problems))
    print(
        f"dataset {(report.dataset_id or '')[:12]} in {report.path} is as it was made: "
        f"{report.documents:,} documents, {report.tokens:,} tokens, "
        f"{report.bytes / 1e6:,.1f} MB in {report.shards} shards"
    )


def _show(args: argparse.Namespace) -> None:
    folder = open_folder(args.dataset)
    manifest = read_manifest(folder)
    try:
        report: Any = json.loads(folder.read_bytes(REPORT_FILE))
    except (FileNotFoundError, ValueError, RecursionError):
        report = None  # a side file: the dataset is whole without it
    if args.json:
        found = {"dataset_id": manifest.dataset_id, "manifest": to_mapping(manifest)}
        print(json.dumps({**found, "report": report}, indent=1))
        return
    print(f"dataset {manifest.dataset_id} in {folder.name}")
    print(f"tokenizer {manifest.tokenizer.kind}, {manifest.vocab_size:,} ids as {manifest.dtype}")
    rows = []
    for name, s in split_reports(manifest).items():
        sizes = f"{s.text_bytes / 1e6:,.2f}", f"{s.text_bytes / s.tokens:.2f}"
        rows.append([name, f"{s.documents:,}", f"{s.tokens:,}", *sizes, str(s.shards)])
    _print_table(["split", "documents", "tokens", "MB of text", "bytes a token", "shards"], rows)
    try:
        left_out = ", ".join(f"{n} {what}" for what, n in report["left_out"].items())
        lengths = _lengths(report["document_tokens"])
    except (TypeError, KeyError, AttributeError, ValueError):
        print(f"{REPORT_FILE} is missing or damaged; the dataset is whole without it")
        return
    print(f"left out: {left_out}")
    _print_table(["tokens in a document", "documents", ""], lengths)


def _lengths(bins: list[dict[str, Any]]) -> list[list[str]]:
    most = max([1, *(b["documents"] for b in bins)])
    rows = []
    for b in bins:
        bar = "█" * -(-BAR_CELLS * b["documents"] // most)
        rows.append([f"{b['from']:,.0f} to {b['below']:,.0f}", f"{b['documents']:,}", bar])
    return rows


def _trace(args: argparse.Namespace) -> None:
    spec = load(RunSpec, args.config, args.overrides).config
    if args.step < 0:
        raise ConfigError(f"--step: got {args.step}; steps are counted from 0")
    if args.world is not None and args.rank is None:
        raise ConfigError(f"--world: got {args.world} without a rank; give --rank too")
    world = spec.workers.count if args.world is None else args.world
    view = open_view(
        spec.data,
        seq_len=spec.data.seq_len,
        seed=spec.seed,
        global_batch=spec.global_batch,
        warmup=spec.batch_warmup,
    )
    unit, rank = spec.split(world).unit, args.rank
    if rank is not None:
        rank, world = spec.data_place(rank, world)
    trace = view.trace(args.step, rank=rank, world=world, unit=unit)
    if args.json:
        print(json.dumps(asdict(trace), indent=1))
        return
    print(f"training step {trace.step} reads step {trace.data_step} of the data")
    _print_table(
        ["row", "sample", "corpus", "window", "columns", "document", "tokens of it", "doc_id"],
        [line for row in trace.rows for line in _lines(row)],
    )


def _lines(row: TracedRow) -> list[list[str]]:
    """One for each piece, its ranges half-open; what is the row's stands in the first."""
    lines = []
    for i, p in enumerate(row.pieces):
        own = [str(row.row), str(row.sample_id), row.corpus, str(row.window)]
        columns = f"{p.column}:{p.column + p.stop - p.start}"
        piece = [columns, str(p.document), f"{p.start}:{p.stop}", p.doc_id]
        lines.append([*(own if i == 0 else [""] * len(own)), *piece])
    return lines


def _copy(args: argparse.Namespace) -> None:
    with _bytes_bar("copy") as show:
        done = copy_dataset(args.source, args.target, compress=args.compress, progress=show)
    print(
        f"dataset {done.dataset_id[:12]} is in {done.target}: {done.copied} shards copied, "
        f"{done.kept} there already ({done.bytes / 1e6:,.1f} MB)"
    )


@contextmanager
def _bytes_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar that opens when the total is known."""
    with ExitStack() as stack:
        bars: list[Progress] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(progress_bar(total or None, "B", label=label)))
            bars[0].update(done)

        yield show


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    """As wide as it has to be, so that ids can be copied out of it."""
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = sum(max(map(len, column)) + 2 for column in zip(heads, *rows, strict=True))
    Console(width=width + 2, color_system=None).print(table)
