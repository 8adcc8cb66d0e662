"""Tokenizers as Hugging Face's folders have them, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xtdist.checkpoint.bounds import MOST_CONFIG_BYTES, read_bounded
from xtdist.checkpoint.chat_template import CHAT_TEMPLATE
from xtdist.config import CheckpointError, DataError
from xtdist.data import Tokenizer, load_tokenizer
from xtdist.data.tokenizer import TOKENIZER_FILE, HuggingFaceTokenizerConfig
from xtdist.data.tokenizer.huggingface import HuggingFaceTokenizer
from xtdist.data.tokenizer.load import make_tokenizer
from xtdist.model.config import ModelConfig

TOKENIZER_CONFIG = "tokenizer_config.json"
Tree = dict[str, Any]


def blocking_tokenizer(tokenizer: Tokenizer) -> str | None:
    """Why a tokenizer has no ``tokenizer.json`` of Hugging Face's, or None."""
    if tokenizer.kind in ("byte", "bpe") or isinstance(tokenizer, HuggingFaceTokenizer):
        return None
    return (
        f"tokenizer: got kind {tokenizer.kind}, must be byte, bpe or huggingface: there is no "
        "tokenizer.json of it that is known to encode alike; prepare the data with the model's "
        "tokenizer.json (tokenizer.kind=huggingface)"
    )


