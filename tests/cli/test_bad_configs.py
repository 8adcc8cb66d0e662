"""Mistakes in configs and on the command line."""

from __future__ import annotations

import pytest

from xtdist.cli.main import VERBS, main


def test_an_unknown_key_gets_the_nearest_name_and_its_line(refused, make_config):
    config = make_config({"optim.lrr": 1e-3})
    line = next(i for i, t in enumerate(config.read_text().splitlines(), 1) if "lrr" in t)
    message = refused("train", config)
    assert message == f"error: {config}:{line}: optim.lrr: unknown key; did you mean 'lr'?\n"


def test_all_mistakes_of_a_config_are_told_at_once(refused, make_config):
    message = refused("train", make_config({"loop.stesp": 4, "model.dim": "wide", "seed": -1}))
    assert [p in message for p in ("loop.stesp", "model.dim", "seed")] == [True] * 3
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loop.steps": "many"}, 'loop.steps: got "many"; it should be a valid integer'),
        ({"loop.steps": 1.5}, "loop.steps: got 1.5"),
        ({"loop.steps": 0}, "loop.steps: got 0; it should be greater than 0"),
        ({"optim.lr": "fast"}, 'optim.lr: got "fast"'),
        ({"model.causal": "yes"}, 'model.causal: got "yes"'),
        ({"data": "data/demo"}, 'data: got "data/demo"'),
        ({"engine.zero_stage": 4}, "engine.zero_stage: got 4; it should be 0, 1, 2 or 3"),
        ({"objective": {"kind": "auto"}}, "objective"),
        ({"name": "a/b"}, "name: got 'a/b'; it names a folder"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_allowed(refused, make_config, changes, said):
    config = make_config(changes)
    message = refused("train", config)
    assert message.startswith(f"error: {config}:")
    assert said in message


def test_a_required_key_that_is_missing_is_named(refused, tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    message = refused("train", tmp_path / "empty.yaml")
    for key in ("name", "data", "model", "loop"):
        assert f"empty.yaml: {key}: required key is missing\n" in message


@pytest.mark.parametrize("verb", ["train", "prepare", "config"])
def test_a_config_that_is_not_there_is_named(refused, tmp_path, verb):
    path = tmp_path / "no.yaml"
    message = refused(verb, path)
    assert message == f"error: {path}: can't be read (No such file or directory); " + (
        "give a config file\n"
    )


@pytest.mark.parametrize("content", ["a: [1\n", "a: 1\na: 2\n", "- 1\n", "\tname: x\n", "\x00"])
def test_a_file_that_is_no_config_is_named(refused, tmp_path, content):
    path = tmp_path / "odd.yaml"
    path.write_text(content)
    assert refused("train", path).startswith(f"error: {path}")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loop.steps", "write it as key.path=value"),
        ("=4", "write it as key.path=value"),
        ("loop..steps=4", "write it as key.path=value"),
        ("loop.steps=[4", "its value is not a YAML value"),
        ("loop.step=4", "unknown key 'step'; did you mean 'steps'?"),
        ("lop.steps=4", "unknown key 'lop'; did you mean 'loop'?"),
        ("loop.steps.more=4", "unknown key 'more'"),
        ("loop.steps=", "loop.steps: got null"),
        ("loop.steps=many", 'loop.steps: got "many"'),
        ("model=null", "model: got null"),
    ],
)
def test_an_override_that_means_nothing_is_shown(refused, make_config, override, said):
    message = refused("train", make_config(), override)
    assert f"override {override!r}" in message
    assert said in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch.tokens_per_step": 70}, "must be a multiple of data.seq_len (16), 64 for example"),
        ({"workers.count": 5}, "a step of 4 sequences has work for no more"),
        ({"model.num_tokens": 300}, "the dataset's tokenizer has 259: leave it out"),
        ({"model.max_seq_len": 8}, "less than data.seq_len (16)"),
        ({"model.causal": False}, "needs model.causal: true"),
        ({"objective": {"kind": "nonautoregressive"}}, "needs model.causal: false"),
        ({"data.seq_len": 10**6, "batch.tokens_per_step": 2 * 10**6}, "not one window"),
        ({"loop.sample_prompts": ["x" * 10]}, "10 tokens + loop.sample_tokens 48 = 58"),
        ({"loop.sample_prompts": [""]}, "loop.sample_prompts: one is empty"),
        ({"track.uri": "ftp://x"}, "track.uri: got 'ftp://x'"),
    ],
)
def test_keys_that_contradict_each_other_are_named(refused, make_config, changes, said):
    assert said in refused("train", make_config(changes))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "invalid choice: 'trian' (choose from"),
        ([], "required: VERB"),
        (["train"], "required: config"),
        (["evaluate", "runs/x"], "required: --data"),
        (["generate", "runs/x", "--prompt", "a", "--method", "best"], "invalid choice: 'best'"),
        (["serve", "runs/x", "--port", "http"], "invalid int value: 'http'"),
    ],
)
def test_a_command_line_that_means_nothing_is_explained(capsys, words, said):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: xtdist")
    assert said in captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: xtdist {verb} ")


def test_config_shows_every_value_with_its_source(xtdist, make_config):
    config = make_config()
    lines = config.read_text().splitlines()
    ended = xtdist("config", config, "loop.steps=9", "engine={zero_stage: 3}")
    assert ended.code == 0
    rows = dict(line.split(": ", 1) for line in ended.out.splitlines())
    shown = {key: [part.strip() for part in row.split("  # ")] for key, row in rows.items()}
    dim, precision = lines.index("  dim: 16") + 1, lines.index("  precision: fp32") + 1
    assert shown["model.dim"] == ["16", f"{config}:{dim}"]
    assert shown["loop.steps"] == ["9", "override 'loop.steps=9'"]
    assert shown["engine.zero_stage"] == ["3", "override 'engine={zero_stage: 3}'"]
    assert shown["engine.precision"] == ["'fp32'", f"{config}:{precision}"]
    assert shown["loop.keep"] == ["3", "default"]
    assert shown["model.attention.dim_head"][0] == "8"
    assert shown["model.attention.dim_head"][1].startswith(f"{config}:")
    assert shown["objective.kind"] == ["'autoregressive'", "default"]
    assert shown["optim.schedule.warmup_steps"][0] == "1"
    assert "model.norm.kind" in shown
