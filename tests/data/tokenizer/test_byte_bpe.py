"""Tokenizers: lossless, the same ids as Hugging Face's encoder, and no other file accepted."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import ConfigError, DataError
from xtdist.data import Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from xtdist.data.tokenizer import SPECIAL_TOKENS
from xtdist.data.tokenizer.merges import ranked_merges, split_by_rank

STDLIB = Path(sysconfig.get_path("stdlib"))
SAMPLE = [(STDLIB / f"{name}.py").read_text("utf-8") for name in ("ast", "os", "typing", "socket")]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CODE_LIKE = st.text("aeint_ \n\t().='s1é—東😀\r", max_size=200)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(SAMPLE, 1200)


@pytest.fixture(scope="module")
def hf(bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> tokenizers.Tokenizer:
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    bpe.save(path)
    return tokenizers.Tokenizer.from_file(str(path))


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT | CODE_LIKE)
def test_decoding_gives_back_any_text(bpe: Tokenizer, text: str) -> None:
    for tokenizer in (bpe, byte_tokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert all(i < tokenizer.eot_id for i in ids)


@settings(max_examples=200, deadline=None)
@given(text=CODE_LIKE | st.text(st.characters(codec="latin-1")))
def test_ids_are_those_of_hugging_face(bpe: Tokenizer, hf: tokenizers.Tokenizer, text: str) -> None:
    assert bpe.encode(text).tolist() == hf.encode(text).ids


def test_ids_are_those_of_hugging_face_on_real_files_and_decode_there(
    bpe: Tokenizer, hf: tokenizers.Tokenizer
) -> None:
    for name in ("argparse", "decimal", "tokenize", "textwrap"):
        text = (STDLIB / f"{name}.py").read_text("utf-8")
        ids = bpe.encode(text).tolist()
        assert ids == hf.encode(text).ids
        assert hf.decode(ids) == text
        assert len(ids) < len(text) / 2  # it does compress text that it was not trained on


def test_ids_follow_from_byte_pair_encoding_by_its_definition(bpe: Tokenizer) -> None:
    ranks = {bpe.token_bytes(i): i for i in range(bpe.eot_id)}
    for word in ["return", "__init__", "socket", " self", "isinstance", "zqxj", "ü", " 東京"]:
        parts = split_by_rank(word.encode(), ranks)
        assert bpe.encode(word).tolist() == [ranks[p] for p in parts]


def test_merges_that_rank_order_would_not_make_are_left_out() -> None:
    pairs = [(b"b", b"c"), (b"a", b"b"), (b"ab", b"c"), (b"a", b"bc")]
    # "abc" is encoded as a + bc, as bc comes first: (ab, c) can't be the way to it
    assert ranked_merges(pairs) == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc")]
    unreachable = [(b"b", b"c"), (b"a", b"b"), (b"c", b"d"), (b"ab", b"cd")]
    assert ranked_merges(unreachable) == [(b"b", b"c"), (b"a", b"b"), (b"c", b"d")]


def test_special_tokens_are_the_last_ids_and_have_no_text(bpe: Tokenizer) -> None:
    for tokenizer in (bpe, byte_tokenizer()):
        n = tokenizer.vocab_size
        assert (tokenizer.eot_id, tokenizer.mask_id, tokenizer.pad_id) == (n - 3, n - 2, n - 1)
        specials = [n - 3, n - 2, n - 1]
        ids = [*tokenizer.encode("a b").tolist(), *specials, *tokenizer.encode("c").tolist()]
        assert tokenizer.decode(ids) == "a bc"
        assert [tokenizer.token_bytes(i) for i in specials] == [b"", b"", b""]
    assert byte_tokenizer().vocab_size == 259
    assert bpe.vocab_size == 1200


def test_text_that_spells_a_special_token_is_plain_text(bpe: Tokenizer) -> None:
    for tokenizer in (bpe, byte_tokenizer()):
        for name in SPECIAL_TOKENS:
            ids = tokenizer.encode(f"x{name}y")
            assert max(ids) < tokenizer.eot_id
            assert tokenizer.decode(ids) == f"x{name}y"


@pytest.mark.parametrize("bad", [-1, 1200, 10**9])
def test_an_id_outside_the_vocabulary_is_refused(bpe: Tokenizer, bad: int) -> None:
    with pytest.raises(ConfigError, match=f"{bad}.*0 to 1199"):
        bpe.decode([1, bad])


def test_bytes_that_are_not_utf8_decode_to_replacement_characters() -> None:
    assert byte_tokenizer().decode([0xE6, 0x9D, 65]) == "\ufffdA"


def test_a_lone_surrogate_is_refused(bpe: Tokenizer) -> None:
    for tokenizer in (bpe, byte_tokenizer()):
        with pytest.raises(DataError, match=r"\\ud800\) at character 2"):
            tokenizer.encode("ab\ud800")


@pytest.mark.parametrize("run", ["a", " ", "\n", "é", "ab ", "!\n\n", "x\u3000"])
def test_a_document_of_a_million_equal_characters_is_encoded(bpe: Tokenizer, run: str) -> None:
    text = run * (1_000_000 // len(run))
    assert bpe.decode(bpe.encode(text)) == text


def test_cutting_a_long_document_does_not_show_in_the_ids(bpe: Tokenizer) -> None:
    text = "\n".join(SAMPLE)[:300_000]
    whole = bpe._ranks._whole(text)  # far from the regex engine's limit, unlike longer runs
    np.testing.assert_array_equal(bpe.encode(text), whole)


def test_saving_and_loading_gives_the_same_tokenizer(bpe: Tokenizer, tmp_path: Path) -> None:
    for tokenizer in (bpe, byte_tokenizer()):
        path = tmp_path / "tokenizer.json"
        tokenizer.save(path)
        loaded = load_tokenizer(path)
        assert loaded.kind == tokenizer.kind
        assert loaded.sha256 == tokenizer.sha256
        assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert loaded.encode(SAMPLE[0]).tolist() == tokenizer.encode(SAMPLE[0]).tolist()
        assert pickle.loads(pickle.dumps(tokenizer)).sha256 == tokenizer.sha256


def test_training_again_in_another_process_gives_the_same_file(bpe: Tokenizer) -> None:
    script = (
        "import pathlib, sysconfig\n"
        "from xtdist.data.tokenizer import train_bpe\n"
        "lib = pathlib.Path(sysconfig.get_path('stdlib'))\n"
        "names = ('ast', 'os', 'typing', 'socket')\n"
        "texts = [(lib / f'{n}.py').read_text('utf-8') for n in names]\n"
        "print(train_bpe(texts, 1200).sha256)\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == bpe.sha256


def test_a_small_corpus_gives_the_vocabulary_it_has_pairs_for() -> None:
    tokenizer = train_bpe(["aa aa aa"], 4096)
    assert 259 < tokenizer.vocab_size < 270
    assert tokenizer.decode(tokenizer.encode("aa xyz")) == "aa xyz"
    with pytest.raises(ConfigError, match="at least 260"):
        train_bpe(["a"], 259)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"model": {"merges": [["a", 1]]}}', '{"model": {"merges": ["a b"]}}'],
)
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"tokenizer\.json: not"):
        load_tokenizer(path)


def test_an_edited_tokenizer_file_is_refused(bpe: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for edit in (
        lambda t: t["model"]["vocab"].update(the=5),
        lambda t: t["model"]["merges"].pop(3),
        lambda t: t["added_tokens"].pop(),
        lambda t: t.update(normalizer={"type": "NFC"}),
    ):
        spec = json.loads(bpe.text)
        edit(spec)
        path.write_text(json.dumps(spec))
        with pytest.raises(DataError, match="not a tokenizer of this package"):
            load_tokenizer(path)


def test_bpe_learns_from_and_encodes_long_runs_of_one_character(tmp_path: Path) -> None:
    runs = ["x" * 300_000, " " * 300_000, "hello world " * 50]
    tokenizer = train_bpe(runs, 400)
    assert tokenizer.kind == "bpe"
    assert max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.eot_id)) <= 128
    for text in runs:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    tokenizer.save(tmp_path / "tokenizer.json")
    hf = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "x" * 5000 + " hello"
    assert tokenizer.encode(text).tolist() == hf.encode(text).ids


def test_a_deeply_nested_tokenizer_file_is_refused(tmp_path: Path) -> None:
    for text in ("[" * 3000, "[" * 300_000):
        (tmp_path / "tokenizer.json").write_text(text)
        with pytest.raises(DataError, match="not JSON"):
            load_tokenizer(tmp_path / "tokenizer.json")
