"""Small datasets made document by document, without the builder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from xtdist.data import byte_tokenizer
from xtdist.data.manifest import BuildInfo, Manifest, ShardInfo, TokenizerInfo, canonical_text
from xtdist.data.shards import ShardWriter

EOT = byte_tokenizer().eot_id


def doc_id(split: str, number: int) -> bytes:
    return hashlib.sha256(f"{split} {number}".encode()).digest()[:16]


def random_documents(lengths: list[int], *, seed: int = 0) -> list[np.ndarray]:
    """Random bytes as tokens, each document ended by end-of-text (counted in its length)."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(0, 256, n - 1), EOT).astype(np.uint32) for n in lengths]


def write_shards(
    folder: Path, split: str, documents: list[np.ndarray], *, shard_tokens: int, dtype: str
) -> tuple[ShardInfo, ...]:
    writer = ShardWriter(
        folder,
        split,
        dtype=dtype,
        shard_tokens=shard_tokens,
        tokenizer_sha256=byte_tokenizer().sha256,
    )
    for i, tokens in enumerate(documents):
        writer.add(tokens, text_bytes=max(1, len(tokens) - 1), doc_id=doc_id(split, i))
    return writer.close()


def write_dataset(
    folder: Path, *, shard_tokens: int = 100, dtype: str = "uint16", **splits: list[np.ndarray]
) -> Path:
    """A whole dataset of byte tokens with the given documents in each split."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_tokenizer()
    tokenizer.save(folder / "tokenizer.json")
    shards = {
        split: write_shards(folder, split, documents, shard_tokens=shard_tokens, dtype=dtype)
        for split, documents in splits.items()
    }
    every = [info for infos in shards.values() for info in infos]
    manifest = Manifest(
        dtype="uint32" if dtype == "uint32" else "uint16",
        vocab_size=tokenizer.vocab_size,
        eot_id=tokenizer.eot_id,
        tokenizer=TokenizerInfo(kind=tokenizer.kind, sha256=tokenizer.sha256),
        build=BuildInfo(
            settings_sha256="0" * 64,
            inputs_sha256="0" * 64,
            documents=sum(s.docs for s in every),
            text_bytes=sum(s.text_bytes for s in every),
        ),
        splits=shards,
    )
    (folder / "manifest.json").write_text(canonical_text(manifest))
    return folder


def forge_manifest(folder: Path, tree: dict[str, object]) -> None:
    """Write a manifest as a forger would: in the canonical form, with the id of its content."""
    content = {k: v for k, v in tree.items() if k != "dataset_id"}
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["dataset_id"] = hashlib.sha256(plain.encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(content, sort_keys=True, indent=1) + "\n")


def forge_shard(folder: Path, split: str, number: int, raw: bytes, **fields: object) -> None:
    """Replace a shard and make the manifest agree with it."""
    tree = json.loads((folder / "manifest.json").read_text())
    info = tree["splits"][split][number]
    (folder / info["path"]).write_bytes(raw)
    info.update(bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest(), **fields)
    forge_manifest(folder, tree)
