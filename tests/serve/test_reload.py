"""New weights under a running server: checked against engines of the weights alone."""

from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import time

import psutil
import pytest
import torch
from tiny_server import Http, events, save_tiny

from xtdist.checkpoint.layout import read_manifest
from xtdist.checkpoint.weights import TENSORS, load_weights
from xtdist.config import CheckpointError, ConfigError, digest
from xtdist.data.tokenizer import byte_tokenizer
from xtdist.decode import Engine, EngineConfig, GenerationParams
from xtdist.serve import AppConfig, LimitsConfig, ServedModel
from xtdist.serve.replica import Replica

PROMPT = "import "
SIZES = EngineConfig(max_sequences=4, max_waiting=64, seed=7)


def alone(folder, *, max_tokens):
    """(fingerprint, text) of the weights in a folder, from an engine without a server."""
    tokenizer = byte_tokenizer()
    engine = Engine(
        load_weights(folder).model,
        tokenizer=tokenizer,
        eos_ids=(tokenizer.eot_id,),
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
        config=SIZES,
    )
    params = GenerationParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    text = engine.generate([tokenizer.encode(PROMPT)], params)[0].choices[0].text
    return f"xt-{digest(read_manifest(folder))[:16]}", text


class Live:
    """A replica in this process, and a run whose checkpoints it serves."""

    def __init__(self, tmp_path, **options):
        self.tmp_path = tmp_path
        self.run = tmp_path / "run"
        self.step = 0
        self.commit(seed=1)
        spec = ServedModel(name="tiny", weights=str(self.run), follow=True)
        config = AppConfig(
            models=(spec,),
            engine=SIZES,
            limits=LimitsConfig(max_open_requests=256),
            **{"reload_every_s": 0.02, **options},
        )
        self.replica = Replica(config)
        self.backend = self.replica.backend
        self.http = Http(self.replica.__serve_build_asgi_app__())
        self.http.runner.run(self.replica.reconfigure({}))

    def commit(self, *, seed, tensors=None):
        """A newer checkpoint of the run."""
        self.step += 1
        staged = save_tiny(self.tmp_path / f"w{seed}", seed=seed)
        if tensors is not None:
            tensors(staged / TENSORS)
        folder = self.run / "checkpoints" / f"step_{self.step:08d}-aaaa"
        return self.publish(staged, folder)

    def publish(self, staged, folder):
        folder.mkdir(parents=True)
        shutil.move(staged, folder / "weights")
        shutil.copy(folder / "weights" / "manifest.json", folder)
        return folder / "weights"

    def ask(self, **body):
        return self.http.complete(
            **{"prompt": PROMPT, "temperature": 0, "max_tokens": 16, "ignore_eos": True, **body}
        )

    async def until(self, condition, seconds=30.0):
        ends = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < ends, "it did not come"
            await asyncio.sleep(0.01)

    def wait(self, condition):
        self.http.runner.run(self.until(condition))


@pytest.fixture
def live(tmp_path):
    live = Live(tmp_path)
    yield live
    live.replica.__del__()
    live.http.runner.close()


def test_a_newer_checkpoint_of_a_run_is_served_and_said(live):
    first = live.ask().json()
    folder = live.commit(seed=2)
    live.wait(lambda: live.backend.reloads["tiny"] == 1)
    second = live.ask().json()
    fingerprint, text = alone(folder, max_tokens=16)
    assert (second["system_fingerprint"], second["choices"][0]["text"]) == (fingerprint, text)
    assert first["system_fingerprint"] != fingerprint
    card = live.http.request("GET", "/v1/models/tiny").json()
    assert card["digest"].startswith(fingerprint.removeprefix("xt-"))


