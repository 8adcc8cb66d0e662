"""Mistakes in configs and on the command line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from xtdist.cli.config import WIDEST
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


CRITIC = {"dim": 24, "depth": 1, "heads": 2, "causal": False}
MASKED = {"model.causal": False, "objective.kind": "nonautoregressive"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.max_seq_len": 8}, "model.max_seq_len: got 8, less than data.seq_len (16)"),
        (
            {"objective": {"kind": "autoregressive", "next_embed_loss_weight": 1.0}},
            "objective.next_embed_loss_weight: got 1.0, which has no effect",
        ),
        (
            {"objective": {"kind": "autoregressive", "looped_exit_loss_weight": 2.0}},
            "objective.looped_exit_loss_weight: got 2.0, which has no effect",
        ),
        (
            {**MASKED, "objective.critic_loss_weight": 3.0},
            "objective.critic_loss_weight: got 3.0, which has no effect",
        ),
        (
            {**MASKED, "objective.token_critic": {**CRITIC, "head": {"dim": 4}}},
            "objective.token_critic.head: a critic gives one number",
        ),
        (
            {**MASKED, "objective.token_critic": {**CRITIC, "pool": {"kind": "mean"}}},
            "objective.token_critic.pool: a critic judges each token",
        ),
        (
            {"data.documents": "masked", "model.shift_tokens": 1},
            "data.documents: got masked, but model can't keep documents apart",
        ),
        (
            {
                **MASKED,
                "data.documents": "packed",
                "objective.token_critic": {**CRITIC, "shift_tokens": 1},
            },
            "data.documents: got packed, but objective.token_critic can't keep documents apart",
        ),
    ],
)
def test_what_no_data_could_make_possible_is_refused_where_a_config_is_shown(
    refused, make_config, changes, said
):
    assert said in refused("config", make_config(changes))


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
        (["evaluate", "runs/x"], "one of the arguments --data --tasks is required"),
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


def shown(out: str) -> dict[str, list[str]]:
    """The values and sources that ``xtdist config`` prints."""
    rows = dict(line.split(": ", 1) for line in out.splitlines() if not line.startswith("#"))
    return {key: [part.strip() for part in row.split("  # ")] for key, row in rows.items()}


def test_config_shows_every_value_with_its_source(xtdist, make_config):
    config = make_config()
    lines = config.read_text().splitlines()
    ended = xtdist("config", config, "loop.steps=9", "engine={zero_stage: 3}", "--all")
    assert ended.code == 0
    rows = shown(ended.out)
    dim, precision = lines.index("  dim: 16") + 1, lines.index("  precision: fp32") + 1
    assert rows["model.dim"] == ["16", f"{config}:{dim}"]
    assert rows["loop.steps"] == ["9", "override 'loop.steps=9'"]
    assert rows["engine.zero_stage"] == ["3", "override 'engine={zero_stage: 3}'"]
    assert rows["engine.precision"] == ["'fp32'", f"{config}:{precision}"]
    assert rows["checkpoint.keep"] == ["3", "default"]
    assert rows["model.attention.dim_head"][0] == "8"
    assert rows["model.attention.dim_head"][1].startswith(f"{config}:")
    assert rows["objective.kind"] == ["'autoregressive'", "default"]
    assert rows["optim.schedule.warmup_steps"][0] == "1"
    assert "model.norm.kind" in rows
    short = [line for line in ended.out.splitlines() if len(line.split()[1]) <= WIDEST]
    assert len({line.index("  # ") for line in short}) == 1, "sources stand in one column"


def test_config_leaves_out_what_nobody_set(xtdist, make_config):
    rows = shown(xtdist("config", make_config(), "model.norm.kind=layernorm", "seed=0").out)
    assert rows["model.norm.kind"][0] == "'layernorm'"
    assert rows["model.norm.eps"][1] == "default"  # of another kind: new to the reader
    assert rows["seed"][1] == "override 'seed=0'"  # written, though it is the default
    assert not {"checkpoint.keep", "model.residual.kind", "objective.kind"} & rows.keys()
    everything = shown(xtdist("config", make_config(), "--all").out)
    ended = xtdist("config", make_config())
    left_out = len(everything) - len(shown(ended.out))
    assert f"# {left_out} more values are at their defaults: --all shows them" in ended.out


@pytest.mark.parametrize("verb", ["config", "train"])
def test_a_preset_that_drops_the_files_model_is_noted(xtdist, make_config, verb, monkeypatch):
    monkeypatch.setattr("xtdist.cli.train.run_training", lambda spec: stopped())
    config = make_config()
    line = config.read_text().splitlines().index("model:") + 1
    ended = xtdist(verb, config, "model.preset=llama-tiny")
    note = (
        f"override 'model.preset=llama-tiny' replaces all of model in {config}:{line}: model.dim, "
        "model.depth, model.heads, model.attention.dim_head\n"
    )
    assert note in ended.out + ended.err
    assert "replaces" not in xtdist(verb, config, "model.depth=2").out


def stopped():
    return SimpleNamespace(finished=True, reused=True, step=1, steps=1, folder="x")


def test_dashes_before_an_override_are_told(capsys, make_config):
    with pytest.raises(SystemExit):
        main(["config", str(make_config()), "--model.depth=3"])
    assert "overrides have no dashes: model.depth=3" in capsys.readouterr().err
