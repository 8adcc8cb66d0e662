"""What a worker process loads before it trains."""

import os
import subprocess
import sys

SCRIPT = """
import sys
from xtdist.train.deepspeed import prepare_process

prepare_process(gpu=False)

import torch
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon import original_muon

assert compiler.compile() is torch.compile
print(sorted(sys.modules.keys() & {"mlflow", "torch._inductor", original_muon.__name__}))
"""


def test_neither_mlflow_nor_the_compiler_that_nobody_asked_for() -> None:
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 0}
    env = os.environ | {k: str(v) for k, v in place.items()} | {"MASTER_ADDR": "127.0.0.1"}
    out = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1] == "['deepspeed.runtime.zero.muon.original_muon']"
