"""One build in its work folder: from the plan to a finished dataset that is not published yet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xtdist.data.build.config import PrepareConfig
from xtdist.data.build.content import SPLITS, Split
from xtdist.data.build.duplicates import Counts, check_splits, sort_out
from xtdist.data.build.encode import Encode, Receipt
from xtdist.data.build.extend import Old
from xtdist.data.build.plan import Plan
from xtdist.data.build.progress import Meter, OnProgress
from xtdist.data.build.report import settings_sha256, write_report
from xtdist.data.build.runners import Runner
from xtdist.data.build.scan import Scan, ScanReceipt
from xtdist.data.build.vocabulary import Vocabulary
from xtdist.data.build.work import Work
from xtdist.data.manifest import (
    INPUTS_FILE,
    MANIFEST_FILE,
    SIDE_FILES,
    BuildInfo,
    Manifest,
    ShardInfo,
    TokenizerInfo,
    canonical_text,
)
from xtdist.data.shards import token_dtype
from xtdist.data.sources import input_sha256
from xtdist.data.tokenizer import TOKENIZER_FILE, Tokenizer
from xtdist.files import write_atomic


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a build needs to know."""

    config: PrepareConfig
    plan: Plan
    vocabulary: Vocabulary
    work: Work
    runner: Runner
    progress: OnProgress
    old: Old | None

    def scan(self) -> tuple[list[ScanReceipt], Counts]:
        """Read everything once, and decide what becomes of every document.

        Raises:
            DataError: nothing to build from, or a split that would be empty.
        """
        meter = Meter(self.progress, "scan", sum(u.bytes for u in self.plan.units))
        tasks = [Scan(source=self.config.source, unit=u, work=self.work) for u in self.plan.units]
        scans = self.runner.run(tasks, meter)
        counts = sort_out(
            self.work,
            scans,
            valid_fraction=self.config.valid_fraction,
            known=self.old.doc_ids if self.old else None,
        )
        check_splits(counts, self.config.valid_fraction, self.old.documents if self.old else {})
        return scans, counts

    def info(self, counts: Counts) -> BuildInfo:
        """What the dataset follows from."""
        old = self.old
        return BuildInfo(
            settings_sha256=settings_sha256(self.plan.settings),
            inputs_sha256=counts.sha256,
            documents=counts.total_documents + (sum(old.documents.values()) if old else 0),
            text_bytes=counts.total_bytes + (old.text_bytes if old else 0),
        )

    def missing_bytes(self, counts: Counts) -> int:
        """About what is to be written yet."""
        there = sum(p.stat().st_size for p in self.work.dataset.glob("*.arrow"))
        return max(0, self.vocabulary.shard_bytes(counts.total_bytes) - there)

    def make(self, scans: Sequence[ScanReceipt], counts: Counts) -> Manifest:
        """Write everything that is still missing, the manifest last."""
        tokenizer = self.vocabulary.make(
            self.config.source,
            self.plan.units,
            work=self.work,
            counts=counts,
            workers=(self.runner, self.progress),
        )
        receipts = self._encode(tokenizer, scans, counts)
        manifest = Manifest(
            dtype="uint16" if token_dtype(tokenizer.vocab_size) == "uint16" else "uint32",
            vocab_size=tokenizer.vocab_size,
            eot_id=tokenizer.eot_id,
            tokenizer=TokenizerInfo(kind=tokenizer.kind, sha256=tokenizer.sha256),
            build=self.info(counts),
            splits={split: self._shards(split, receipts) for split in SPLITS},
        )
        self._complete(manifest, scans, counts, receipts)
        return manifest

    def _encode(
        self, tokenizer: Tokenizer, scans: Sequence[ScanReceipt], counts: Counts
    ) -> list[Receipt]:
        first = self.old.next_unit if self.old else 0
        tasks = [
            Encode(
                source=self.config.source,
                unit=unit,
                work=self.work,
                digest=f"{scan.rows_sha256} {codes}",
                number=first + unit.number,
                tokenizer_sha256=tokenizer.sha256,
                shard_tokens=self.config.shard_tokens,
            )
            for unit, scan, codes in zip(self.plan.units, scans, counts.codes_sha256, strict=True)
        ]
        return self.runner.run(tasks, Meter(self.progress, "encode", counts.total_bytes))

    def _shards(self, split: Split, receipts: Sequence[Receipt]) -> tuple[ShardInfo, ...]:
        before = self.old.manifest.splits[split] if self.old else ()
        return (*before, *(shard for receipt in receipts for shard in receipt.splits[split]))

    def _complete(
        self,
        manifest: Manifest,
        scans: Sequence[ScanReceipt],
        counts: Counts,
        receipts: Sequence[Receipt],
    ) -> None:
        folder = self.work.dataset
        if self.old:
            self.old.put_into(folder)
        lengths = np.sum([r.lengths for r in receipts], axis=0)
        write_report(
            folder,
            manifest,
            source=self.config.source.kind,
            settings=self.plan.settings,
            counts=counts,
            lengths=(lengths + self.old.lengths if self.old else lengths).tolist(),
        )
        write_atomic(folder / INPUTS_FILE, self._inputs(scans))
        _drop_strays(folder, manifest)
        write_atomic(folder / MANIFEST_FILE, canonical_text(manifest))

    def _inputs(self, scans: Sequence[ScanReceipt]) -> str:
        """Where the text came from, a line for each stored file; those of ``old`` come first."""
        known = {name: sha256 for scan in scans for name, sha256 in scan.inputs.items()}
        lines = [self.old.inputs] if self.old else []
        for given in self.plan.inputs:
            sha256 = known.get(given.name) or input_sha256(self.config.source, given.name)
            row = {"name": given.name, "bytes": given.bytes, "sha256": sha256}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        return "".join(lines)


def _drop_strays(folder: Path, manifest: Manifest) -> None:
    """Remove what builds before this one left: parts of files, shards of other units."""
    ours = {TOKENIZER_FILE, *SIDE_FILES}
    ours |= {shard.path for shards in manifest.splits.values() for shard in shards}
    for path in folder.iterdir():
        if path.name not in ours:
            path.unlink()
