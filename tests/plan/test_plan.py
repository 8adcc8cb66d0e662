"""The plan as a whole: counts against the built model, cures that cure, time by its formula."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from test_plan_memory import Ids, spec_of
from torch.utils.flop_counter import FlopCounterMode

from xtdist.cli.main import main
from xtdist.config import ConfigError, load
from xtdist.model.presets import PRESETS
from xtdist.model.wrapper import TransformerWrapper, build_model
from xtdist.objective import build_objective
from xtdist.plan import Data, Device, count_parameters, known_device, make, make_plan
from xtdist.plan.devices import MEMORY_GIB
from xtdist.plan.flops import mean_keys, read_flops_per_token
from xtdist.plan.variants import with_variant
from xtdist.train.footprint import count, memory
from xtdist.train.meters.flops import flops_per_token
from xtdist.train.spec import RunSpec
from xtdist.train.state import checkpoint_bytes
from xtdist.train.trace import Activations

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {p: yaml.safe_load(p.read_text()) for p in (ROOT / "jobs/configs").glob("*.yaml")}
NOTHING = Activations(((0, 0),))
RUNS = sorted(p for p, tree in CONFIGS.items() if {"batch", "loop"} <= tree.keys())


def counted(model):
    with torch.device("meta"):
        net = TransformerWrapper.from_config(model)
        whole = build_objective(spec_of({}).objective, net, mask_id=1, pad_id=0)
    return count_parameters(whole, kinds=model.kinds), net


@pytest.mark.parametrize("name", PRESETS)
def test_parts_of_a_preset_add_up_to_what_is_known_of_its_size(name):
    preset = PRESETS[name]
    with_sizes = {"num_tokens": preset.num_tokens, "max_seq_len": preset.max_seq_len}
    model = dataclasses.replace(preset.config, **with_sizes)
    found, net = counted(model)
    assert found.total == sum(p.numel() for p in net.parameters()) == sum(found.parts.values())
    assert found.total == pytest.approx(preset.parameters, rel=0.1)
    table = model.num_tokens * model.emb_dim
    assert found.parts["head"] == (0 if model.tie_embedding else table)
    assert found.parts["embedding"] >= table
    assert found.parts["other"] == 0


def test_a_token_goes_through_the_chosen_experts_alone():
    mixture = {"kind": "moe", "experts": 8, "top_k": 2}
    model = spec_of({"model": {"feedforward": mixture}}).model
    found, net = counted(model)
    expert = sum(
        p.numel() for n, p in net.named_parameters() if n.endswith(("proj_in", "proj_out"))
    )
    assert found.active == found.total - expert * 6 // 8


def tiny_plan(device_bytes: float, *, stage=0, world=2, tflops=None, **more):
    spec = spec_of({"model": {"dim": 256, "depth": 6}}, rows=8, stage=stage, world=world)
    return make_plan(spec, Ids(), Device("made", int(device_bytes), tflops, cuda=False), **more)


@pytest.mark.slow
def test_what_fits_needs_no_cure_and_what_does_not_gets_the_smallest_one():
    whole = tiny_plan(1e12)
    peak = whole.chosen.memory.peak
    assert whole.chosen.fits
    assert whole.cure is None
    tight = tiny_plan(0.9 * peak)
    assert not tight.chosen.fits
    assert tight.cure is not None
    assert tight.cure.memory.peak <= 0.9 * peak
    changed = with_variant(tight.spec, tight.cure.variant)
    alone = make_plan(changed, Ids(), tight.device)
    assert alone.chosen.fits
    assert alone.chosen.memory == tight.cure.memory
    assert changed.batch.micro_batch_tokens < tight.spec.batch.micro_batch_tokens
    assert changed.engine == tight.spec.engine  # nothing else was needed
    assert tiny_plan(1e6).cure is None


def test_time_cost_and_disk_follow_from_counts():
    plan = tiny_plan(1e12, tflops=2.0, mfu=0.5, price_per_hour=3.0, data=Data(20_480, 10))
    spec = plan.spec
    tokens = spec.loop.steps * spec.batch.tokens_per_step
    flops = flops_per_token(spec.model, 256)
    seconds = tokens * flops / (2 * 2e12 * 0.5)
    tree = json.loads(json.dumps(plan.tree()))
    assert tree["tokens"] == tokens
    assert tree["seconds"] == pytest.approx(seconds)
    assert tree["cost"] == pytest.approx(seconds / 3600 * 2 * 3.0)
    assert tree["epochs"] == pytest.approx(tokens / 20_480)
    size = checkpoint_bytes(plan.parameters.total, averaged=False, size=4)
    assert tree["checkpoint_bytes"] == size
    assert plan.kept == 2  # of ten steps, one at their end, and one that is being written


@pytest.mark.slow
def test_sharded_states_agree_with_deepspeeds_own_estimates():
    """Of bf16 on 8 GPUs. Theirs count a second, 16-bit copy of a rank's gradients, and at stage 3
    the largest layer gathered, where ours has up to 10⁹ numbers."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    spec = spec_of({"precision": "bf16"}, stage=2, world=8)
    numbers = count(spec, Ids())
    n = numbers.total
    two = memory(spec, numbers, NOTHING, world=8, cuda=True)
    _, theirs = estimate_zero2_model_states_mem_needs(
        n, num_gpus_per_node=8, num_nodes=1, cpu_offload=False, additional_buffer_factor=1.0
    )
    assert two.weights + two.gradients + two.optimizer == pytest.approx(theirs - n / 4, rel=0.001)
    spec = spec_of({"precision": "bf16"}, stage=3, world=8)
    three = memory(spec, numbers, NOTHING, world=8, cuda=True)
    _, theirs, largest = estimate_zero3_model_states_mem_needs(
        n,
        numbers.largest,
        num_gpus_per_node=8,
        num_nodes=1,
        cpu_offload=False,
        cpu_offload_params=False,
        zero_init=True,
    )
    ours = three.weights + three.gradients + three.optimizer - 2 * n
    assert ours == pytest.approx(theirs - largest, rel=0.001)


