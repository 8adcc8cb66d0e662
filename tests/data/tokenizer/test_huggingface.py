"""Hugging Face's files: their own ids and texts by either engine, no special token from text."""

from __future__ import annotations

import json
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import (
    SPLITS,
    UNSEEN,
    byte_level,
    clip,
    llama2,
    unigram,
    wordlevel,
    wordpiece,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HF
from tokenizers import decoders, pre_tokenizers, processors

from xtdist.config import DataError
from xtdist.data import HuggingFaceTokenizerConfig, Tokenizer, load_tokenizer, make_tokenizer
from xtdist.data.tokenizer.huggingface import HuggingFaceTokenizer

KINDS = {
    "gpt2": byte_level,
    "llama3": lambda: byte_level(split=SPLITS["llama3"]),
    "qwen2": lambda: byte_level(split=SPLITS["qwen2"], nfc=True, added=("<tool>", "é!")),
    "unknown split": lambda: byte_level(split=r"\d|\D+"),
    "llama2": llama2,
    "llama2 without words": lambda: llama2(prepend=True),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "wordlevel": wordlevel,
    "clip": clip,
}
FAST = {"gpt2", "llama3", "qwen2"}
LOSSLESS = FAST | {"unknown split"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(
    "aeint_ \n\t().='sSlL1é\u0301—東😀\r▁#/", max_size=120
)

# The library reads a whole word "</s>" of a text as the special token, and we never do.
PLAIN = TEXT.filter(lambda text: not SPECIAL.search(text))
SPECIAL = re.compile(r"<[a-z/|]+>|\[[A-Z]+\]")


def taken_over(hf: HF, folder: Path, **roles: str) -> Tokenizer:
    hf.save(str(folder / "given.json"))
    config = HuggingFaceTokenizerConfig(path=str(folder / "given.json"), **roles)
    return make_tokenizer(config, list)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[HF, Tokenizer]]:
    folder = tmp_path_factory.mktemp("given")
    made = {}
    for name, make in KINDS.items():
        hf = make()
        made[name] = (hf, taken_over(hf, folder))
        hf.encode_special_tokens = True  # as near to our rule as its own flag comes
    return made


def ids_of(hf: HF, text: str) -> list[int]:
    return hf.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=PLAIN)
def test_ids_are_those_of_the_library(pairs: Any, name: str, text: str) -> None:
    hf, ours = pairs[name]
    assert ours.encode(text).tolist() == ids_of(hf, text)


@pytest.mark.parametrize("name", KINDS)
def test_ids_of_whole_files_do_not_show_that_they_are_cut(pairs: Any, name: str) -> None:
    hf, ours = pairs[name]
    for text in UNSEEN:
        want = ids_of(hf, text)
        assert ours.encode(text).tolist() == want
        assert np.concatenate(list(ours.encode_parts(text))).tolist() == want
        assert np.concatenate(list(ours._by_engine(text))).tolist() == want


def test_byte_level_files_with_a_known_split_go_by_rank_and_others_do_not(pairs: Any) -> None:
    assert {name for name, (_, ours) in pairs.items() if ours._fast is not None} == FAST


def test_long_files_are_cut_where_that_is_proven_not_to_show(pairs: Any) -> None:
    uncut = {name for name, (_, ours) in pairs.items() if ours._cuts.pattern is None}
    assert uncut == {"unknown split", "clip"}


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=40, deadline=None)
@given(text=PLAIN)
def test_decoding_is_that_of_the_library(pairs: Any, name: str, text: str) -> None:
    hf, ours = pairs[name]
    text = text.lstrip(" ▁\t\n\r")  # of several spaces before a text, the library drops all
    ids = ids_of(hf, text)
    if "\ufffd" not in ours.decode(ids):
        assert ours.decode(ids) == hf.decode(ids, skip_special_tokens=True)
    if name in LOSSLESS - {"qwen2"}:
        assert ours.decode(ids) == text


@pytest.mark.parametrize("name", KINDS)
def test_a_continuation_is_the_bytes_of_its_tokens(pairs: Any, name: str) -> None:
    _, ours = pairs[name]
    ids = ours.encode("hello world the end of the world").tolist()
    for cut in range(1, len(ids)):
        rest = b"".join(ours.token_bytes(i) for i in ids[cut:])
        whole = b"".join(ours.token_bytes(i) for i in ids)
        assert whole == b"".join(ours.token_bytes(i) for i in ids[:cut]) + rest
        assert ours.decode(ids).encode().strip() == whole.strip()


def test_the_space_before_a_first_word_is_left_out_once(pairs: Any) -> None:
    for name in ("llama2", "llama2 without words", "unigram"):
        _, ours = pairs[name]
        ids = ours.encode("is not").tolist()
        assert ours.decode(ids) == "is not"
        assert b"".join(map(ours.token_bytes, ids)) == b" is not"
        assert ours.decode(ids * 2) == "is not is not"


