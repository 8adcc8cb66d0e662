"""Ranks files: the ids of tiktoken itself, special ids behind them, damage named by line."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from foreign import UNSEEN
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public

from xtdist.config import ConfigError, DataError
from xtdist.data import (
    TiktokenTokenizerConfig,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    train_bpe,
)
from xtdist.data.tokenizer.ranks import PATTERNS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "aeBL \n\t\r/.,'12é\u0301東😀", max_size=120
)


def lines(tokens: list[bytes]) -> bytes:
    return b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(tokens))


@pytest.fixture(scope="module")
def tokens() -> list[bytes]:
    own = train_bpe(UNSEEN, 600)
    return [own.token_bytes(i) for i in range(own.eot_id)]


@pytest.fixture(scope="module")
def ranks(tokens: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "some.tiktoken"
    path.write_bytes(lines(tokens))
    return path


def make(path: Path, **options: Any) -> Tokenizer:
    return make_tokenizer(
        TiktokenTokenizerConfig(path=str(path), **{"pattern": "gpt2", **options}), list
    )


def peer(tokens: list[bytes], pattern: str) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "peer",
        pat_str=pattern,
        mergeable_ranks={t: i for i, t in enumerate(tokens)},
        special_tokens={},
    )


def published(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """The pattern in tiktoken's own definition of an encoding, without its download."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *a, **k: {})
    return str(getattr(openai_public, name)()["pat_str"])


@pytest.mark.parametrize("name", ["cl100k", "o200k"])
def test_patterns_are_those_that_tiktoken_publishes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PATTERNS[name] == published(monkeypatch, f"{name}_base")


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_ids_and_texts_are_those_of_tiktoken(
    tokens: list[bytes], ranks: Path, pattern: str, text: str
) -> None:
    ours, theirs = make(ranks, pattern=pattern), peer(tokens, PATTERNS[pattern])
    assert ours.encode(text).tolist() == theirs.encode_ordinary(text)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("pattern", PATTERNS)
def test_long_texts_are_cut_where_every_pattern_cuts(
    tokens: list[bytes], ranks: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtdist.data.tokenizer.ranks.PIECE_CHARS", 400)
    ours, theirs = make(ranks, pattern=pattern), peer(tokens, PATTERNS[pattern])
    odd = ["x.\n\n\n y", "_\n_", "a \n b", "don't\n'S", "12345\n1", "é\u0301 \u3000東\n京"]
    rng = np.random.default_rng(3)
    mixed = "".join(odd[i] for i in rng.integers(0, len(odd), 3000))
    for text in (*UNSEEN, mixed):
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("run", ["a", "A", " ", "\0", "\n", "1", ".", "\u3000", "e\u0301", "東"])
def test_a_run_of_a_hundred_thousand_characters_is_encoded(
    ranks: Path, pattern: str, run: str
) -> None:
    ours = make(ranks, pattern=pattern)
    text = run * (100_000 // len(run))
    assert ours.decode(ours.encode(text)) == text


def test_special_ids_are_as_given_or_follow(tokens: list[bytes], ranks: Path) -> None:
    n = len(tokens)
    ours = make(ranks)
    assert (ours.eot_id, ours.mask_id, ours.pad_id, ours.vocab_size) == (n, n + 1, n + 2, n + 3)
    ours = make(ranks, special={"<|end|>": n + 5, "<|pad|>": n + 2}, eot="<|end|>")
    assert (ours.eot_id, ours.mask_id, ours.pad_id, ours.vocab_size) == (n + 5, n + 6, n + 2, n + 7)
    assert [ours.token_bytes(i) for i in range(n, n + 7)] == [b""] * 7
    assert max(ours.encode("<|end|><|pad|>")) < n
    for special in ({"<|end|>": n - 1}, {"a": n, "b": n}):
        with pytest.raises(DataError, match="special: ids must be different, and behind"):
            make(ranks, special=special)


def test_an_expression_of_ones_own_encodes_whole_texts(tokens: list[bytes], ranks: Path) -> None:
    pattern = r"\w+|\W"
    ours = make(ranks, pattern=pattern)
    for text in UNSEEN:
        assert ours.encode(text).tolist() == peer(tokens, pattern).encode_ordinary(text)


def test_an_expression_that_leaves_text_out_or_is_none_is_refused(ranks: Path) -> None:
    with pytest.raises(DataError, match="leaves out a part"):
        make(ranks, pattern=r"\w+").encode("a.b")
    with pytest.raises(DataError, match=r"pattern: '\(' is none of gpt2, cl100k"):
        make(ranks, pattern="(")


def test_it_saves_loads_and_pickles(ranks: Path, tmp_path: Path) -> None:
    ours = make(ranks, pattern="o200k", special={"<|endoftext|>": 700})
    ours.save(tmp_path / "tokenizer.json")
    again = (load_tokenizer(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(ours)))
    for other in again:
        assert (other.kind, other.sha256, other.roles) == ("tiktoken", ours.sha256, ours.roles)
        assert other.encode(UNSEEN[0]).tolist() == ours.encode(UNSEEN[0]).tolist()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: lines(t)[:-3] + b"zz\n", r"tiktoken:\d+: expected a base64 token and the rank"),
        (lambda t: lines(t[:5]) + lines(t[6:]), r"tiktoken:6: expected"),
        (lambda t: b"!!! 0\n", r"tiktoken:1: damaged: not base64"),
        (lambda t: lines(t[:200]), "56 bytes have no rank"),
        (lambda t: lines([*t, t[3]]), "two ranks have the same token"),
        (lambda t: b"", "256 bytes have no rank"),
    ],
)
def test_a_damaged_ranks_file_is_refused(
    tokens: list[bytes], tmp_path: Path, edit: Any, message: str
) -> None:
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(edit(tokens))
    with pytest.raises(DataError, match=message):
        make(path)


def test_a_missing_file_and_a_remote_one_are_named() -> None:
    with pytest.raises(DataError, match=r"/nowhere/x\.tiktoken: can't be read"):
        make(Path("/nowhere/x.tiktoken"))
    with pytest.raises(ConfigError, match="path: got 's3://x/y'"):
        TiktokenTokenizerConfig(path="s3://x/y", pattern="gpt2")
