"""Text samples at every checkpoint, by the workers."""

from __future__ import annotations

from xtdist.checkpoint.weights import load_state
from xtdist.model.wrapper import build_model
from xtdist.objective import build_objective
from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.samples import append_samples, draw
from xtdist.train.state import objective_state
from xtdist.train.step import StepResult


class Samples(Callback):
    """At every checkpoint. Rank 0 generates from a copy of the weights, so that it works the same
    under every ZeRO stage; gathering them is collective."""

    phase = "evaluate"

    def stepped(self, run: Run, result: StepResult) -> None:
        if not run.saves(result):
            return
        weights = objective_state(run.stepper.engine)
        if weights is None:
            return
        tokenizer, step = run.data.tokenizer, run.position.step
        trained = build_objective(
            run.spec.objective,
            build_model(run.spec.model),
            mask_id=tokenizer.mask_id,
            pad_id=tokenizer.pad_id,
        )
        load_state(trained, weights, where=run.folder)
        texts = draw(trained.eval(), tokenizer, run.spec, step=step)
        append_samples(run.folder, run.spec, texts, step=step)
