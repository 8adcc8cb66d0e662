"""sentencepiece models: the library's ids and texts, and no control piece from text."""

from __future__ import annotations

import builtins
import pickle
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from foreign import UNSEEN, sentencepiece_model
from hypothesis import given, settings
from hypothesis import strategies as st

from xtdist.config import ConfigError, DataError
from xtdist.data import SentencePieceTokenizerConfig, Tokenizer, load_tokenizer, make_tokenizer

OPTIONS: dict[str, dict[str, Any]] = {
    "bpe": {"model_type": "bpe", "byte_fallback": True},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "pad_id": 3},
    "lossless": {
        "model_type": "bpe",
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
    },
}
TEXT = st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), max_size=60) | st.text(
    "aeint_ \n\t.='é東😀</s>", max_size=100
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {name: folder / f"{name}.model" for name in OPTIONS}
    for name, path in paths.items():
        path.write_bytes(sentencepiece_model(**OPTIONS[name]))
    return paths


def make(path: Path, **roles: str) -> Tokenizer:
    return make_tokenizer(SentencePieceTokenizerConfig(path=str(path), **roles), list)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_ids_and_texts_are_those_of_the_library(
    models: dict[str, Path], name: str, text: str
) -> None:
    ours = make(models[name])
    peer = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
    ids = ours.encode(text).tolist()
    assert ids == peer.encode(text)
    assert ours.decode(ids) == peer.decode(ids)
    if name == "lossless" and "▁" not in text:
        assert ours.decode(ids) == text


def test_a_continuation_keeps_the_space_of_its_first_word(models: dict[str, Path]) -> None:
    ours = make(models["bpe"])
    ids = ours.encode("is not").tolist()
    assert ours.decode(ids) == "is not"
    assert b"".join(map(ours.token_bytes, ids)) == b" is not"


def test_roles_are_the_models_own_or_follow_it(models: dict[str, Path]) -> None:
    for name in OPTIONS:
        peer = sentencepiece.SentencePieceProcessor(model_file=str(models[name]))
        ours, n = make(models[name]), peer.get_piece_size()
        assert ours.eot_id == peer.eos_id()
        assert ours.mask_id == n
        assert ours.pad_id == (peer.pad_id() if name == "unigram" else n + 1)
        special = {ours.eot_id, ours.mask_id, ours.pad_id, peer.bos_id()}
        assert special.isdisjoint(ours.encode("</s> a</s><s><pad>").tolist())
        assert ours.decode([ours.eot_id, ours.pad_id, *ours.encode("the").tolist()]) == "the"
    assert make(models["bpe"], eot="<s>").eot_id == 1
    with pytest.raises(DataError, match=r"bpe\.model: eot: there is no token '<end>'.*</s>, <s>"):
        make(models["bpe"], eot="<end>")


def test_it_saves_loads_and_pickles(models: dict[str, Path], tmp_path: Path) -> None:
    ours = make(models["bpe"])
    ours.save(tmp_path / "tokenizer.json")
    for other in (load_tokenizer(tmp_path / "tokenizer.json"), pickle.loads(pickle.dumps(ours))):
        assert (other.kind, other.sha256, other.roles) == ("sentencepiece", ours.sha256, ours.roles)
        assert other.encode(UNSEEN[0]).tolist() == ours.encode(UNSEEN[0]).tolist()


@pytest.mark.parametrize("raw", [b"", b"not a model", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "bad.model"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"bad\.model: not a model of sentencepiece"):
        make(path)


def test_without_the_library_the_extra_is_named(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sentencepiece":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'xtdist\[sentencepiece\]'"):
        make(models["bpe"])


@pytest.mark.parametrize("run", ["a", " ", "\0", "é"])
def test_a_long_run_of_one_character_is_encoded(models: dict[str, Path], run: str) -> None:
    ours = make(models["lossless"])
    assert ours.decode(ours.encode(run * 500_000)) == run * 500_000
