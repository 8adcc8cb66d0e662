"""A served model, asked by the methods that the command line knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xtdist.config import ConfigError, to_mapping
from xtdist.decode.params import GenerationParams
from xtdist.decode.text import FILL, Settings, continuation
from xtdist.serve.client.sync import Client


class RemoteModel:
    """The model ``name`` of the server at ``url``; None: its only one.

    Raises:
        ClientError: the server can't be reached or asked.
        ConfigError: it has no model of this name, or several and none was named.
    """

    def __init__(self, url: str, *, api_key: str | None, name: str | None) -> None:
        self._client = Client(url, api_key=api_key)
        try:
            self._card = _find(self._client.models(), name)
        except BaseException:
            self._client.close()
            raise
        self.name = str(self._card["id"])

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def methods(self) -> tuple[str, ...]:
        """What it can do without being told more."""
        if self._card.get("fills"):
            return (FILL,)
        contrastive = ["contrastive"] if self._card.get("contrastive") else []
        return ("greedy", "sample", "beam", *contrastive)

    def room(self, text: str) -> int:
        """Tokens that may come beside ``text``."""
        known = len(self._client.tokenize(text, model=self.name)) if text else 0
        return int(self._card["max_model_len"]) - known

    def stream(
        self, prompt: str, method: str, settings: Settings, *, suffix: str = "", live: bool = True
    ) -> Iterator[str]:
        """The text, piece by piece as it is found if ``live``; beams are only known at the end."""
        if method == FILL:
            fields = _filling(settings, suffix=suffix)
        else:
            params = continuation(method, settings)
            fields, live = _changed(params), live and not params.uses_beams
        if not live:
            yield self._client.complete(prompt, model=self.name, **fields).text
            return
        with self._client.stream(prompt, model=self.name, **fields) as stream:
            yield from (piece.text for piece in stream)


def _filling(settings: Settings, *, suffix: str) -> dict[str, Any]:
    """What is asked of a model that fills masks between prompt and suffix."""
    fields = {
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "steps": settings.steps,
        "suffix": suffix or None,
    }
    return {k: v for k, v in fields.items() if v is not None}


def _find(cards: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    names = [card["id"] for card in cards]
    if name is None and len(cards) == 1:
        return cards[0]
    if name not in names:
        given = "it has several" if name is None else f"it has no {name!r}"
        raise ConfigError(f"--model: {given}; name one of {', '.join(names) or 'none'}")
    return cards[names.index(name)]


def _changed(params: GenerationParams) -> dict[str, Any]:
    """The fields that are not as they would be if nobody named them: server and engine have the
    same names and defaults."""
    usual = to_mapping(GenerationParams())
    return {k: v for k, v in to_mapping(params).items() if v != usual[k]}
