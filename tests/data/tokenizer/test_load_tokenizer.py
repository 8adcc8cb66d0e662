"""The one file of every kind: what is damaged is refused by name, and what is read is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import byte_level, llama2, sentencepiece_model

from xtdist.config import ConfigError, DataError, from_mapping, to_mapping
from xtdist.data import (
    BpeTokenizerConfig,
    ByteTokenizerConfig,
    HuggingFaceTokenizerConfig,
    SentencePieceTokenizerConfig,
    TiktokenTokenizerConfig,
    Tokenizer,
    load_tokenizer,
    make_tokenizer,
    train_bpe,
)
from xtdist.data.build.config import PrepareConfig
from xtdist.decode.params import GrammarParams
from xtdist.decode.stopping import TextStream


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("files")
    hf, ranks, model = (str(folder / n) for n in ("hf.json", "ranks.tiktoken", "sp.model"))
    llama2().save(hf)
    Path(ranks).write_text(
        "".join(f"{_b64(bytes([b]))} {b}\n" for b in range(256)) + f"{_b64(b'the')} 256\n"
    )
    Path(model).write_bytes(sentencepiece_model(model_type="bpe", byte_fallback=True))
    configs = [
        ByteTokenizerConfig(),
        BpeTokenizerConfig(vocab_size=300),
        HuggingFaceTokenizerConfig(path=hf),
        TiktokenTokenizerConfig(path=ranks, pattern="llama3"),
        SentencePieceTokenizerConfig(path=model),
    ]
    return {c.kind: make_tokenizer(c, lambda: iter(["the cat and the hat " * 50])) for c in configs}


def _b64(raw: bytes) -> str:
    import base64

    return base64.b64encode(raw).decode()


def test_every_kind_is_made_and_comes_back_from_its_file(kinds: dict[str, Tokenizer]) -> None:
    assert len({t.sha256 for t in kinds.values()}) == 5
    for kind, tokenizer in kinds.items():
        again = load_tokenizer(tokenizer.text.encode())
        assert (again.kind, again.sha256, again.vocab_size) == (
            kind,
            tokenizer.sha256,
            tokenizer.vocab_size,
        )
        text = "the hat, é\x00 東"
        assert again.encode(text).dtype == np.uint32
        assert again.decode(again.encode(text)) == text
        assert again.encode("").tolist() == []
        with pytest.raises(DataError, match=r"\\ud800\) at character 1"):
            again.encode("a\ud800")
        with pytest.raises(ConfigError, match=rf"-1.*0 to {tokenizer.vocab_size - 1}"):
            again.decode([-1])


@pytest.mark.parametrize("kind", ["huggingface", "tiktoken", "sentencepiece"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"xtdist_tokenizer": 2}, "xtdist_tokenizer is 2, this version reads 1"),
        ({"kind": "magic"}, "kind is 'magic'"),
        ({"more": 1}, "has the keys"),
        ({"roles": {"eot": 0}}, "roles must give eot, mask, pad"),
        ({"roles": {"eot": 0, "mask": 1, "pad": 10**6}}, "they must be ids of the"),
        ({"roles": {"eot": -1, "mask": 1, "pad": 2}}, "roles|-1"),
        ({"roles": {"eot": True, "mask": 1, "pad": 2}}, "they must be ids"),
    ],
)
def test_an_envelope_that_is_wrong_is_refused_with_the_file_named(
    kinds: dict[str, Tokenizer], tmp_path: Path, kind: str, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(kinds[kind].text), **change}))
    with pytest.raises(DataError, match=rf"tokenizer\.json: .*({message})"):
        load_tokenizer(path)


@pytest.mark.parametrize("kind", ["huggingface", "tiktoken", "sentencepiece"])
def test_a_flipped_byte_never_passes_for_the_same_tokenizer(
    kinds: dict[str, Tokenizer], kind: str
) -> None:
    tokenizer = kinds[kind]
    raw, rng = bytearray(tokenizer.text.encode()), np.random.default_rng(5)
    for at in rng.integers(0, len(raw), 25):
        bad = raw.copy()
        bad[at] ^= 1 << int(rng.integers(0, 7))
        try:
            other = load_tokenizer(bytes(bad)).sha256
        except DataError as e:
            other = str(e)
        assert other != tokenizer.sha256
    for cut in rng.integers(0, len(raw) - 2, 5):
        with pytest.raises(DataError, match="not JSON"):
            load_tokenizer(bytes(raw[:cut]))


def test_a_file_too_large_for_a_tokenizer_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtdist.data.tokenizer.envelope.MOST_BYTES", 1000)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b" " * 1001)
    with pytest.raises(DataError, match=r"tokenizer\.json: 1001 bytes; .* at most 1000"):
        load_tokenizer(path)


def test_a_plain_file_of_hugging_face_is_refused_with_the_way_to_take_it_over(
    tmp_path: Path,
) -> None:
    byte_level(vocab_size=300).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer=\{kind: huggingface, path: "):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_hugging_face_reads_no_other_keys_in_its_format_hence_the_envelope() -> None:
    import tokenizers

    spec = json.loads(train_bpe(["aa ab"], 280).text)
    tokenizers.Tokenizer.from_str(json.dumps(spec))
    with pytest.raises(Exception, match="expected"):
        tokenizers.Tokenizer.from_str(json.dumps({**spec, "xtdist": {}}))


def test_configs_are_told_apart_by_kind() -> None:
    source = {"kind": "stdlib"}
    for tree in (
        {"kind": "huggingface", "path": "a.json", "eot": "</s>"},
        {"kind": "tiktoken", "path": "a", "pattern": "gpt2", "special": {"<e>": 300}},
        {"kind": "sentencepiece", "path": "a.model"},
    ):
        made = from_mapping(PrepareConfig, {"output": "x", "source": source, "tokenizer": tree})
        assert tree.items() <= to_mapping(made)["tokenizer"].items()


def test_text_that_is_shown_token_by_token_keeps_the_spaces_between_words(
    kinds: dict[str, Tokenizer],
) -> None:
    for tokenizer in kinds.values():
        prompt, both = tokenizer.encode("the cat"), tokenizer.encode("the cat and the hat")
        assert both[: len(prompt)].tolist() == prompt.tolist()
        stream = TextStream(tokenizer, stop=("hat",))
        text = "".join(stream.push(int(i)).text for i in both[len(prompt) :])
        assert text + stream.finish().text == " and the "
        assert stream.stopped


def test_a_grammar_can_be_followed_with_the_tokens_of_every_kind(
    kinds: dict[str, Tokenizer],
) -> None:
    pytest.importorskip("llguidance")
    from xtdist.decode.grammar import Grammars

    for tokenizer in kinds.values():
        grammars = Grammars(tokenizer, frozenset([tokenizer.eot_id]))
        matcher = grammars.compile(GrammarParams(kind="regex", value="(cat|hat) [0-9]")).deep_copy()
        text = b""
        for _ in range(12):
            if matcher.is_accepting():
                break
            bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            allowed = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
            chosen = int(allowed[allowed < tokenizer.vocab_size][0])
            assert matcher.consume_tokens([chosen])
            text += tokenizer.token_bytes(chosen)
        assert text[:4] in (b"cat ", b"hat ")
        assert text[4:].isdigit()