@pytest.mark.parametrize("swaps", [6, pytest.param(100, marks=pytest.mark.long)])
def test_swaps_under_load_fail_no_request_and_mix_no_weights(live, tmp_path, swaps):
    folders = [save_tiny(tmp_path / f"set{i}", seed=10 + i) for i in range(3)]
    expected = dict(alone(folder, max_tokens=24) for folder in folders)
    seen, busiest = set(), 0

    async def one_client(stream):
        nonlocal busiest
        while live.backend.reloads["tiny"] < swaps:
            body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
            reply = await live.http.arequest(
                "POST", "/v1/completions", json={"model": "tiny", "stream": stream, **body}
            )
            assert reply.status_code == 200, reply.text
            frames = events(reply)[:-1] if stream else [reply.json()]
            assert not stream or reply.text.endswith("data: [DONE]\n\n")
            (made_by,) = {frame["system_fingerprint"] for frame in frames}
            text = "".join(c["text"] for frame in frames for c in frame["choices"])
            assert text == expected[made_by]
            seen.add(made_by)
            busiest = max(busiest, engine_threads())

    async def swap_all():
        for count in range(swaps):
            spec = ServedModel(name="tiny", weights=str(folders[count % 3]))
            live.replica.reloader.want([spec])
            await live.until(lambda count=count: live.backend.reloads["tiny"] > count)
            await live.until(lambda: live.backend.leaving is None)

    async def both():
        live.replica.reloader.want([ServedModel(name="tiny", weights=str(folders[2]))])
        await live.until(lambda: live.backend.reloads["tiny"] == 1)
        live.backend.reloads.clear()
        await live.until(lambda: live.backend.leaving is None)
        before = memory(), engines()
        clients = [one_client(stream) for stream in (True, False) * 3]
        await asyncio.gather(swap_all(), *clients)
        return before

    before, count = live.http.runner.run(both())
    assert seen == set(expected)
    assert busiest <= 2
    assert engine_threads() == 1
    assert engines() == count
    assert live.backend.failed_reloads["tiny"] == 0
    assert memory() - before < 60e6


def engine_threads():
    return sum(t.name == "engine-tiny" for t in threading.enumerate())


def engines():
    """Engines that anything still refers to."""
    gc.collect()
    return sum(type(o) is Engine for o in gc.get_objects())


def memory():
    gc.collect()
    return psutil.Process().memory_info().rss


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))


def nan(path):
    from safetensors.torch import load_file, save_file

    from xtdist.checkpoint.layout import hash_file, write_manifest

    state = load_file(path)
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, path)
    manifest = read_manifest(path.parent)
    write_manifest(path.parent, {**manifest.files, path.name: hash_file(path)}, manifest.meta)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(flipped, "sha256"), (nan, "NaN"), (lambda p: p.unlink(), "no weights there")],
)
def test_bad_new_weights_leave_the_old_model_and_one_line(live, caplog, spoil, said):
    before = live.ask().json()
    live.commit(seed=2, tensors=spoil)
    live.wait(lambda: live.backend.failed_reloads["tiny"])
    live.http.runner.run(asyncio.sleep(0.3))  # of several looks
    assert live.ask().json()["choices"] == before["choices"]
    assert live.http.request("GET", "/health").status_code == 200
    live.replica.check_health()
    lines = [r.getMessage() for r in caplog.records if r.name == "xtdist.serve.reload"]
    assert len(lines) == 1
    assert said in lines[0]
    live.commit(seed=3)
    live.wait(lambda: live.backend.reloads["tiny"])
    assert live.ask().json()["choices"] != before["choices"]