@pytest.mark.long
@pytest.mark.parametrize("config", RUNS, ids=lambda p: p.stem)
def test_every_config_of_a_run_has_a_plan(config, capsys):
    code = main(["plan", str(config), "model.num_tokens=4096", "--gpu", "h100", "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert code == (0 if tree["fits"] else 1)
    spec = load(RunSpec, config, []).config
    assert tree["steps"] == spec.loop.steps
    assert {row["change"]["engine.zero_stage"] for row in tree["memory"]} == {0, 1, 2, 3}


@pytest.mark.long
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name, tmp_path, capsys):
    tree = {
        "name": "preset",
        "data": {"path": "/none", "seq_len": 128},
        "model": {"preset": name},
        "batch": {"tokens_per_step": 1024, "micro_batch_tokens": 512},
        "loop": {"steps": 100},
        "workers": {"count": 2},
    }
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(tree))
    words = ["plan", str(config), "--gpu", "h100", "--gpus", "4", "--json"]
    code = main([*words, f"model.num_tokens={PRESETS[name].num_tokens}"])
    tree = json.loads(capsys.readouterr().out)
    assert code == (0 if tree["fits"] else 1)
    assert tree["fits"] or tree["cure"] is not None
    assert tree["workers"] == 4


@pytest.mark.slow
def test_what_does_not_fit_is_said_with_a_way_out_and_exit_code_1(capsys):
    words = ["plan", str(ROOT / "jobs/configs/demo_ar.yaml"), "model.num_tokens=4096"]
    assert main([*words, "--memory-gb", "0.1"]) == 1
    out = capsys.readouterr().out
    assert "does not fit" in out
    assert "fits with: " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "h1000"], "did you mean 'h100'"),
        (["--mfu", "2"], "--mfu"),
        (["--memory-gb", "-1"], "--memory-gb"),
        (["workers.device=gpu", "model.num_tokens=100"], "name one: --gpu"),
        (["--gpus", "0"], "--gpus"),
        (["--memory-gb", "1e300"], "from 0.1 to 100000"),
        (["--mfu", "1e-320"], "from 0.001 to 1"),
        (["--mfu", "nan"], "--mfu"),
        (["model.depth=100000000"], "model.depth: got 100,000,000; give at most 16,384"),
        (["model.dim=1000000000000"], "model.dim: got 1,000,000,000,000"),
        (["--gpu", "cpu", "workers.device=gpu"], "workers.device=cpu"),
        (["--gpu", "h100", "workers.device=cpu"], "workers.device=gpu"),
        (["--gpu", "t4", "model.num_tokens=100"], "t4 has no bf16; give fp16 or fp32"),
        (["--gpu", "v100-32", "engine.precision=bf16"], "v100-32 has no bf16"),
    ],
)
def test_a_mistake_is_one_message(words, message, capsys):
    assert main(["plan", str(ROOT / "jobs/configs/demo_ar.yaml"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_dry_run_shows_the_plan_and_starts_nothing(tmp_path, capsys):
    config = str(ROOT / "jobs/configs/demo_ar.yaml")
    words = ["train", config, "--dry-run", f"output={tmp_path / 'runs'}", "model.num_tokens=4096"]
    assert main([*words, "--gpu", "cpu"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    assert main([*words, "--submit", "http://127.0.0.1:1"]) == 2
    assert main(["train", config, "--mfu", "0.4"]) == 2
    assert "only --dry-run has it" in capsys.readouterr().err


def test_without_a_dataset_what_is_assumed_is_said(capsys):
    config = str(ROOT / "jobs/configs/demo_ar.yaml")
    words = ["plan", config, "--gpu", "h100", "--json", "data.path=/none"]
    assert main(words) == 0
    assert any("32000 ASSUMED" in note for note in json.loads(capsys.readouterr().out)["notes"])
    assert main([*words, "model.num_tokens=4096"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert not any("ASSUMED" in note for note in notes)


@pytest.mark.parametrize(
    ("gpu", "here", "said"), [("h100", False, 1), ("h100", True, 0), ("cpu", False, 0)]
)
def test_what_no_gpu_was_there_to_measure_is_said_in_one_line(gpu, here, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(make, "trace", lambda *args, **kwargs: NOTHING)
    plan = make_plan(spec_of({"precision": "bf16"}), Ids(), known_device(gpu), alone=True)
    notes = [note for note in plan.notes if "not measured on h100: memory" in note]
    assert len(notes) == said


@pytest.mark.parametrize("window", [None, 0, 5, 40])
@pytest.mark.parametrize("causal", [True, False])
def test_the_keys_that_are_read_are_those_of_the_mask(window, causal):
    n = 24
    i, j = torch.arange(n)[:, None], torch.arange(n)[None]
    mask = (i - j).abs() <= (n if window is None else window)
    if causal:
        mask &= j <= i
    assert mean_keys(n, window=window, causal=causal) == pytest.approx(int(mask.sum()) / n)


def test_operations_are_those_that_torch_counts():
    """Of a step whose scores are written out, on every pair of places."""
    spec = spec_of({"model": {"attention": {"softclamp": 20.0}}})
    net = build_model(spec.model, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 4095, (1, 256))
    with FlopCounterMode(display=False) as counter:
        net(tokens).sum().backward()
    counted = counter.get_total_flops() / 256
    assert flops_per_token(spec.model, 256) == pytest.approx(counted, rel=0.01)
    assert read_flops_per_token(spec, None) < counted
    weights = sum(p.numel() for p in net.parameters()) - 4096 * 256
    assert 6 * weights < flops_per_token(spec.model, 256) < 1.4 * 6 * weights


@pytest.mark.parametrize("name", [*MEMORY_GIB, "cpu"])
def test_known_devices_have_memory_and_the_gpus_a_peak(name):
    device = known_device(name, precision="fp16")
    assert device.bytes > 2**30
    assert device.cuda == (name != "cpu")
    assert (device.tflops is None) == (name == "cpu")


def test_an_unknown_device_needs_its_memory():
    with pytest.raises(ConfigError, match="--memory-gb"):
        known_device("abacus")
    assert known_device("abacus", memory_gib=10, tflops=1.0).tflops == 1.0


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("h100", 989.4), ("h100-nvl", 835.5), ("H100 PCIe", 756.0), ("a100-80", 312.0), ("t4", 65.0)],
)
def test_a_peak_is_the_variants_own_and_of_16_bits(name, tflops):
    assert known_device(name, precision="fp16").tflops == tflops
    assert known_device(name, precision="fp32").tflops is None
    assert known_device(name, precision="fp32", tflops=7.0).tflops == 7.0


def test_the_time_in_fp32_is_not_guessed_from_a_16_bit_peak(capsys):
    config = str(ROOT / "jobs/configs/demo_ar.yaml")
    words = ["plan", config, "--gpu", "h100", "model.num_tokens=100", "--json"]
    seconds = []
    for more in ([], ["engine.precision=fp32"], ["engine.precision=fp32", "track.peak_tflops=50"]):
        assert main([*words, *more]) == 0
        seconds.append(json.loads(capsys.readouterr().out)["seconds"])
    assert seconds[1] is None
    assert seconds[2] == pytest.approx(seconds[0] * 989.4 / 50)
