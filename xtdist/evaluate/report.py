"""A model's score beside the yardsticks, as a table and as numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xtdist.checkpoint import LoadedModel, load_weights
from xtdist.config import (
    ConfigError,
    DataError,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ResourceError,
    configclass,
    from_mapping,
    to_mapping,
)
from xtdist.data import TokenDataset
from xtdist.data.config import Documents
from xtdist.evaluate.baselines import fit_bigram, score_bigram, xz_bits_per_byte
from xtdist.evaluate.perplexity import Score, evaluate_model
from xtdist.files import write_atomic
from xtdist.track.console import progress_bar


@configclass
class Report:
    """Scores on one validation split. ``objective``: the model's kind; ``weights`` and ``dataset``
    identify what was scored, in windows of ``seq_len`` with ``documents`` as in training."""

    weights: str
    dataset: str
    seq_len: PositiveInt
    objective: str
    documents: Documents = "joined"
    step: NonNegativeInt
    model: Score
    bigram: Score
    xz_bits_per_byte: FiniteFloat

    def table(self) -> str:
        """For people. Lower is better in every column."""
        bound = "" if self.objective == "autoregressive" else " (upper bound)"
        table = Table(title=f"validation: {self.model.tokens:,} tokens")
        for head in ("", "nats per token", "perplexity", "bits per byte"):
            table.add_column(head, justify="left" if not head else "right")
        rows = ((f"model at step {self.step}{bound}", self.model), ("bigram", self.bigram))
        for name, s in rows:
            table.add_row(name, f"{s.loss:.3f}", f"{s.perplexity:.1f}", f"{s.bits_per_byte:.3f}")
        table.add_row("xz -9e", "-", "-", f"{self.xz_bits_per_byte:.3f}")
        console = Console(width=80, color_system=None)
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip()


def evaluate(
    weights: str | Path, data: str | Path, *, seq_len: int | None = None, saved: Path | None = None
) -> Report:
    """Score ``weights`` on the validation split of ``data``, with documents as in the training run;
    fit and score the yardsticks.

    Args:
        saved: file to keep the report in; if it holds the report of the same weights, data and
            window, that is returned.

    Raises:
        UserError: nothing to load, the model was trained with another tokenizer, or ``saved``
            can't be written.
    """
    loaded = load_weights(weights)
    train, valid = TokenDataset.open(data, "train"), TokenDataset.open(data, "valid")
    if loaded.tokenizer.sha256 != valid.tokenizer.sha256:
        raise DataError(
            f"{data}: its tokenizer ({valid.tokenizer.sha256[:12]}…) is not the model's "
            f"({loaded.tokenizer.sha256[:12]}…): evaluate on data made with the model's tokenizer"
        )
    longest = loaded.model.max_seq_len
    length = longest if seq_len is None else seq_len
    if not 1 <= length <= longest:
        raise ConfigError(f"--seq-len: got {length}; this model takes 1 to {longest}")
    make_room(saved)
    documents: Documents = loaded.meta.get("documents", "joined")
    known, wanted = _read(saved), (loaded.digest, valid.dataset_id, length, documents)
    if known and (known.weights, known.dataset, known.seq_len, known.documents) == wanted:
        print(f"scored before, nothing to do: {saved}")
        return known
    report = Report(
        weights=loaded.digest,
        dataset=valid.dataset_id,
        seq_len=length,
        objective=loaded.objective.kind,
        documents=documents,
        step=int(loaded.meta.get("step", 0)),
        model=_score(loaded, valid, length, documents),
        bigram=score_bigram(fit_bigram(train), valid),
        xz_bits_per_byte=xz_bits_per_byte(valid),
    )
    if saved is not None:
        write_atomic(saved, json.dumps(to_mapping(report), indent=1))
    return report


def _score(loaded: LoadedModel, valid: TokenDataset, seq_len: int, documents: Documents) -> Score:
    with progress_bar(valid.total_tokens - 1, "tokens", label="evaluate") as bar:
        return evaluate_model(
            loaded.trained, valid, seq_len=seq_len, documents=documents, progress=bar.update
        )


def make_room(path: Path | None) -> None:
    """Find out now whether the report can be kept, not after the work."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ResourceError(f"--json: {path.parent} can't be made ({e.strerror})") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ResourceError(f"--json: {path} can't be written; give a file in a folder of yours")


def _read(path: Path | None) -> Report | None:
    """A report that was kept, if it can be read."""
    try:
        return from_mapping(Report, json.loads(path.read_text())) if path else None
    except (OSError, ValueError):
        return None
