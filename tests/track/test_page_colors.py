"""The colours of lines stay apart for eyes that lack a kind of cone, on both backgrounds."""

import itertools
import re
from importlib import resources

import numpy as np

from xtdist.track.plots import COLORS

# Machado, Oliveira, Fernandes (2009), severity 1: protanopia, deuteranopia, tritanopia
EYES = (
    np.eye(3),
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
)
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    x = XYZ @ np.clip(light, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(a: str, b: str) -> float:
    dark, bright = sorted(float(XYZ[1] @ linear(c)) for c in (a, b))
    return (bright + 0.05) / (dark + 0.05)


def test_lines_can_be_told_apart_by_every_kind_of_eye() -> None:
    css = resources.files("xtdist.track").joinpath("pages/page.css").read_text("utf-8")
    found = re.findall(r"--c\d: (#[0-9a-f]{6})", css)
    light, dark, printed = (tuple(found[i : i + 6]) for i in (0, 6, 12))
    assert light == printed == COLORS
    for palette, ground in ((light, "#ffffff"), (dark, "#1c2026")):
        assert min(contrast(color, ground) for color in palette) > 2.9
        for eye in EYES:
            seen = [lab(np.array(eye) @ linear(color)) for color in palette]
            assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 12
