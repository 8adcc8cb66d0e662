"""The package's public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import xtdist

WANTED = {
    "AutoregressiveWrapper",
    "ContinuousAutoregressiveWrapper",
    "ContinuousTransformerWrapper",
    "CrossAttender",
    "Decoder",
    "Encoder",
    "NonAutoregressiveWrapper",
    "PrefixDecoder",
    "TransformerWrapper",
    "ViTransformerWrapper",
    "XTransformer",
}


def test_every_public_name_loads_and_is_listed() -> None:
    for name in xtdist.__all__:
        assert getattr(xtdist, name).__name__ == name
        assert name in dir(xtdist)
    with pytest.raises(AttributeError, match="no attribute 'Decodr'"):
        _ = xtdist.Decodr


def test_the_classes_of_x_transformers_stand_under_their_own_names() -> None:
    theirs = pytest.importorskip("x_transformers")
    assert set(xtdist.__all__) >= WANTED
    assert all(hasattr(theirs, name) for name in WANTED)


def test_importing_the_package_needs_no_torch() -> None:
    code = "import sys, xtdist; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
