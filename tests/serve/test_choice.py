"""One choice of an answer as it grows."""

from __future__ import annotations

from typing import Any

import pytest

from xtdist.data import byte_tokenizer
from xtdist.decode import Output
from xtdist.serve.choice import CompletionChoice, Prompt, Shown


@pytest.mark.parametrize(
    ("reason", "shown"), [("stop", "stop"), ("length", "length"), ("exhausted", "length")]
)
def test_a_text_that_nothing_may_continue_is_cut_short_in_openais_words(
    reason: Any, shown: str
) -> None:
    choice = CompletionChoice(0, byte_tokenizer(), Prompt([65], "A"), shown=Shown())
    choice.take(Output("a", 0, text="x"))
    assert choice.finish_reason is None
    choice.take(Output("a", 0, finish_reason=reason))
    released = choice.release()
    assert (released.text, released.finish_reason) == ("x", shown)
