"""A few calls of the real ``openai`` client, for the demo and for trying a server out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from xtdist.config import ResourceError

# Our parameters that the client does not know; it passes them on in ``extra_body``.
_EXTENSIONS = (
    "num_beams",
    "contrastive",
    "top_k",
    "min_p",
    "top_a",
    "typical_p",
    "temperature_last",
    "repetition_penalty",
    "length_penalty",
    "early_stopping",
    "stop_token_ids",
    "use_beam_search",
    "ignore_eos",
    "min_tokens",
)


@dataclass(frozen=True)
class Client:
    """Completions of a server at ``url`` (without ``/v1``), with OpenAI's own client underneath.

    Example:
        >>> client = Client(url="http://127.0.0.1:8000")  # doctest: +SKIP
        >>> client.complete("import ", num_beams=4)  # doctest: +SKIP
    """

    url: str
    api_key: str = "none"
    timeout_s: float = 120.0

    def models(self) -> list[str]:
        """Names of the served models."""
        return [m.id for m in self._openai.models.list().data]

    def complete(self, prompt: str, *, model: str | None = None, **params: Any) -> list[str]:
        """The texts of all choices, best first with beam search."""
        answer = self._openai.completions.create(**self._arguments(prompt, model, params))
        return [choice.text for choice in answer.choices]

    def stream(self, prompt: str, *, model: str | None = None, **params: Any) -> Iterator[str]:
        """Pieces of the text of one choice as they are generated."""
        arguments = self._arguments(prompt, model, params)
        for chunk in self._openai.completions.create(**arguments, stream=True):
            yield from (choice.text for choice in chunk.choices if choice.text)

    def _arguments(self, prompt: str, model: str | None, params: dict[str, Any]) -> dict[str, Any]:
        extra = {k: v for k, v in params.items() if k in _EXTENSIONS}
        known = {k: v for k, v in params.items() if k not in _EXTENSIONS}
        return {
            "model": model or self.models()[0],
            "prompt": prompt,
            "extra_body": extra,
            **known,
        }

    @cached_property
    def _openai(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            raise ResourceError(
                "the openai package is missing; install it with: pip install 'xtdist[serve]'"
            ) from None
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.api_key, timeout=self.timeout_s)
