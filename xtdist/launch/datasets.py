"""The datasets of a run: where they are, and what can be known to be wrong with them before a
worker starts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from xtdist.config import ConfigError, DataError
from xtdist.data import Order, TokenDataset, Tokenizer, View
from xtdist.data.storage.location import is_remote
from xtdist.train.spec import RunDataConfig, RunSpec

SPLITS = ("train", "valid")


@dataclass(frozen=True)
class Corpus:
    """One dataset of a run; counts are of its training split."""

    name: str
    path: str
    dataset_id: str
    tokens: int
    documents: int


def local_path(key: str, value: str) -> Path:
    """``value`` as an absolute path, ``~`` expanded.

    Raises:
        ConfigError: it is a URL, or no name that a file system takes.
    """
    if "://" in value:
        raise ConfigError(
            f"{key}: got {value!r}; give a folder that all machines of the run see (a mounted "
            "bucket or shared disk)"
        )
    try:
        path = Path(value).expanduser().resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise ConfigError(f"{key}: got {value[:80]!r}: {why}; give another folder") from None
    return path


def data_paths(data: RunDataConfig) -> dict[str, str]:
    """Where the datasets are by the keys of the config: absolute, because workers run in another
    folder; those in an object store as they are given."""
    given = {"data.path": data.path} if data.path is not None else {}
    given |= {f"data.corpora.{name}.path": c.path for name, c in data.corpora.items()}
    return {k: p if is_remote(p) else str(local_path(k, p)) for k, p in given.items()}


def with_absolute_paths(data: RunDataConfig) -> RunDataConfig:
    """The same datasets by absolute paths."""
    paths = data_paths(data)
    if data.path is not None:
        return dataclasses.replace(data, path=paths["data.path"])
    corpora = {
        name: dataclasses.replace(corpus, path=paths[f"data.corpora.{name}.path"])
        for name, corpus in data.corpora.items()
    }
    return dataclasses.replace(data, corpora=corpora)


def check_datasets(data: RunDataConfig) -> Tokenizer:
    """The tokenizer of all datasets, which have both splits and at least one sample in each.

    Raises:
        DataError: a dataset that is not all there, or too short, or made with another tokenizer
            than the first one.
    """
    opened: dict[str, Tokenizer] = {}
    for name, path in data.sources.items():
        for split in SPLITS:
            dataset = TokenDataset.open(path, split, "size", data.cache)
            _check_length(dataset, path, data)
        opened[name] = dataset.tokenizer
    (first, tokenizer), *others = opened.items()
    for name, other in others:
        if other.sha256 != tokenizer.sha256:
            raise DataError(
                f"data.corpora.{name}.path: {data.sources[name]} was made with another tokenizer "
                f"({other.sha256[:12]}…, vocabulary {other.vocab_size}) than "
                f"data.corpora.{first}.path, {data.sources[first]} ({tokenizer.sha256[:12]}…, "
                f"{tokenizer.vocab_size}); prepare all of a mixture with one tokenizer"
            )
    return tokenizer


def _check_length(dataset: TokenDataset, path: str, data: RunDataConfig) -> None:
    packed = data.documents == "packed"
    least = 2 if packed else data.seq_len + 1
    if dataset.total_tokens < least:
        what = "two tokens" if packed else f"one window of data.seq_len + 1 = {least}"
        raise DataError(
            f"{path}: its {dataset.split} split has {dataset.total_tokens} tokens, not {what}"
        )


def known_data(spec: RunSpec) -> View:
    """What a run reads, as far as its manifests say it: enough for its identity. Its windows are
    left out, because a plan of packed documents reads all of the data."""
    data = spec.data
    datasets = {
        name: TokenDataset.open(path, "train", "size", data.cache)
        for name, path in data.sources.items()
    }
    order = Order(
        config=data,
        counts=dict.fromkeys(datasets, 1),
        seq_len=data.seq_len,
        global_batch=spec.global_batch,
        warmup=spec.batch_warmup,
        seed=spec.seed,
    )
    return View(config=data, split="train", datasets=datasets, windows=(), order=order)


def corpora_of(view: View) -> tuple[Corpus, ...]:
    """The datasets in the order of the config."""
    return tuple(
        Corpus(
            name=name,
            path=view.config.sources[name],
            dataset_id=dataset.dataset_id,
            tokens=dataset.total_tokens,
            documents=dataset.num_documents,
        )
        for name, dataset in view.datasets.items()
    )


def data_lines(data: RunDataConfig, corpora: tuple[Corpus, ...]) -> list[str]:
    """What a run reads, in words."""
    if not data.corpora:
        (only,) = corpora
        lines = [f"{only.path} (id {only.dataset_id[:12]})"]
    else:
        shares = _shares({name: c.weight for name, c in data.corpora.items()})
        lines = [
            f"{shares[c.name]:>6} {c.name}: {c.tokens:,} tokens in {c.path} "
            f"(id {c.dataset_id[:12]})"
            for c in corpora
        ]
        for phase in data.phases:
            parts = ", ".join(f"{name} {s}" for name, s in _shares(phase.weights).items())
            lines.append(f"from step {phase.from_step:,} of the data: {parts}")
    if data.documents != "joined":
        lines.append(f"documents {data.documents}")
    if data.skip:
        ranges = ", ".join(f"{first:,} to {stop - 1:,}" for first, stop in data.skip)
        lines.append(f"steps of the data that are left out: {ranges}")
    return [f"{'data' if not i else '':<8} {line}" for i, line in enumerate(lines)]


def _shares(weights: dict[str, float]) -> dict[str, str]:
    total = sum(weights.values())
    return {name: f"{100 * weight / total:.4g} %" for name, weight in weights.items()}
