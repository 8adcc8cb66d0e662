"""Many prompts through one engine, to their end."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from xtdist.config import ConfigError
from xtdist.decode.given import as_prompts, of_prompt
from xtdist.decode.outputs import Completion, Output, collect
from xtdist.decode.processors import LogitsProcessor
from xtdist.decode.stream import Mail, Stepping


class Taking(Stepping, Protocol):
    """What is needed of the engine."""

    @property
    def full(self) -> bool: ...
    def add(
        self,
        prompt_ids: Sequence[int],
        params: Any,
        *,
        context: Any = None,
        processor: LogitsProcessor | None = None,
    ) -> str: ...


def complete(
    engine: Taking,
    mail: Mail,
    prompts: Sequence[Any],
    params: Any,
    *,
    contexts: Sequence[Any] | None,
    processor: LogitsProcessor | None,
) -> list[Completion]:
    """Completions in the order of the prompts, as many at a time as the engine takes. Whatever ends
    the call, nothing of it is left in the engine.

    Raises:
        ConfigError: as ``Engine.add``, or not one context for each prompt.
    """
    prompts = as_prompts(prompts)
    if contexts is not None and len(contexts) != len(prompts):
        raise ConfigError(
            f"contexts: got {len(contexts)} for {len(prompts)} prompts; give one for each"
        )
    outputs: dict[str, deque[Output]] = {}
    read = [None] * len(prompts) if contexts is None else contexts
    left = list(reversed(list(zip(prompts, read, strict=True))))
    try:
        while left or any(engine.knows(name) for name in outputs):
            while left and not engine.full:
                prompt, context = left[-1]
                with of_prompt(len(outputs), count=len(prompts)):
                    name = engine.add(prompt, params, context=context, processor=processor)
                outputs[name] = mail.open(name)
                left.pop()
            engine.pump()
            mail.check(outputs)
    finally:
        for name in outputs:
            mail.close(name)
            engine.abort(name)
    return [collect(list(parts)) for parts in outputs.values()]
