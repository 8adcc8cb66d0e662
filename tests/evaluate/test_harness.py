"""lm-evaluation-harness: our engine beside its own model class on the exported folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))
from hf_folders import write_weights

from xtdist.checkpoint import load_weights
from xtdist.checkpoint.huggingface import export
from xtdist.cli.main import main
from xtdist.config import ConfigError
from xtdist.data import train_bpe
from xtdist.evaluate.harness import HarnessLM
from xtdist.evaluate.local_tasks import local_tasks
from xtdist.evaluate.tasks import run_tasks

TASK = Path(__file__).parents[2] / "jobs/tasks/next_word.yaml"
WORDS = "The sun rises in the east. Water freezes and turns into ice. A dog barks at night. " * 20


class Asked:
    """A request of the harness: only its arguments are read."""

    def __init__(self, *args: Any) -> None:
        self.args = args


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, HarnessLM, Any]:
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("harness")
    weights = write_weights(folder / "ours", tokenizer=train_bpe([WORDS], 300))
    export(weights, folder / "hf")
    theirs = HFLM(pretrained=str(folder / "hf"), device="cpu", batch_size=3, dtype="float32")
    return weights, HarnessLM(load_weights(weights)), theirs


def test_likelihoods_are_those_of_the_harness_own_model(both: tuple[Path, Any, Any]) -> None:
    _, ours, theirs = both
    assert ours.max_length == theirs.max_length
    pairs = [
        ("The sun rises in the", " east"),
        ("The sun ", "rises"),
        ("", "Water freezes"),
        (WORDS[:400], " and what comes at its end"),
        ("A dog", " \U0001f389 naïve"),
    ]
    requests = [Asked(*pair) for pair in pairs]
    found, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([w[0] for w in wanted], rel=1e-5)
    assert [f[1] for f in found] == [w[1] for w in wanted]
    greedy = ours.generate_until([Asked("The sun", {"max_gen_toks": 3})])[0]
    assert ours.loglikelihood([Asked("The sun", greedy)])[0][0] < 0


def test_rolling_likelihoods_of_texts_longer_than_the_model_are_the_same(
    both: tuple[Path, Any, Any],
) -> None:
    _, ours, theirs = both
    requests = [Asked(WORDS[:600]), Asked("short"), Asked(WORDS[7:200])]
    found = ours.loglikelihood_rolling(requests)
    wanted = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_generation_ends_where_theirs_does(both: tuple[Path, Any, Any]) -> None:
    _, ours, theirs = both
    free = ours.generate_until([Asked("The sun", {"until": [], "max_gen_toks": 20})])[0]
    stop = free[4:7]
    asked = [
        Asked("The sun", {"until": [stop], "max_gen_toks": 20}),
        Asked("Water freezes", {"until": ["."], "max_gen_toks": 9}),
        Asked(WORDS[:500], {"until": [], "max_gen_toks": 9}),
    ]
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)
    assert found[0] == free[: free.index(stop)]


@pytest.mark.slow
def test_a_local_task_gives_the_same_numbers_without_a_network(
    both: tuple[Path, Any, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    weights, _, theirs = both
    saved = tmp_path / "numbers.json"
    words = ["evaluate", str(weights), "--tasks", str(TASK), "--json", str(saved)]
    assert main(words) == 0
    assert "next_word" in capsys.readouterr().out
    found = json.loads(saved.read_text())
    assert found["documents"] == {"next_word": 8}
    wanted = lm_eval.simple_evaluate(
        model=theirs,
        tasks=local_tasks(TASK),
        task_manager=TaskManager(include_defaults=False),
        log_samples=False,
    )["results"]["next_word"]
    assert found["results"]["next_word"]["acc"] == wanted["acc,none"]
    assert found["results"]["next_word"]["acc stderr"] == wanted["acc_stderr,none"]
    limited = run_tasks(weights, [str(TASK.parent)], limit=3)
    assert limited["documents"] == {"next_word": 3}


def test_what_can_not_be_is_refused_with_the_way_out(
    both: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, ours, _ = both
    with pytest.raises(ConfigError, match=r"generation_kwargs\.num_beams: not known"):
        ours.generate_until([Asked("x", {"num_beams": 4})])
    (tmp_path / "bad.yaml").write_text("task: x\n")
    (tmp_path / "lost.yaml").write_text(
        "task: x\ndataset_path: json\ndataset_kwargs: {data_files: {test: lost.jsonl}}\n"
    )
    for words, said in (
        (["--tasks", str(TASK), "--limit", "0"], "--limit: got 0"),
        (["--tasks", str(TASK), "--seq-len", "8"], "--seq-len"),
        (["--data", "x", "--limit", "8"], "--limit"),
        (["--tasks", str(tmp_path / "bad.yaml")], "not a task"),
        (["--tasks", str(tmp_path / "lost.yaml")], "lost.jsonl"),
        (["--tasks", str(tmp_path / "nothing.yaml")], "can't be read"),
    ):
        assert main(["evaluate", str(weights), *words]) == 2
        assert said in capsys.readouterr().err


def change(**keys: Any) -> str:
    """The text of the task there is, with other ``keys``."""
    tree = yaml.safe_load(TASK.read_text()) | keys
    tree["dataset_kwargs"] = {"data_files": {"test": str(TASK.with_suffix(".jsonl"))}}
    return yaml.safe_dump(tree)


WRONG = {
    "column": (change(doc_to_text="{{nope}}"), "'nope' is undefined"),
    "metric": (change(metric_list=[{"metric": "foo"}]), r"metric_list.0.metric: got 'foo'"),
    "hub": (change(metric_list=[{"metric": "acc", "hf_evaluate": True}]), "never run"),
    "aggregation": (change(metric_list=[{"metric": "acc", "aggregation": 3}]), "aggregation"),
    "output": (change(output_type="foo"), "output_type: got 'foo'; give one of"),
    "split": (change(test_split="nope"), "nope"),
    "target": (change(doc_to_target="{{answer.real.x.y}}"), "next_word"),
    "shots": (change(num_fewshot=-1), "num_fewshot: got -1"),
    "key": (change(doc_to_txt="x"), "did you mean 'doc_to_text'"),
    "syntax": (change(doc_to_text="{{text"), "TemplateSyntaxError"),
    "group": (change(task=["a", "b"]), "not a task"),
    "generation": (
        change(output_type="generate_until", generation_kwargs={"max_gen_toks": "x"}),
        "max_gen_toks",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_task_that_is_wrong_is_one_message(
    both: tuple[Path, Any, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = WRONG[name]
    (tmp_path / "task.yaml").write_text(text)
    words = ["evaluate", str(both[0]), "--tasks", str(tmp_path / "task.yaml")]
    assert main([*words, "--json", str(tmp_path / "numbers.json")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "numbers.json").exists()


def test_two_tasks_of_one_name_are_refused(
    both: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(change())
    assert main(["evaluate", str(both[0]), "--tasks", str(tmp_path)]) == 2
    assert "'next_word' twice" in capsys.readouterr().err


def test_a_template_runs_no_code(
    both: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    popen = "cycler.__init__.__globals__.os.popen"
    code = f"{{{{ {popen}('touch {tmp_path / 'run'}').read() }}}}"
    (tmp_path / "task.yaml").write_text(change(doc_to_text=code))
    assert main(["evaluate", str(both[0]), "--tasks", str(tmp_path / "task.yaml")]) == 2
    assert "unsafe" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
