"""The playground at ``/``: one static file that uses the public API of the server it came from.

It is the same for everybody and holds no secret, so it needs no key; what it asks the API for needs
the key that the user types. Its Content-Security-Policy allows exactly its own script and style, by
their digests, and connections to the server that it came from: whatever a model writes can neither
run nor send anything anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources

from fastapi import FastAPI
from starlette.responses import Response


def add_page(app: FastAPI) -> None:
    """Answer ``GET /`` with the playground."""
    page = resources.files(__package__).joinpath("page", "index.html").read_bytes()
    headers = {
        "Content-Security-Policy": content_policy(page.decode()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }

    @app.get("/", include_in_schema=False)
    async def playground() -> Response:
        return Response(page, media_type="text/html", headers=headers)


def content_policy(html: str) -> str:
    """The Content-Security-Policy under which only the inline style and script of ``html`` count.

    ``trusted-types 'none'`` leaves the script no way to make elements out of text.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_digest(html, 'script')}",
            f"style-src {_digest(html, 'style')}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _digest(html: str, tag: str) -> str:
    (text,) = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