def their_text(tokenizer: Tokenizer) -> str:
    """The ``tokenizer.json``: the very file that a tokenizer was taken over from."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.text
    if tokenizer.source is not None:
        return tokenizer.source
    return json.dumps(tokenizer.spec, ensure_ascii=False, indent=2)


def write_tokenizer(
    folder: Path, tokenizer: Tokenizer, config: ModelConfig, *, chat: str | None
) -> Tree:
    """Write its files; returns what the model's config says of its ids.

    With a chat template, which spells special tokens, a text that spells them gives their ids
    there; without one it is plain text, as here.
    """
    text = their_text(tokenizer)
    (folder / TOKENIZER_FILE).write_bytes(text.encode())
    names = _names(json.loads(text), tokenizer)
    tree: Tree = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_seq_len,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": chat is None,
    }
    eot = names.get(tokenizer.eot_id)
    if eot is not None:
        unknown = json.loads(text)["model"].get("unk_token")
        tree |= {"eos_token": eot, "bos_token": eot, "unk_token": unknown or eot}  # as GPT-2's
    if tokenizer.pad_id in names:
        tree["pad_token"] = names[tokenizer.pad_id]
    if tokenizer.mask_id in names:
        tree["mask_token"] = names[tokenizer.mask_id]
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
    if chat is not None:
        (folder / CHAT_TEMPLATE).write_text(chat)
    ids: Tree = {"bos_token_id": tokenizer.eot_id, "eos_token_id": tokenizer.eot_id}
    if tokenizer.pad_id in names and tokenizer.pad_id < config.num_tokens:
        ids["pad_token_id"] = tokenizer.pad_id
    return ids


def _names(spec: Mapping[str, Any], tokenizer: Tokenizer) -> dict[int, str]:
    """The texts of the ids that have a role and stand in the file."""
    roles = {tokenizer.eot_id, tokenizer.mask_id, tokenizer.pad_id}
    vocab = spec["model"].get("vocab", {})
    pairs = vocab.items() if isinstance(vocab, dict) else ((p[0], i) for i, p in enumerate(vocab))
    names = {i: text for text, i in pairs if i in roles}
    return names | {t["id"]: t["content"] for t in spec["added_tokens"] if t["id"] in roles}


def read_tokenizer(folder: Path, config: Mapping[str, Any], roles: Mapping[str, str]) -> Tokenizer:
    """Ours, from a folder of theirs. ``config``: its config.json; ``roles``: names of the tokens
    eot, mask and pad, where they are not the usual ones or those that the config says.

    Raises:
        CheckpointError: there is none.
        DataError: it can't be used.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: no {TOKENIZER_FILE} there; write one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    raw = read_bounded(path, 256 * 2**20)
    end = _end_of(config)
    if not roles:
        try:
            ours = load_tokenizer(raw, name=str(path))
        except DataError:
            pass  # not ours: it is taken over
        else:
            if end not in (None, ours.eot_id):
                raise CheckpointError(
                    f"{folder / 'config.json'}: eos_token_id is {end!r:.80}, and in "
                    f"{TOKENIZER_FILE} {ours.eot_id} ends a text; correct one of them"
                )
            return ours
    try:
        spec = json.loads(raw)
        names = {t["id"]: t["content"] for t in spec["added_tokens"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{path}: not a tokenizer.json of Hugging Face") from None
    asked: dict[str, str] = {}
    if end is not None and "eot" not in roles:
        if end not in names:
            raise CheckpointError(
                f"{folder / 'config.json'}: eos_token_id is {end!r:.80}, no special token of "
                f"{TOKENIZER_FILE}; correct it, or name the token that ends a text: --eot TOKEN"
            )
        asked["eot"] = names[end]
    noted = config.get("xtdist")
    noted = noted.get("roles") if isinstance(noted, dict) else None
    if isinstance(noted, dict):
        asked |= {
            r: n for r, n in noted.items() if r in ("eot", "mask", "pad") and n in names.values()
        }
    asked |= roles
    chosen = HuggingFaceTokenizerConfig(
        path=str(path), eot=asked.get("eot"), mask=asked.get("mask"), pad=asked.get("pad")
    )
    return make_tokenizer(chosen, lambda: ())


def notes_on(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """What a model's prompts and ends are there, and are not here."""
    notes = []
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        notes.append(f"eos_token_id: {ends[0]} ends a text here, not also {ends[1:]}")
    spec = json.loads((folder / TOKENIZER_FILE).read_bytes())
    last = spec.get("post_processor") or {}
    if any(p.get("type") == "TemplateProcessing" for p in (last, *last.get("processors", ()))):
        notes.append(
            f"{TOKENIZER_FILE}: its post_processor puts special tokens around a text; here a "
            "prompt is its own tokens alone: write them out, or use a chat template"
        )
    return notes


def _end_of(config: Mapping[str, Any]) -> Any:
    """``eos_token_id``; of several the first."""
    ends = config.get("eos_token_id")
    if isinstance(ends, list) and ends:
        ends = ends[0]
    return None if ends is None else ends if type(ends) is int else repr(ends)


def note_roles(tokenizer: Tokenizer) -> Tree:
    """What ``read_tokenizer`` finds again: the names of the tokens that have a role."""
    names = _names(json.loads(their_text(tokenizer)), tokenizer)
    ids = {"eot": tokenizer.eot_id, "mask": tokenizer.mask_id, "pad": tokenizer.pad_id}
    return {role: names[i] for role, i in ids.items() if i in names}


def read_chat_template(folder: Path, tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """A folder's chat template, and why it is not taken over, where it is not.

    What a template of ours writes is plain text, but for ``bos_token`` and ``eos_token``; one that
    spells other special tokens would not be understood by its model.
    """
    text: Any = None
    if (folder / CHAT_TEMPLATE).is_file():
        text = read_bounded(folder / CHAT_TEMPLATE, MOST_CONFIG_BYTES).decode(errors="replace")
    elif (folder / TOKENIZER_CONFIG).is_file():
        try:
            tree = json.loads(read_bounded(folder / TOKENIZER_CONFIG, MOST_CONFIG_BYTES))
            text = tree.get("chat_template") if isinstance(tree, dict) else None
        except (ValueError, RecursionError):
            raise CheckpointError(f"{folder / TOKENIZER_CONFIG}: not JSON") from None
    if not isinstance(text, str):
        return None, None
    special = [n for n in special_names(tokenizer) if n in text]
    if special:
        return None, (
            f"the chat template spells the special token {special[0]}, which would be plain text "
            "here; write one with bos_token and eos_token alone and give it where it is served"
        )
    return text, None


def special_names(tokenizer: Tokenizer) -> list[str]:
    """The texts of special tokens."""
    spec = json.loads(their_text(tokenizer))
    return [t["content"] for t in spec["added_tokens"] if t["special"]]


def check_fits(tokenizer: Tokenizer, num_tokens: int, *, where: str) -> None:
    """Raises CheckpointError for a tokenizer with ids that the model lacks."""
    if tokenizer.required_ids > num_tokens:
        raise CheckpointError(
            f"{where}: its tokenizer has {tokenizer.required_ids} ids and the model {num_tokens}; "
            "they do not belong together"
        )
