"""MLflow as infra/ runs it: a server over PostgreSQL with artifacts on S3 (moto's). A training run
logs to it, and MLflow's own client says what arrived."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from validators import module, program

from xtdist.checkpoint import CheckpointStore, load_weights
from xtdist.cli.main import main
from xtdist.config import from_mapping, to_mapping
from xtdist.data import ByteTokenizerConfig, FilesSource, PrepareConfig, prepare
from xtdist.decode.text import Settings, TextGenerator
from xtdist.launch.preflight import preflight, resolve
from xtdist.launch.tracking import Tracking, open_tracking
from xtdist.serve.config import ServedModel
from xtdist.serve.places import check_served
from xtdist.track import read_series
from xtdist.train import RunSpec
from xtdist.train.run import WorkerJob

USER = "xtdist-test"
WORKER = """
import json, sys, torch, torch.distributed as dist
from xtdist.config import from_mapping
from xtdist.train.deepspeed import prepare_process
from xtdist.train.loop import train
from xtdist.train.run import WorkerJob
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
prepare_process(gpu=False)
train(from_mapping(WorkerJob, json.load(open(sys.argv[1]))))
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@dataclass
class Stack:
    """``start`` and ``stop`` the MLflow server; the database and the bucket go on."""

    port: int
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        for _ in range(1200):
            try:
                if urllib.request.urlopen(f"{self.uri}/health", timeout=2).status == 200:
                    return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        """Kill it and its workers."""
        if self.process is not None:
            os.killpg(self.process.pid, 9)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an empty database; its server refuses root, hence another user."""
    module("psycopg2", get="pip install psycopg2-binary")
    pg_ctl = program("pg_ctl", get="apt install postgresql")
    initdb = program("initdb", get="apt install postgresql")
    import tempfile

    root, port = Path(tempfile.mkdtemp(prefix="xtdist-pg-")), free_port()
    become: list[str] = []
    if os.geteuid() == 0:
        shutil.chown(root, "nobody")
        become = [program("setpriv", get="apt install util-linux"), "--reuid=nobody"]
        become += ["--clear-groups", "--"]
    run = {"check": True, "cwd": root, "stdout": subprocess.DEVNULL, "timeout": 120}
    data, options = str(root / "data"), f"-p {port} -k {root} -h 127.0.0.1 -F"
    try:
        subprocess.run([*become, initdb, "-D", data, "-U", "mlflow", "-A", "trust", "-N"], **run)  # type: ignore[call-overload]
        start = [pg_ctl, "-D", data, "-o", options, "-l", str(root / "log"), "-w", "start"]
        subprocess.run([*become, *start], **run)  # type: ignore[call-overload]
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        subprocess.run([*become, pg_ctl, "-D", data, "-m", "immediate", "stop"], **run)  # type: ignore[call-overload]
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def stack(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With the flags of infra/docker/mlflow.sh."""
    module("moto", get="pip install moto[server]")
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("AWS_")]:
        patch.delenv(name)
    s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    _, s3_port = s3.get_host_and_port()
    connection = http.client.HTTPConnection("127.0.0.1", s3_port)
    connection.request("PUT", "/mlflow", headers={"Authorization": "AWS test:test"})
    assert connection.getresponse().status == 200
    port = free_port()
    environment = os.environ | {
        "MLFLOW_BACKEND_STORE_URI": postgres,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--artifacts-destination", "s3://mlflow"]
    command += ["--allowed-hosts", f"127.0.0.1:{port}"]
    made = Stack(port, command, environment, tmp_path_factory.mktemp("stack") / "mlflow.log")
    made.start()
    yield made
    made.stop()
    s3.stop()
    patch.undo()


@pytest.fixture(scope="module")
def spec(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    root = tmp_path_factory.mktemp("training")
    rng = np.random.default_rng(0)
    (root / "text").mkdir()
    for i in range(40):
        words = rng.choice(["one", "two", "three", "four"], size=100)
        (root / "text" / f"{i}.txt").write_text(" ".join(words))
    source = FilesSource(path=str(root / "text"))
    prepare(
        PrepareConfig(
            output=str(root / "dataset"),
            source=source,
            tokenizer=ByteTokenizerConfig(),
            valid_fraction=0.2,
        )
    )
    tree = {
        "name": "stack",
        "output": str(root / "runs"),
        "data": {"path": str(root / "dataset"), "seq_len": 16},
        "model": {"dim": 32, "depth": 1, "heads": 2, "attention": {"dim_head": 16}},
        "optim": {"lr": 3e-3, "schedule": {"kind": "constant", "warmup_steps": 2}},
        "batch": {"tokens_per_step": 128, "micro_batch_tokens": 128},
        "loop": {"steps": 30, "valid_every": 5, "valid_windows": 4},
        "checkpoint": {"every": 5, "keep": 3},
        "engine": {"zero_stage": 0, "precision": "fp32"},
        "workers": {"count": 1},
        "track": {"uri": stack.uri, "experiment": "stack"},
    }
    return from_mapping(RunSpec, tree)


def train(tracking: Tracking, folder: Path, spec: RunSpec) -> None:
    job = folder / "job.json"
    job.write_text(
        json.dumps(to_mapping(WorkerJob(spec=spec, folder=str(folder), mlflow=tracking.run)))
    )
    (folder / "meet").unlink(missing_ok=True)
    command = [sys.executable, "-c", WORKER, str(job), str(folder / "meet")]
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True, timeout=300)


@pytest.fixture(scope="module")
def trained(stack: Stack, spec: RunSpec) -> Tracking:
    """A run whose server is killed after its third validation and comes back after its end."""
    spec = resolve(spec)
    plan = preflight(spec, cluster_gpus=0)
    plan.folder.mkdir(parents=True)
    tracking = open_tracking(plan)
    over = threading.Event()

    def outage() -> None:
        while len(read_series(plan.folder).get("eval/valid/loss", _NONE).steps) < 3:
            if over.wait(0.05):
                return
        stack.stop()

    thread = threading.Thread(target=outage)
    thread.start()
    with tracking.following():
        train(tracking, plan.folder, spec)
    over.set()
    thread.join()
    stack.stop()
    assert not tracking.log_models()
    stack.start()
    tracking.close("FINISHED")
    tracking.close("FINISHED")
    return tracking


def client(stack: Stack) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=stack.uri)


