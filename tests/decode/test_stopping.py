from __future__ import annotations

import itertools

import pytest
from decode_models import VOCABULARY
from hypothesis import given
from hypothesis import strategies as st

from xtdist.decode import Engine, GenerationParams
from xtdist.decode.stopping import Release, TextStream, held_back
from xtdist.model import TransformerWrapper


class Pieces:
    """A tokenizer that is a list of byte strings."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces
        self.vocab_size = len(pieces)

    def token_bytes(self, token_id: int, /) -> bytes:
        return self.pieces[token_id]


def feed(stream: TextStream, ids: list[int]) -> tuple[list[Release], Release]:
    """The releases, one per token until the stream stops, and all of them together."""
    parts = []
    for token in ids:
        parts.append(stream.push(token, extra=-token))
        if stream.stopped:
            break
    parts.append(stream.finish())
    total = Release()
    for part in parts:
        total = total + part
    return parts, total


def test_a_code_point_is_shown_only_when_it_is_whole() -> None:
    euro = "€".encode()
    parts, total = feed(TextStream(Pieces(b"a", euro[:1], euro[1:2], euro[2:])), [0, 1, 2, 3])
    assert [p.text for p in parts] == ["a", "", "", "€", ""]
    assert [p.token_ids for p in parts] == [(0,), (), (), (1, 2, 3), ()]
    assert total.extras == (0, -1, -2, -3)


def test_a_broken_code_point_at_the_end_becomes_a_replacement_character() -> None:
    _, total = feed(TextStream(Pieces(b"a", "€".encode()[:2])), [0, 1])
    assert total == Release((0, 1), "a�", (0, -1))


def test_text_tokens_and_extras_end_together_before_a_stop_string() -> None:
    pieces = Pieces(b"one ", b"two", b" EN", b"D three")
    parts, total = feed(TextStream(pieces, stop=("END",)), [0, 1, 2, 3, 0])
    assert total == Release((0, 1, 2), "one two ", (0, -1, -2))
    assert all("E" not in p.text for p in parts)


def test_what_only_looked_like_a_stop_is_shown_after_all() -> None:
    parts, total = feed(TextStream(Pieces(b"ab", b"c", b"x"), stop=("abcd",)), [0, 1, 2])
    assert [p.text for p in parts] == ["", "", "abcx", ""]
    assert total.token_ids == (0, 1, 2)


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", b"\xc3", b"\xa9", b"aab"]), max_size=20),
    st.lists(st.sampled_from(["ab", "ba", "aab", "bbb", "é", "aé"]), max_size=3),
)
def test_streamed_text_is_the_whole_text_cut_at_the_earliest_stop(
    pieces: list[bytes], stops: list[str]
) -> None:
    parts, total = feed(TextStream(Pieces(*pieces), stop=tuple(stops)), list(range(len(pieces))))
    whole = ""
    for count in range(len(pieces) + 1):
        complete = count == len(pieces)
        whole = b"".join(pieces[:count]).decode(errors="replace")
        if not complete:
            whole = whole.removesuffix("\ufffd") if _partial(pieces[:count]) else whole
        places = [whole.find(s) for s in stops if s in whole]
        if places:
            whole = whole[: min(places)]
            break
    assert total.text == whole
    assert len(total.token_ids) == len(total.extras)
    for part in itertools.accumulate(p.text for p in parts):
        assert whole.startswith(part)
    assert list(total.token_ids) == list(range(len(total.token_ids)))


def _partial(pieces: list[bytes]) -> bool:
    return b"".join(pieces).endswith(b"\xc3")


@given(st.text("ab", max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_held_back_part_is_the_longest_that_could_become_a_stop(
    text: str, stops: list[str]
) -> None:
    candidates = [
        n
        for n in range(len(text) + 1)
        if n == 0 or any(s.startswith(text[-n:]) and len(s) > n for s in stops)
    ]
    assert held_back(text, stops) == max(candidates)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_engine_stops_at_a_string_that_spans_tokens(
    expert: TransformerWrapper, beams: int
) -> None:
    tokenizer = Pieces(*(bytes([97 + i % 26, 65 + i // 26]) for i in range(VOCABULARY)))
    engine = Engine(expert, tokenizer=tokenizer)
    free = GenerationParams(max_tokens=12, temperature=0.0, num_beams=beams)
    text = engine.generate([[1, 2]], free)[0].choices[0].text
    assert len(text) == 24
    stop = text[5:8]
    params = GenerationParams(max_tokens=12, temperature=0.0, num_beams=beams, stop=(stop,))
    choice = engine.generate([[1, 2]], params)[0].choices[0]
    if beams == 1:
        assert choice.text == text[: text.index(stop)]
        assert choice.finish_reason == "stop"
        assert len(choice.token_ids) == -(-len(choice.text) // 2)
    assert stop not in choice.text


def test_streamed_pieces_join_to_the_whole_completion(expert: TransformerWrapper) -> None:
    tokenizer = Pieces(*(("é€x"[i % 3]).encode()[i % 2 :] or b"y" for i in range(VOCABULARY)))
    params = GenerationParams(max_tokens=30, seed=5, n=2, stop=("xx", "€y"))
    whole = Engine(expert, tokenizer=tokenizer).generate([[1]], params)[0]
    engine = Engine(expert, tokenizer=tokenizer)
    engine.add([1], params)
    texts = {0: "", 1: ""}
    while engine.has_work:
        for output in engine.step():
            texts[output.index] += output.text
    assert [texts[0], texts[1]] == [c.text for c in whole.choices]


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"ba", "é".encode()]), max_size=12),
    st.lists(st.sampled_from(["ab", "ba", "bbb", "é", "aé"]), min_size=1, max_size=3),
    st.integers(0, 6),
)
def test_no_stop_string_begins_in_the_first_min_tokens(
    pieces: list[bytes], stops: list[str], least: int
) -> None:
    stream = TextStream(Pieces(*pieces), stop=tuple(stops), min_tokens=least)
    _, total = feed(stream, list(range(len(pieces))))
    whole, free = b"".join(pieces).decode(), len(b"".join(pieces[:least]).decode())
    ends = [whole.find(s, free) for s in stops if s in whole[free:]]
    assert total.text == (whole[: min(ends)] if ends else whole)
    assert len(total.token_ids) >= min(least, len(pieces))


def test_a_code_point_that_min_tokens_cuts_belongs_to_them() -> None:
    euro = "€".encode()
    stream = TextStream(Pieces(euro[:1], euro[1:], b"x"), stop=("€", "x"), min_tokens=1)
    _, total = feed(stream, [0, 1, 2])
    assert (total.text, total.token_ids) == ("€", (0, 1))


def test_a_stop_string_that_was_held_back_by_min_tokens_comes_later() -> None:
    stream = TextStream(Pieces(b"ab", b"x", b"a", b"b", b"c"), stop=("ab",), min_tokens=2)
    _, total = feed(stream, [0, 1, 2, 3, 4])
    assert (total.text, total.token_ids) == ("abx", (0, 1))
