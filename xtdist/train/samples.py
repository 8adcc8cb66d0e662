"""Text samples: what a model says, beside what its loss is."""

from __future__ import annotations

import json
from pathlib import Path

from xtdist.config import derive_seed
from xtdist.data import Tokenizer
from xtdist.decode.text import Settings, TextGenerator
from xtdist.objective import NonAutoregressiveWrapper, Objective
from xtdist.train.spec import RunSpec

FILE = "samples.jsonl"


def draw(trained: Objective, tokenizer: Tokenizer, spec: RunSpec, *, step: int) -> list[str]:
    """A text for each of ``loop.sample_prompts``, by a model in eval mode; of the same weights the
    same ones at every call."""
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
    return [generate(prompt, method, settings) for prompt in spec.loop.sample_prompts]


def append_samples(folder: Path, spec: RunSpec, texts: list[str], *, step: int) -> None:
    """Add what :func:`draw` gave to ``<run>/samples.jsonl``."""
    with (folder / FILE).open("a", encoding="utf-8") as f:
        for prompt, text in zip(spec.loop.sample_prompts, texts, strict=True):
            f.write(json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n")
