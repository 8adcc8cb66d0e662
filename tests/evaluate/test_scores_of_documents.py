"""A model that was trained on documents kept apart is scored on documents kept apart."""

from __future__ import annotations

import math

import pytest
import torch

from xtdist.checkpoint import load_weights
from xtdist.data import TokenDataset
from xtdist.data.windows import make_windows
from xtdist.evaluate.perplexity import first_token_bytes
from xtdist.evaluate.report import evaluate

LENGTH = 24


def alone(folder, parts):
    """Nats of each part but its first token, by the full softmax."""
    model, nats = load_weights(folder).model, 0.0
    for part in parts:
        if len(part) > 1:
            x = torch.from_numpy(part.astype("int64"))[None]
            with torch.no_grad():
                log_probs = model(x[:, :-1]).double().log_softmax(-1)[0]
            nats -= float(log_probs[torch.arange(len(part) - 1), x[0, 1:]].sum())
    return nats


def masked_parts(data):
    """Documents, cut where a window of the split ends; the next one starts with its last token."""
    parts, at = [], 0
    for document in data.documents():
        start = 0
        while start < len(document) - 1:
            stop = min(start + LENGTH - (at + start) % LENGTH, len(document) - 1)
            parts.append(document[start : stop + 1])
            start = stop
        at += len(document)
    return parts


def packed_parts(data):
    windows, documents = make_windows(data, LENGTH, "packed"), list(data.documents())
    pieces = [piece for row in range(windows.count) for piece in windows.trace(row)]
    return [documents[piece.document][piece.start : piece.stop] for piece in pieces]


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_the_score_is_that_of_each_document_alone(save_model, dataset, tmp_path, mode):
    folder, valid = save_model(documents=mode), TokenDataset.open(dataset, "valid")
    saved = tmp_path / "report.json"
    report = evaluate(folder, dataset, saved=saved)
    parts = {"masked": masked_parts, "packed": packed_parts}[mode](valid)
    assert sum(len(part) - 1 for part in parts) == valid.total_tokens - valid.num_documents
    assert report.model.tokens == valid.total_tokens - valid.num_documents
    assert report.model.nats == pytest.approx(alone(folder, parts), rel=1e-5)
    assert report.documents == mode
    joined = evaluate(save_model(), dataset, saved=saved)
    assert joined.documents == "joined"
    assert joined.model.nats != report.model.nats


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_bits_per_byte_count_the_bytes_of_the_targets(save_model, dataset, bpe_dataset, mode):
    """A document's first token costs nothing, so its bytes don't count either."""
    valid = TokenDataset.open(dataset, "valid")
    score = evaluate(save_model(silent=True, documents=mode), dataset).model
    spelled = [valid.tokenizer.decode_bytes(d[1:]) for d in valid.documents()]
    assert score.text_bytes == sum(map(len, spelled)) < valid.text_bytes
    assert score.loss == pytest.approx(math.log(259), rel=1e-5)
    pairs = TokenDataset.open(bpe_dataset, "train")
    firsts = [pairs.tokenizer.decode_bytes(d[:1]) for d in pairs.documents()]
    assert first_token_bytes(pairs) == sum(map(len, firsts)) >= pairs.num_documents


@pytest.mark.parametrize("mode", ["masked", "packed"])
def test_masked_prediction_counts_real_tokens(save_model, dataset, mode):
    valid = TokenDataset.open(dataset, "valid")
    score = evaluate(save_model("nonautoregressive", silent=True, documents=mode), dataset).model
    assert score.loss == pytest.approx(math.log(259), rel=1e-5)
    assert score.text_bytes == valid.text_bytes
    rows = make_windows(valid, LENGTH, mode).count
    assert abs(score.tokens - valid.total_tokens) <= rows
