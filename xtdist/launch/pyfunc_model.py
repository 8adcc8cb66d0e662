"""The model that MLflow loads (``mlflow.pyfunc.load_model``): this file goes into the model as its
code, MLflow runs it. Weights are read from safetensors with their digest checked; no pickle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel, PythonModelContext

from xtdist.checkpoint import load_weights
from xtdist.config import CheckpointError
from xtdist.decode.text import FILL, Settings, TextGenerator
from xtdist.objective import NonAutoregressiveWrapper


class TextModel(PythonModel):
    """Continues texts as ``xtdist generate`` does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Raises CheckpointError: the weights are gone, or not those that were logged."""
        noted = json.loads(Path(context.artifacts["reference"]).read_text(encoding="utf-8"))
        place = context.artifacts.get("weights", noted["place"])
        try:
            loaded = load_weights(place)
        except CheckpointError as e:
            raise CheckpointError(
                f"{noted['place']} (step {noted['step']}): {e}; the model refers to weights in the "
                "run's storage, which deletes old checkpoints (the model's tag xtdist.state)"
            ) from None
        if loaded.digest != noted["digest"]:
            raise CheckpointError(
                f"{place}: has the digest {loaded.digest[:16]}, but {noted['digest'][:16]} was "
                "logged: it was changed since"
            )
        tokenizer, trained = loaded.tokenizer, loaded.trained
        filler = trained if isinstance(trained, NonAutoregressiveWrapper) else None
        self._generator = TextGenerator(
            filler or loaded.model,
            tokenizer,
            filling=filler.filling if filler else None,
            eos_id=tokenizer.eot_id,
            banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
        )

    def predict(self, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        """A continuation for each text. ``params``: ``method`` (empty: sample, or beam where
        ``num_beams`` is more than 1), and fields of ``xtdist.decode.text.Settings``."""
        given = dict(params or {})
        method = given.pop("method", "") or self._method(given)
        names = {f.name for f in dataclasses.fields(Settings)}
        settings = Settings(**{k: v for k, v in given.items() if k in names})
        return [self._generator(text, method, settings) for text in model_input]

    def _method(self, given: dict[str, Any]) -> str:
        able = self._generator.methods()
        if FILL in able:
            return FILL
        if given.get("num_beams", 1) > 1:
            return "beam"
        return "sample" if given.get("temperature", 1.0) > 0 else "greedy"


mlflow.models.set_model(TextModel())
