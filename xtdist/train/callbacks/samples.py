"""Text samples at every checkpoint: what the model says, beside what its loss is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xtdist.checkpoint.weights import load_state
from xtdist.config import derive_seed
from xtdist.data import Tokenizer
from xtdist.decode.text import Settings, TextGenerator
from xtdist.model.wrapper import build_model
from xtdist.objective import NonAutoregressiveWrapper, build_objective
from xtdist.train.callbacks.base import Callback
from xtdist.train.run import Run
from xtdist.train.spec import RunSpec
from xtdist.train.state import objective_state
from xtdist.train.step import StepResult


class Samples(Callback):
    """At every checkpoint."""

    phase = "evaluate"

    def stepped(self, run: Run, result: StepResult) -> None:
        if run.saves(result):
            engine, tokenizer = run.stepper.engine, run.data.tokenizer
            draw_samples(engine, run.spec, tokenizer, run.folder, run.position.step)


def draw_samples(engine: Any, spec: RunSpec, tokenizer: Tokenizer, folder: Path, step: int) -> None:
    """Continue ``loop.sample_prompts`` and append the texts to ``<run>/samples.jsonl``.

    Rank 0 generates from a copy of the weights, so that it works the same under every ZeRO stage;
    gathering them is collective.
    """
    weights = objective_state(engine)
    if weights is None:
        return
    trained = build_objective(
        spec.objective,
        build_model(spec.model),
        mask_id=tokenizer.mask_id,
        pad_id=tokenizer.pad_id,
    )
    load_state(trained, weights, where=folder)
    trained.eval()
    filler = trained if isinstance(trained, NonAutoregressiveWrapper) else None
    generate = TextGenerator(
        filler or trained.net,
        tokenizer,
        filling=filler.filling if filler else None,
        eos_id=tokenizer.eot_id,
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
    )
    method = "sample" if spec.model.causal else "mask-predict"
    settings = Settings(
        max_tokens=spec.loop.sample_tokens, seed=derive_seed(spec.seed, "sample", step)
    )
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as f:
        for prompt in spec.loop.sample_prompts:
            text = generate(prompt, method, settings)
            f.write(json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n")
