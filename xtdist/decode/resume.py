"""Requests that go on where another engine stopped: their first tokens are given, not drawn."""

from __future__ import annotations

from collections.abc import Sequence

from xtdist.config import ConfigError
from xtdist.decode.params import GenerationParams
from xtdist.decode.stopping import Release, TextStream


def split(
    prompt: tuple[int, ...], params: GenerationParams
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The prompt proper, and the tokens that were generated after it before.

    Raises:
        ConfigError: there is no prompt before them.
    """
    count = params.resume_tokens
    if not count:
        return prompt, ()
    if count >= len(prompt):
        raise ConfigError(
            f"resume_tokens: got {count} for {len(prompt)} tokens in all; give the prompt before "
            "them, too"
        )
    return prompt[:-count], prompt[-count:]


def push(taken: Sequence[int], stream: TextStream, ends: Sequence[int]) -> Release:
    """What they show.

    Raises:
        ConfigError: they are an end already.
    """
    shown = Release()
    for token in taken:
        shown = shown + stream.push(token)
    if stream.stopped or set(taken) & set(ends):
        raise ConfigError("resume_tokens: these tokens end the text; there is nothing to resume")
    return shown
