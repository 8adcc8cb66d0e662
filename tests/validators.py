"""The programs and schemas that check files of cluster/ and infra/: one that is missing is a skip
with its reason, and a failure where XTDIST_ALL_VALIDATORS=1 says that all of them have to be there
(.ci/run does)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest


def program(name: str, *, get: str) -> str:
    """The path of program ``name``: of this environment, or of the machine. ``get`` says how to
    have it (``pip install …``, ``apt install …``)."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    return found or _missing(name, get)


def module(name: str, *, get: str) -> None:
    """Go on only where module ``name`` can be imported."""
    if importlib.util.find_spec(name) is None:
        _missing(name, get)


def _missing(name: str, get: str) -> str:
    why = f"{name} is not here: {get}"
    if os.environ.get("XTDIST_ALL_VALIDATORS") == "1":
        pytest.fail(why)
    pytest.skip(why)
