"""Text to a dataset: plan, scan, sort out, train the tokenizer, encode, publish.

Doing it again with the same settings and the same text finds the finished dataset and reuses it; a
build that was killed or failed is gone on with.
"""

from __future__ import annotations

import time
from pathlib import Path

from xtdist.config import ConfigError, DataError
from xtdist.data.build.config import PrepareConfig
from xtdist.data.build.content import SPLITS
from xtdist.data.build.extend import open_old
from xtdist.data.build.foreign import refuse_foreign
from xtdist.data.build.job import Job
from xtdist.data.build.plan import make_plan
from xtdist.data.build.progress import OnProgress
from xtdist.data.build.report import (
    PrepareReport,
    other_settings,
    settings_of,
    split_reports,
)
from xtdist.data.build.runners import make_runner
from xtdist.data.build.vocabulary import Vocabulary
from xtdist.data.build.work import Workspace, publish, workspace
from xtdist.data.config import local_path
from xtdist.data.dataset import TokenDataset
from xtdist.data.manifest import MANIFEST_FILE, REPORT_FILE, BuildInfo, Manifest
from xtdist.data.opening import read_manifest


def prepare(config: PrepareConfig, progress: OnProgress | None = None) -> PrepareReport:
    """Make the dataset that ``config`` describes, in bounded memory.

    Units of text are scanned and encoded by ``config.runner``. The work lies in a hidden folder
    beside ``output`` until the dataset is published by one rename. It is kept when the build fails
    or is killed, and the next one with the same settings and text goes on from it.

    Raises:
        ConfigError: ``output`` lies in the folder of the text.
        DataError: no text, text that can't be read or changes, or ``output`` holds something else
            (files that are not a dataset's are never replaced).
        ResourceError: no room on the disk, another build of ``output`` is running, a worker died.
    """
    output = local_path(config.output)
    refuse_foreign(output)
    _refuse_inside(output, getattr(config.source, "path", None))
    with workspace(output) as space:
        return build(config, space, progress)


def _refuse_inside(output: Path, source: str | None) -> None:
    """A dataset among the text would be read as text by the next build."""
    if source is None or "://" in source:
        return
    if output.resolve().is_relative_to(local_path(source).resolve()):
        raise ConfigError(
            f"output: {output} lies in source.path ({source}), where it would be read as text; "
            "choose a folder beside it"
        )


def build(
    config: PrepareConfig, space: Workspace, progress: OnProgress | None = None
) -> PrepareReport:
    """``prepare`` in a workspace that is held already."""
    start = time.monotonic()
    old = open_old(config, space.output)
    vocabulary = Vocabulary(config.tokenizer, old.tokenizer if old else None)
    plan = make_plan(config, vocabulary, old)
    work = space.open_plan(plan.digest)
    with make_runner(config.runner, space.root) as runner:
        job = Job(
            config=config,
            plan=plan,
            vocabulary=vocabulary,
            work=work,
            runner=runner,
            progress=progress or (lambda _: None),
            old=old,
        )
        scans, counts = job.scan()
        found = _finished(job, space.output, job.info(counts))
        manifest = found
        if manifest is None:
            space.check_space(job.missing_bytes(counts))
            manifest = job.make(scans, counts)
            refuse_foreign(space.output)
            publish(work, space.output, replace=config.replace)
    return PrepareReport(
        folder=str(space.output),
        dataset_id=manifest.dataset_id,
        reused=found is not None,
        vocab_size=manifest.vocab_size,
        splits=split_reports(manifest),
        duplicates=counts.duplicates,
        known=counts.known,
        empty=counts.empty,
        unreadable=counts.unreadable,
        seconds=time.monotonic() - start,
    )


def _finished(job: Job, output: Path, info: BuildInfo) -> Manifest | None:
    """The manifest in ``output`` if it is of this dataset, intact; None if it must be built.

    Raises:
        DataError: another dataset is there, or a damaged one, and ``replace`` is false.
    """
    if not (output / MANIFEST_FILE).exists():
        return None
    try:
        manifest = read_manifest(output)
        if manifest.build == info:
            for split in SPLITS:
                TokenDataset.open(output, split, verify="full")
            return manifest
        changed = "made from other text"
        if manifest.build.settings_sha256 != info.settings_sha256:
            changed = f"made with other settings: {_differing(output, manifest, job)}"
    except DataError as e:
        changed = f"damaged: {e}"
    if job.config.replace:
        return None
    raise DataError(
        f"output: {output} holds another dataset ({changed}); choose another output, or set "
        "replace=true to build this one in its place"
    )


def _differing(output: Path, manifest: Manifest, job: Job) -> str:
    before = settings_of(output, manifest)
    if before is None:
        return f"which can't be said, {REPORT_FILE} is missing or changed"
    return "; ".join(other_settings(before, job.plan.settings))