def test_an_outage_in_the_middle_of_a_run_loses_and_doubles_nothing(
    stack: Stack, trained: Tracking
) -> None:
    api, run, folder = client(stack), trained.run, trained.plan.folder
    assert run is not None
    (info,) = api.search_runs([api.get_experiment_by_name("stack").experiment_id])
    assert (info.info.run_id, info.info.status) == (run.run_id, "FINISHED")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("train/loss", "eval/valid/loss", "train/grad_norm"):
        sent = [(r["step"], r[name]) for r in rows if name in r]
        history = [(p.step, p.value) for p in api.get_metric_history(run.run_id, name)]
        assert sorted(history) == sorted(sent), name
    contexts = sorted(i.tags[0].value for i in info.inputs.dataset_inputs)
    assert contexts == ["training", "validation"]
    assert info.data.tags["version.torch"]
    assert {"environment.json", "summary.json", "loss.png"} <= {
        a.path for a in api.list_artifacts(run.run_id)
    }


def test_kept_checkpoints_are_models_with_their_validation_and_the_best_is_found(
    stack: Stack, trained: Tracking
) -> None:
    api = client(stack)
    experiment = api.get_experiment_by_name("stack").experiment_id

    order = [{"field_name": "metrics.eval/valid/loss", "ascending": True}]
    models = api.search_logged_models([experiment], order_by=order)
    kept = [m for m in models if m.tags["xtdist.state"] == "kept"]
    store = CheckpointStore(trained.plan.folder / "checkpoints")
    assert sorted(m.tags["xtdist.checkpoint"] for m in kept) == store.names()
    assert len(kept) == 3
    assert len({m.tags["xtdist.checkpoint"] for m in models}) == len(models)
    # A save that finds the one before unfinished is made some steps later: nothing measured there.
    validated = {str(n) for n in read_series(trained.plan.folder)["eval/valid/loss"].steps}
    found = {}
    for model in kept:
        losses = [m for m in model.metrics if m.key == "eval/valid/loss"]
        assert len(losses) == (model.params["step"] in validated)
        if not losses:
            continue
        (loss,) = losses
        assert loss.dataset_name == "dataset/valid"
        assert str(loss.step) == model.params["step"]
        assert model.params["model.dim"] == "32"
        found[model.model_id] = loss.value
    assert found
    best_first = sorted(found, key=lambda k: found[k])
    assert [m.model_id for m in kept if m.model_id in found] == best_first
    outputs = api.get_run(trained.run.run_id).outputs.model_outputs  # type: ignore[union-attr]
    assert sorted(o.model_id for o in outputs) == sorted(m.model_id for m in models)


def test_a_registered_model_is_loaded_by_mlflow_and_found_by_the_server_by_its_alias(
    stack: Stack,
    trained: Tracking,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import mlflow

    folder = trained.plan.folder
    assert main(["register", str(folder), "writer@champion"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.uri)
    mlflow.set_tracking_uri(stack.uri)
    model = mlflow.pyfunc.load_model("models:/writer@champion")
    assert {p.name for p in model.metadata.get_params_schema()} >= {"max_tokens", "num_beams"}
    loaded = load_weights(folder)
    tokenizer = loaded.tokenizer
    own = TextGenerator(
        loaded.model,
        tokenizer,
        eos_id=tokenizer.eot_id,
        banned_ids=(tokenizer.mask_id, tokenizer.pad_id),
    )
    prompts = ["one two", "four"]
    asked = {"temperature": 0.0, "max_tokens": 8}
    assert model.predict(prompts, params=asked) == [
        own(p, "greedy", Settings(max_tokens=8)) for p in prompts
    ]
    wide = own("one", "beam", Settings(max_tokens=8, num_beams=2))
    assert model.predict(["one"], params={"num_beams": 2, "max_tokens": 8}) == [wide]
    served = ServedModel(name="writer", weights="models:/writer@champion")
    (found,) = check_served(served, registry=stack.uri)
    assert (found.digest, found.step) == (loaded.digest, 30)


class _None:
    steps: tuple[int, ...] = ()


_NONE: Any = _None()