def test_an_outage_of_the_store_is_tried_again(live, caplog, monkeypatch):
    def away(spec, **_):
        raise OSError("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr("xtdist.serve.reload.locate", away)
        live.wait(lambda: live.backend.failed_reloads["tiny"] > 2)
    assert len([r for r in caplog.records if "the disk is away" in r.getMessage()]) == 1
    live.commit(seed=2)
    live.wait(lambda: live.backend.reloads["tiny"])


def test_a_model_that_loads_but_does_not_generate_is_not_served(live, caplog, monkeypatch):
    before = live.ask().json()
    monkeypatch.setattr(Engine, "step", broken_step)
    live.commit(seed=2)
    live.wait(lambda: live.backend.failed_reloads["tiny"])
    monkeypatch.undo()
    assert "does not generate" in caplog.text
    assert engine_threads() == 1
    assert live.ask().json()["choices"] == before["choices"]


def broken_step(self):
    raise RuntimeError("no")


def test_a_request_goes_on_with_the_model_it_began_with(live):
    async def ask_across_a_swap():
        served = live.backend.find("tiny")  # as a handler has it
        live.commit(seed=2)
        await live.until(lambda: live.backend.reloads["tiny"])
        assert live.backend.find("tiny") is not served
        await asyncio.sleep(1.5)  # longer than an idle old model is looked at
        assert live.backend.leaving is served.thread
        assert await served.healthy(30)

    live.http.runner.run(ask_across_a_swap())
    live.wait(lambda: live.backend.leaving is None)
    assert engine_threads() == 1


def test_user_config_replaces_weights_and_nothing_else(live, tmp_path, caplog):
    other = save_tiny(tmp_path / "other", seed=5)
    run = live.http.runner.run
    run(live.replica.reconfigure({"models": [{"name": "tiny", "weights": str(other)}]}))
    live.wait(lambda: live.backend.reloads["tiny"])
    assert live.ask().json()["system_fingerprint"] == alone(other, max_tokens=1)[0]
    for wrong in ({"models": [{"name": "new", "weights": str(other)}]}, {"modles": []}):
        run(live.replica.reconfigure(wrong))
    assert "'new' is not served; replace one of tiny" in caplog.text
    assert "did you mean 'models'" in caplog.text
    run(live.replica.reconfigure({}))  # back to the run
    live.wait(lambda: live.backend.reloads["tiny"] == 2)
    assert live.ask().json()["system_fingerprint"] != alone(other, max_tokens=1)[0]


def test_a_replica_with_bad_weights_does_not_start(tmp_path):
    folder = save_tiny(tmp_path / "w", seed=1)
    nan(folder / TENSORS)
    replica = Replica(AppConfig(models=(ServedModel(name="tiny", weights=str(folder)),)))
    with pytest.raises(CheckpointError, match="NaN"):
        asyncio.run(replica.reconfigure({}))
    with pytest.raises(RuntimeError, match="no models"):
        replica.check_health()
    with pytest.raises(ConfigError, match="not served"):
        asyncio.run(replica.reconfigure({"models": [{"name": "b", "weights": "w"}]}))


def test_a_drained_replica_finishes_streams_and_ends_late_ones_with_an_error(tmp_path):
    live = Live(tmp_path, drain_s=0.5)
    slow_down(live)

    async def scene():
        body = {"model": "tiny", "prompt": PROMPT, "ignore_eos": True, "stream": True}
        short, late = (
            asyncio.create_task(
                live.http.arequest("POST", "/v1/completions", json={**body, "max_tokens": n})
            )
            for n in (8, 80)
        )
        await live.until(lambda: live.backend.find("tiny").thread.running == 2)
        draining = asyncio.create_task(live.replica.drain())
        await asyncio.sleep(0)
        health = await live.http.arequest("GET", "/health")
        new = await live.http.arequest("POST", "/v1/completions", json={**body, "max_tokens": 1})
        return await short, await late, await draining, health, new

    short, late, ended, health, new = live.http.runner.run(scene())
    assert short.text.endswith("data: [DONE]\n\n")
    assert "[DONE]" not in late.text
    assert events(late)[-1]["error"]["code"] == "shutting_down"
    assert len(events(late)) > 2
    assert ended == 1
    for refused in (health, new):
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
    live.replica.__del__()
    live.http.runner.close()


def slow_down(live):
    """Steps of 20 ms at least, so that a stream of 80 tokens outlasts the grace."""
    engine = live.backend.find("tiny").thread.engine
    step = engine.step

    def slow():
        time.sleep(0.02)
        return step()

    engine.step = slow


def test_a_located_run_means_the_same_weights_after_a_newer_commit(live):
    from xtdist.serve.places import check_served, locate

    spec = ServedModel(name="tiny", weights=str(live.run))
    located = locate(spec)
    live.commit(seed=2)
    assert locate(located) == located != locate(spec)
    (found,) = check_served(located)
    with torch.no_grad():
        assert found.digest == digest(read_manifest(found.folder))
