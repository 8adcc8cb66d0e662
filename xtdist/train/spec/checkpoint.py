"""When checkpoints are saved, where, and which are kept."""

from __future__ import annotations

from pathlib import Path

from xtdist.checkpoint.retention import Retention
from xtdist.checkpoint.storage import place_of
from xtdist.config import ConfigError, NonNegativeInt, PositiveFloat, PositiveInt, configclass
from xtdist.data.storage.location import check_uri, is_remote

_LOWER = ("loss", "bits_per_byte", "perplexity")
_HIGHER = ("accuracy",)


@configclass
class CheckpointSpec:
    """Saving goes on beside the steps; the last step and a stop wait for it.

    Attributes:
        url: a folder, or ``s3://bucket/path``, under which the run's checkpoints lie as
            ``<url>/<name>``; null: ``<output>/<name>/checkpoints``.
        every: steps between two.
        every_minutes: also after so many minutes without one.
        keep: how many of the newest are kept.
        keep_best: how many beside them, those with the best ``metric``. One at whose step it was
            not measured has none.
        keep_every: beside them every one whose step is a multiple of it, for ever; 0: none.
        metric: as in metrics.jsonl.
        lower_is_better: of ``metric``; null: known of losses, perplexities, bits and accuracies.
        max_misses: a save that fails (disk full, store not reachable) is tried again a few steps
            later; that many failures in a row end the run.
        start_from: a new run begins with these weights: a run, a checkpoint or a weights folder
            (also one of ``xtdist import``). The model must be theirs, which
            ``model: {preset: weights:FOLDER}`` says in short; a run that goes on does not read it.
        chat_template: a jinja2 file that goes into every weights folder, so that the model can be
            served for conversations (:mod:`xtdist.checkpoint.chat_template`).
    """

    url: str | None = None
    every: PositiveInt = 500
    every_minutes: PositiveFloat | None = None
    keep: PositiveInt = 3
    keep_best: NonNegativeInt = 0
    keep_every: NonNegativeInt = 0
    metric: str = "eval/valid/loss"
    lower_is_better: bool | None = None
    max_misses: PositiveInt = 5
    start_from: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.url is not None:
            self._check_url(self.url)
        if self.keep_best and self.lower_is_better is None and self._lower is None:
            raise ConfigError(
                f"lower_is_better: must be given for metric {self.metric!r}: true or false"
            )

    def _check_url(self, url: str) -> None:
        if not is_remote(url):
            if not url:
                raise ConfigError("url: got ''; give a folder or s3://bucket/path, or leave it out")
            return
        if not url.startswith("s3://"):
            raise ConfigError(f"url: got {url!r}; checkpoints go to a folder or s3://bucket/path")
        try:
            check_uri(url)
        except ConfigError as e:
            raise ConfigError(f"url: {e}") from None

    @property
    def _lower(self) -> bool | None:
        if self.lower_is_better is not None:
            return self.lower_is_better
        last = self.metric.rpartition("/")[2]
        known = {True: last.endswith(_LOWER), False: last.endswith(_HIGHER)}
        return next((lower for lower, hit in known.items() if hit), None)

    @property
    def retention(self) -> Retention:
        return Retention(
            keep=self.keep,
            keep_best=self.keep_best,
            keep_every=self.keep_every,
            lower_is_better=self._lower is not False,
        )

    def place(self, folder: Path) -> str:
        """Where the checkpoints of the run in ``folder`` lie."""
        return place_of(self.url, folder)

    def lease_place(self, folder: Path) -> str:
        """What a process must hold the lease of to write this run: its folder, or, so that hosts
        which share no disk exclude each other too, the checkpoints' place on a store."""
        place = self.place(folder)
        return place if is_remote(place) else str(folder)
