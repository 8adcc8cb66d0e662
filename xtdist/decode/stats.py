"""What an engine has done so far, and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Counted since the engine was made, but for the first six, which are of this moment.

    ``running`` and ``waiting`` count requests, ``sequences`` the continuations that run.
    ``pages_used`` hold running sequences; ``pages_cached`` are free, and hold beginnings of texts
    that may be used again. ``prompt_tokens`` are those of requests that have run, once each;
    ``prefix_hit_tokens`` of them were not computed, because pages held them.
    ``generated_tokens`` were given out, or filled in.
    """

    running: int
    waiting: int
    sequences: int
    pages_used: int
    pages_cached: int
    pages_total: int
    prompt_tokens: int
    prefix_hit_tokens: int
    generated_tokens: int
    preemptions: int
    drafted: int
    accepted: int
    steps: int
