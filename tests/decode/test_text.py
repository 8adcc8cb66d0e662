"""Named methods over an engine."""

from __future__ import annotations

import pytest
from decode_models import greedy, make_model

from xtdist.decode.text import Settings, TextGenerator


class Letters:
    """One character per id."""

    vocab_size = 40

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 64 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i + 64) for i in ids)

    def token_bytes(self, token: int) -> bytes:
        return chr(token + 64).encode()


def make_generator() -> TextGenerator:
    return TextGenerator(make_model(0), Letters(), eos_id=39, banned_ids=(38,))


def test_one_beam_is_greedy() -> None:
    text = make_generator()("ABC", "beam", Settings(max_tokens=8, num_beams=1))
    ids = list(greedy(make_model(0), [1, 2, 3], 8))
    assert not {38, 39} & set(ids)
    assert text == Letters().decode(ids)


@pytest.mark.parametrize("num_beams", [9, 12])
def test_more_beams_than_the_engine_began_with_are_made_room_for(num_beams: int) -> None:
    generator = make_generator()
    assert generator("ABC", "beam", Settings(max_tokens=4, num_beams=num_beams))
    assert generator("ABC", "greedy", Settings(max_tokens=4))