@pytest.mark.parametrize("name", KINDS)
def test_text_that_spells_a_special_token_never_becomes_one(pairs: Any, name: str) -> None:
    _, ours = pairs[name]
    vocabulary = ours._vocabulary
    unknown = {i for i in vocabulary.special if vocabulary.contents[i] in ("<unk>", "[UNK]")}
    if name == "clip":
        unknown = {ours.eot_id}  # the file itself calls its end of text the unknown token
    forbidden = (vocabulary.special | {ours.eot_id, ours.mask_id, ours.pad_id}) - unknown
    for i in vocabulary.special:
        spelled = vocabulary.contents[i]
        for text in (spelled, f"a {spelled} b", f"a{spelled}b", spelled * 2):
            assert forbidden.isdisjoint(ours.encode(text).tolist()), text


def test_special_tokens_have_no_bytes_and_decode_to_nothing(pairs: Any) -> None:
    for _, ours in pairs.values():
        for i in (ours.eot_id, ours.mask_id, ours.pad_id):
            assert ours.token_bytes(i) == b""
        assert (
            ours.decode([ours.eot_id, *ours.encode("the").tolist(), ours.pad_id]).strip() == "the"
        )


def test_added_tokens_are_found_whole_and_have_the_bytes_of_their_text(pairs: Any) -> None:
    hf, ours = pairs["qwen2"]
    for text in ("a<tool>b", "e\u0301!x", "é!é!", "<to<tool>ol>", "x " * 9000 + "<tool>"):
        ids = ours.encode(text).tolist()
        assert ids == ids_of(hf, text)
    assert ours.token_bytes(hf.token_to_id("é!")) == "é!".encode()
    assert ours.token_bytes(hf.token_to_id("<tool>")) == b"<tool>"


def test_roles_are_found_by_their_usual_names_or_follow_the_vocabulary(pairs: Any) -> None:
    hf, ours = pairs["wordpiece"]
    named = [hf.token_to_id(t) for t in ("[SEP]", "[MASK]", "[PAD]")]
    assert [ours.eot_id, ours.mask_id, ours.pad_id] == named
    assert ours.vocab_size == hf.get_vocab_size()
    hf, ours = pairs["gpt2"]
    n = hf.get_vocab_size()
    assert (ours.eot_id, ours.mask_id, ours.pad_id) == (hf.token_to_id("<|endoftext|>"), n, n + 1)
    assert ours.vocab_size == n + 2
    hf, ours = pairs["unigram"]
    assert (ours.eot_id, ours.pad_id) == (hf.token_to_id("</s>"), hf.token_to_id("<pad>"))


def test_roles_can_be_named_and_a_name_that_is_missing_lists_those_there(tmp_path: Path) -> None:
    hf = llama2()
    ours = taken_over(hf, tmp_path, eot="<s>", pad="</s>")
    assert (ours.eot_id, ours.pad_id) == (hf.token_to_id("<s>"), hf.token_to_id("</s>"))
    with pytest.raises(DataError, match=r"given\.json: eot: there is no token '<end>'.*</s>, <s>"):
        taken_over(hf, tmp_path, eot="<end>")
    with pytest.raises(DataError, match="three different ids"):
        taken_over(hf, tmp_path, eot="<s>", pad="<s>")


def test_saving_and_loading_gives_the_same_tokenizer(pairs: Any, tmp_path: Path) -> None:
    for hf, ours in pairs.values():
        ours.save(tmp_path / "tokenizer.json")
        raw = (tmp_path / "tokenizer.json").read_bytes()
        pretty = json.dumps(json.loads(raw), indent=3).encode()
        for again in (
            load_tokenizer(tmp_path / "tokenizer.json"),
            load_tokenizer(pretty),
            pickle.loads(pickle.dumps(ours)),
        ):
            assert (again.kind, again.sha256) == ("huggingface", ours.sha256)
            assert again.roles == ours.roles
            assert again.encode(UNSEEN[-1]).tolist() == ids_of(hf, UNSEEN[-1])


def test_truncation_padding_and_templates_of_a_file_do_not_touch_a_text(tmp_path: Path) -> None:
    hf = byte_level()
    plain = ids_of(hf, UNSEEN[0])
    hf.enable_truncation(8)
    hf.enable_padding(length=50)
    hf.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $0", None, [("<|endoftext|>", 0)]
    )
    assert taken_over(hf, tmp_path).encode(UNSEEN[0]).tolist() == plain


def test_bytes_that_are_flagged_as_special_are_text_all_the_same(tmp_path: Path) -> None:
    ours, plain = taken_over(llama2(flagged=True), tmp_path), taken_over(llama2(), tmp_path)
    for text in ("a\x1f\u1234", "<0x41>"):
        assert ours.encode(text).tolist() == plain.encode(text).tolist()
        assert ours.decode(ours.encode(text)) == text


def test_threads_may_share_one(pairs: Any) -> None:
    for name in ("llama3", "llama2", "wordpiece"):
        hf, ours = pairs[name]
        fresh, got = pickle.loads(pickle.dumps(ours)), {}

        def work(i: int, tokenizer: Tokenizer = fresh, got: dict[int, Any] = got) -> None:
            got[i] = tokenizer.encode(UNSEEN[i % 2]).tolist()

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        want = [ids_of(hf, text) for text in UNSEEN[:2]]
        assert all(got[i] == want[i % 2] for i in range(4))


