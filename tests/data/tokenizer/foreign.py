"""Small tokenizers of other libraries, trained here: nothing is downloaded."""

from __future__ import annotations

import io
import json
import sysconfig
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from tokenizers import Tokenizer as HF

STDLIB = Path(sysconfig.get_path("stdlib"))
LINES = ["Grüße aus 東京, naïve café — 你好，世界！ हिन्दी 🎉", "It's 3.14, isn't it?"] * 20
TEXTS = [(STDLIB / f"{n}.py").read_text("utf-8") for n in ("textwrap", "os")] + LINES
UNSEEN = [(STDLIB / f"{n}.py").read_text("utf-8") for n in ("sched", "shlex")] + LINES[:2]

# As the models' own files write them, not as this package does.
SPLITS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
LLAMA_SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def byte_level(
    *,
    split: str | None = None,
    vocab_size: int = 700,
    nfc: bool = False,
    added: tuple[str, ...] = (),
) -> HF:
    """As GPT-2 is, or with another split into words before."""
    made = HF(models.BPE())
    made.normalizer = normalizers.NFC() if nfc else None
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    made.pre_tokenizer = last
    if split is not None:
        steps = [pre_tokenizers.Split(Regex(split), "isolated"), last]
        made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>"],
    )
    made.train_from_iterator(TEXTS, trainer)
    made.add_tokens([AddedToken(a, special=False) for a in added])
    return made


def llama2(*, prepend: bool = False, flagged: bool = False) -> HF:
    """BPE with ▁ for spaces and bytes for what it lacks; ``prepend``: as the first ones were, with
    no split into words at all; ``flagged``: its bytes are called special."""
    made = HF(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=900, show_progress=False, special_tokens=LLAMA_SPECIAL + BYTES
    )
    made.train_from_iterator(TEXTS, trainer)
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    if prepend:
        made.pre_tokenizer = None
        made.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    spec = json.loads(made.to_str())
    if not flagged:
        spec["added_tokens"] = [t for t in spec["added_tokens"] if t["content"] not in BYTES]
    return HF.from_str(json.dumps(spec))


def unigram() -> HF:
    """As T5 is."""
    made = HF(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=500,
        show_progress=False,
        special_tokens=["<unk>", "</s>", "<pad>"],
        unk_token="<unk>",
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def wordpiece() -> HF:
    """As BERT is."""
    made = HF(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, show_progress=False, special_tokens=special)
    made.train_from_iterator(TEXTS, trainer)
    return made


def wordlevel() -> HF:
    """Whole words; no decoder: a space between words."""
    made = HF(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(
        vocab_size=600, show_progress=False, special_tokens=["[UNK]", "</s>"]
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def clip() -> HF:
    """Byte-level with a mark at the end of words."""
    made = HF(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        show_progress=False,
        end_of_word_suffix="</w>",
        special_tokens=["<|endoftext|>"],
    )
    made.train_from_iterator(["hello world again", "the end of the world"] * 3, trainer)
    return made


def sentencepiece_model(**options: Any) -> bytes:
    """Content of a ``.model`` file."""
    import sentencepiece

    out = io.BytesIO()
    lines = [line for text in TEXTS for line in text.split("\n")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines[:800] + LINES),
        model_writer=out,
        vocab_size=500,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return out.getvalue()
