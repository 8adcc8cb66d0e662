"""A model's score against its full softmax, and reports that are kept."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch

from xtdist.checkpoint import load_weights
from xtdist.config import ConfigError, DataError, ResourceError
from xtdist.data import TokenDataset
from xtdist.evaluate import report as module
from xtdist.evaluate.perplexity import Score
from xtdist.evaluate.report import evaluate


def direct_nats(folder, data, seq_len):
    """Window by window, every token but the first given those before it in its window."""
    model = load_weights(folder).model
    tokens = torch.from_numpy(data.read(0, data.total_tokens).astype("int64"))
    nats, targets = 0.0, []
    for start in range(0, len(tokens) - 1, seq_len):
        window = tokens[start : start + seq_len + 1]
        with torch.no_grad():
            log_probs = model(window[None, :-1]).double().log_softmax(-1)[0]
        nats -= float(log_probs[torch.arange(len(window) - 1), window[1:]].sum())
        targets += range(start + 1, start + len(window))
    assert targets == list(range(1, len(tokens)))
    return nats


@pytest.mark.parametrize("seq_len", [None, 7, 24])
def test_the_score_is_that_of_the_full_softmax(save_model, dataset, seq_len):
    folder, valid = save_model(), TokenDataset.open(dataset, "valid")
    assert (valid.total_tokens - 1) % 24, "there should be a rest"
    report = evaluate(folder, dataset, seq_len=seq_len)
    assert report.model.nats == pytest.approx(direct_nats(folder, valid, seq_len or 24), rel=1e-5)
    assert report.model.tokens == valid.total_tokens - 1 == report.bigram.tokens
    assert report.model.text_bytes == valid.text_bytes == report.bigram.text_bytes
    assert (report.seq_len, report.step) == (seq_len or 24, 7)


@pytest.mark.parametrize("kind", ["autoregressive", "nonautoregressive"])
def test_a_silent_model_scores_the_log_of_the_vocabulary(save_model, dataset, kind):
    """Also as an upper bound by masking, whatever was masked."""
    report = evaluate(save_model(kind, silent=True), dataset)
    assert report.model.loss == pytest.approx(math.log(259), rel=1e-5)
    assert report.model.tokens == TokenDataset.open(dataset, "valid").total_tokens - 1
    assert ("(upper bound)" in report.table()) == (kind == "nonautoregressive")


def test_a_score_in_other_units():
    score = Score(nats=math.log(2) * 100, tokens=50, text_bytes=200)
    assert score.loss == pytest.approx(2 * math.log(2))
    assert score.perplexity == pytest.approx(4)
    assert score.bits_per_byte == pytest.approx(0.5)


def test_the_table_shows_the_numbers(save_model, dataset):
    report = evaluate(save_model(), dataset)
    table = report.table()
    assert f"{report.model.tokens:,} tokens" in table
    rows = {line.split("│")[1].strip(): line for line in table.splitlines() if "│" in line}
    for name, score in (("model at step 7", report.model), ("bigram", report.bigram)):
        cells = [c.strip() for c in rows[name].split("│")]
        assert cells[2:5] == [
            f"{score.loss:.3f}",
            f"{score.perplexity:.1f}",
            f"{score.bits_per_byte:.3f}",
        ]
    assert f"{report.xz_bits_per_byte:.3f}" in rows["xz -9e"]


@pytest.fixture
def count(monkeypatch):
    """How often a model was really scored."""
    calls, real = [], module.evaluate_model

    def counted(*args, **options):
        calls.append(options["seq_len"])
        return real(*args, **options)

    monkeypatch.setattr(module, "evaluate_model", counted)
    return calls


def test_a_kept_report_is_reused_only_for_the_same_thing(
    save_model, dataset, other_dataset, tmp_path, count, capsys
):
    saved, folder, other = tmp_path / "report.json", save_model(), save_model(seed=1)
    first = evaluate(folder, dataset, saved=saved)
    assert evaluate(folder, dataset, saved=saved) == first
    assert f"scored before, nothing to do: {saved}" in capsys.readouterr().out
    assert len(count) == 1
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert evaluate(copy, dataset, saved=saved) == first
    assert len(count) == 1
    changes = [
        (other, dataset, None),
        (folder, dataset, None),
        (folder, dataset, 8),
        (folder, other_dataset, 8),
    ]
    reports = [first]
    for weights, data, seq_len in changes:
        reports.append(evaluate(weights, data, seq_len=seq_len, saved=saved))
        assert json.loads(saved.read_text())["seq_len"] == (seq_len or 24)
    assert len(count) == 5
    assert all(a.model.nats != b.model.nats for a, b in pairwise(reports))
    assert reports[2] == first


@pytest.mark.parametrize("content", ["", "{", "[]", '{"weights": 1}'])
def test_a_kept_report_that_is_broken_is_made_again(save_model, dataset, tmp_path, content):
    saved = tmp_path / "report.json"
    saved.write_text(content)
    made = evaluate(save_model(), dataset, saved=saved)
    assert evaluate(save_model(), dataset, saved=saved) == made


def test_another_tokenizer_is_refused(save_model, bpe_dataset, tmp_path, count):
    saved = tmp_path / "report.json"
    with pytest.raises(DataError, match="is not the model's"):
        evaluate(save_model(), bpe_dataset, saved=saved)
    assert not count
    assert not saved.exists()


@pytest.mark.parametrize("seq_len", [0, -1, 25])
def test_a_window_that_the_model_can_not_take_is_refused(save_model, dataset, seq_len):
    with pytest.raises(ConfigError, match=f"--seq-len: got {seq_len}; this model takes 1 to 24"):
        evaluate(save_model(), dataset, seq_len=seq_len)


def test_a_report_that_can_not_be_kept_is_said_before_the_work(
    save_model, dataset, tmp_path, count
):
    (tmp_path / "file").write_text("")
    for saved in (tmp_path / "file" / "report.json", tmp_path):
        with pytest.raises(ResourceError, match="--json"):
            evaluate(save_model(), dataset, saved=saved)
    assert not count


def test_a_report_makes_its_folder(save_model, dataset, tmp_path):
    saved = tmp_path / "new" / "folder" / "report.json"
    evaluate(save_model(), dataset, saved=saved)
    assert json.loads(saved.read_text())["step"] == 7
