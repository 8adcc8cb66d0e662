"""A model's score beside the yardsticks, as a table and as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from xtdist.checkpoint import load_weights
from xtdist.config import ConfigError, DataError
from xtdist.data import TokenDataset
from xtdist.evaluate.baselines import fit_bigram, score_bigram, xz_bits_per_byte
from xtdist.evaluate.perplexity import Score, evaluate_model
from xtdist.objective import build_objective
from xtdist.track.console import progress_bar


@dataclass(frozen=True)
class Report:
    """Scores on one validation split. ``kind``: the model's objective."""

    kind: str
    step: int
    model: Score
    bigram: Score
    xz_bits_per_byte: float

    def numbers(self) -> dict[str, float | int | str]:
        """Flat, for JSON."""
        out: dict[str, float | int | str] = {"objective": self.kind, "step": self.step}
        for name, score in (("model", self.model), ("bigram", self.bigram)):
            out[f"{name}/loss"] = score.loss
            out[f"{name}/perplexity"] = score.perplexity
            out[f"{name}/bits_per_byte"] = score.bits_per_byte
        out["xz/bits_per_byte"] = self.xz_bits_per_byte
        out["tokens"], out["text_bytes"] = self.model.tokens, self.model.text_bytes
        return out

    def table(self) -> str:
        """For people. Lower is better in every column."""
        bound = "" if self.kind == "autoregressive" else " (upper bound)"
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
        return capture.get()


def evaluate(weights: Path, data: Path, *, seq_len: int | None = None) -> Report:
    """Score ``weights`` on the validation split of ``data``; fit and score the yardsticks.

    Raises:
        UserError: nothing to load, or the model was trained with another tokenizer.
    """
    loaded = load_weights(weights)
    train, valid = TokenDataset.open(data, "train"), TokenDataset.open(data, "valid")
    if loaded.tokenizer.sha256 != valid.tokenizer.sha256:
        raise DataError(
            f"{data}: its tokenizer ({valid.tokenizer.sha256[:12]}…) is not the model's "
            f"({loaded.tokenizer.sha256[:12]}…): evaluate on data made with the model's tokenizer"
        )
    longest = loaded.model.max_seq_len
    length = seq_len or longest
    if not 1 <= length <= longest:
        raise ConfigError(f"--seq-len: got {length}; this model takes 1 to {longest}")
    objective = build_objective(
        loaded.objective,
        loaded.model,
        mask_id=loaded.tokenizer.mask_id,
        pad_id=loaded.tokenizer.pad_id,
    )
    with progress_bar(valid.total_tokens - 1, "tokens", label="evaluate") as bar:
        score = evaluate_model(objective, valid, seq_len=length, progress=bar.update)
    return Report(
        kind=loaded.objective.kind,
        step=int(loaded.meta["step"]),
        model=score,
        bigram=score_bigram(fit_bigram(train), valid),
        xz_bits_per_byte=xz_bits_per_byte(valid),
    )