@pytest.mark.parametrize("name", ["llama3", "qwen2", "llama2", "unigram", "wordpiece", "wordlevel"])
@pytest.mark.parametrize("run", ["a", " ", "\0", "\n", "é", "<"])
def test_a_long_run_of_one_character_is_encoded(pairs: Any, name: str, run: str) -> None:
    _, ours = pairs[name]
    ids = ours.encode(run * 60_000)
    if name == "llama3":
        assert ours.decode(ids) == run * 60_000


def test_merges_that_rank_order_would_not_make_leave_the_encoding_to_the_library(
    tmp_path: Path,
) -> None:
    hf = byte_level()
    spec = json.loads(hf.to_str())
    model = spec["model"]
    for token in ("qz", "zj", "qzj", "jq", "qzjq"):
        model["vocab"][token] = len(model["vocab"])
    # "qzjq" is made of qz + jq, but by rank zj comes before jq
    model["merges"] += [["q", "z"], ["z", "j"], ["j", "q"], ["qz", "jq"], ["qz", "j"]]
    hf = HF.from_str(json.dumps(spec))
    ours = taken_over(hf, tmp_path)
    for text in ("qzj", "qzjq", "qzjqzjq zjq qzqz", "jqzj"):
        assert ours.encode(text).tolist() == ids_of(hf, text)


def test_ids_that_are_not_in_the_order_of_ranks_are_mapped(tmp_path: Path) -> None:
    hf = byte_level()
    spec = json.loads(hf.to_str())
    vocab = spec["model"]["vocab"]
    last = len(vocab) - 1
    special = {t["content"] for t in spec["added_tokens"]}
    plain = [c for c in vocab if c not in special]
    numbers = [vocab[c] for c in plain]
    vocab.update(zip(plain, reversed(numbers), strict=True))
    hf = HF.from_str(json.dumps(spec))
    ours = taken_over(hf, tmp_path)
    assert ours._fast is not None
    assert max(numbers) == last
    for text in UNSEEN:
        assert ours.encode(text).tolist() == ids_of(hf, text)


def changed(**parts: Any) -> str:
    spec = json.loads(byte_level(vocab_size=300).to_str())
    for key, value in parts.items():
        spec[key] = {**spec[key], **value} if isinstance(spec[key], dict) else value
    return json.dumps(spec)


BAD = {
    "no model": lambda: "{}",
    "not a tokenizer.json of Hugging Face": lambda: changed(model={"type": "Magic"}),
    "dropout is 0.5": lambda: changed(model={"dropout": 0.5}),
    "not JSON": lambda: "{",
    "CTC can't be said of single tokens": lambda: changed(
        decoder={"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    ),
    "none of the usual names": lambda: changed(
        added_tokens=[], model={"vocab": {"a": 0, "b": 1}, "merges": []}
    ),
    "are not 0 to 1, each for one token": lambda: changed(
        added_tokens=[], model={"vocab": {"a": 0, "b": 2}, "merges": []}
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_file_that_can_not_be_used_is_refused_by_name(tmp_path: Path, message: str) -> None:
    path = tmp_path / "given.json"
    path.write_text(BAD[message]())
    with pytest.raises(DataError, match=rf"given\.json: .*{message}"):
        make_tokenizer(HuggingFaceTokenizerConfig(path=str(path)), list)


def test_a_file_of_another_kind_is_refused_with_the_kinds_that_there_are(tmp_path: Path) -> None:
    (tmp_path / "ranks.tiktoken").write_text("IQ== 0\nIg== 1\n")
    said = (
        r"ranks.tiktoken: not JSON; give the tokenizer.json of a Hugging Face model, or .*tiktoken"
    )
    with pytest.raises(DataError, match=said):
        make_tokenizer(HuggingFaceTokenizerConfig(path=str(tmp_path / "ranks.tiktoken")), list)


def test_a_decoder_whose_text_is_not_made_of_tokens_is_refused(tmp_path: Path) -> None:
    hf = byte_level(vocab_size=300)
    hf.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("e", "x")])
    with pytest.raises(DataError, match="Replace can't be said of single tokens"):
        taken_over(hf, tmp_path)
    hf.decoder = decoders.Metaspace()  # wrong for it: text would show bytes as letters
    hf.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.decoder = None
    with pytest.raises(DataError, match="decoder: it has none"):
        taken_over(hf, tmp_path)


def test_a_text_that_must_be_whole_and_is_too_long_for_the_memory_is_refused(
    pairs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xtdist.data.tokenizer.hf_cuts.MOST_CHARS", 1000)
    _, ours = pairs["unigram"]
    assert isinstance(ours, HuggingFaceTokenizer)
    with pytest.raises(DataError, match="split the document"):
        ours.encode("a" * 5000)
