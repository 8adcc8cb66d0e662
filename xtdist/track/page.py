"""One HTML file that needs nothing else: templates, style, script and data in it.

Everything is escaped by the templates; the data stands in the page as JSON. A policy lets nothing
run or load but the page's own style and script, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from xtdist.files import write_atomic


def write_page(
    path: str | Path,
    template: str,
    *,
    data: Mapping[str, Any],
    facts: Mapping[str, Any],
    package: str = "xtdist.track",
) -> Path:
    """Write a page, whole or not at all.

    Args:
        template: a file in the folder ``pages`` of ``package``; it can build on those of track.
        data: for the charts (:func:`xtdist.track.curves.chart_data`).
        facts: what the template names; text is escaped. ``title`` is among them.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(p, "pages") for p in (package, "xtdist.track")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["missing"] = lambda value: type(value).__name__ == "Missing"
    pages = resources.files("xtdist.track").joinpath("pages")
    style, script = (pages.joinpath(n).read_text("utf-8") for n in ("page.css", "charts.js"))
    policy = (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template).render(
        facts,
        style=Markup(style),
        script=Markup(script),
        policy=policy,
        data=embed(data),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)
    return path


def embed(data: Mapping[str, Any]) -> Markup:
    """As JSON that can stand in a script element: nothing in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _source(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
