"""Chat templates: a conversation as the text that a model was trained to go on with.

They are jinja2 templates as Hugging Face's are, with ``messages``, ``add_generation_prompt``,
``bos_token`` and ``eos_token``, and ``raise_exception(message)``. Besides, one may say with
``{% set stop = ["…"] %}`` at its top level which strings end an answer.

What a template writes is text, like the documents that a model was trained with: what spells a
special token in it, or in a message, is plain text. Only the variables ``bos_token`` and
``eos_token`` are more: both are the end of a document, as one id. No message can spell them.
"""

from __future__ import annotations

import json
import secrets
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xtdist.checkpoint import template_process
from xtdist.config import ConfigError

CHAT_TEMPLATE = "chat_template.jinja"
MAX_TEMPLATE_CHARS = 2**17
MAX_CHARS = 2**20  # of a rendered conversation
_WAIT_S = 20.0  # its own bound is one second of computing; this is for a machine that is busy
_BLOCK = 2**16


class TemplateError(Exception):
    """A template has no text for these messages; says why, without repeating them."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Args:
        parts: between two of them there is an end of a document.
        stop: strings that end the answer.
    """

    parts: tuple[str, ...]
    stop: tuple[str, ...] = ()

    def encode(self, tokenizer: Any) -> list[int]:
        """Token ids: every part is plain text."""
        ids = [int(i) for i in tokenizer.encode(self.parts[0])]
        for part in self.parts[1:]:
            ids += [tokenizer.eot_id, *(int(i) for i in tokenizer.encode(part))]
        return ids


class ChatTemplate:
    """One template, run in a process of its own that is started when it is first needed. Safe to
    use from several threads, one at a time.

    Args:
        source: jinja2.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @classmethod
    def read(cls, path: str | Path, *, where: str) -> ChatTemplate:
        """The template in a file, compiled once to see that it can be.

        Raises:
            ConfigError: no such file, or no template.
        """
        try:
            with open(path, "rb") as file:
                source = file.read(4 * MAX_TEMPLATE_CHARS + 1).decode("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            reason = getattr(e, "strerror", None) or "not UTF-8, or far too long"
            raise ConfigError(
                f"{where}: {path}: can't be read ({reason}); give a file with a jinja2 template, "
                "or leave it out"
            ) from None
        template = cls(source)
        try:
            template.check(f"{where}: {path}")
        finally:
            template.close()
        return template

    def check(self, where: str) -> None:
        """Raises ConfigError for a template that can't be compiled."""
        with self._lock:
            self._start(where)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        go_on: bool = True,
        unfinished: bool = False,
    ) -> Rendered:
        """The text of a conversation.

        Args:
            go_on: with what comes before an answer (``add_generation_prompt``).
            unfinished: only up to the end of the last message's content.

        Raises:
            TemplateError: the template refuses it, fails on it, or takes too long.
        """
        end, cut = (f"\x00{secrets.token_hex(16)}\x00" for _ in range(2))
        if unfinished:
            last = {**messages[-1], "content": messages[-1]["content"] + cut}
            messages = [*messages[:-1], last]
        variables = {
            "messages": messages,
            "add_generation_prompt": go_on,
            "bos_token": end,
            "eos_token": end,
        }
        answer = self._ask({"variables": variables, "max_chars": MAX_CHARS})
        if "refused" in answer:
            reason = str(answer["refused"])
            own = reason if 3 < len(reason) < 200 and reason in self.source else ""
            raise TemplateError(f"the template refuses them{': ' if own else ''}{own}")
        if "failed" in answer:
            raise TemplateError(f"the template has no text for them ({answer['failed']})")
        stop = tuple(s for s in answer["stop"] if end not in s)
        text, found, _ = answer["text"].partition(cut)
        if unfinished and not found:
            raise TemplateError("the template leaves out the end of the last one")
        return Rendered(tuple(text.split(end)), stop)

    def close(self) -> None:
        """End the process; the next use starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        with self._lock:
            try:
                process = self._start("chat template")
                answer = _talk(process, request)
            except ConfigError:
                raise TemplateError("the template can't be compiled") from None
            except BaseException:
                self.close()
                raise
            if answer is None:
                self.close()
                raise TemplateError("the template takes too long, or too much, for them")
            return answer

    def _start(self, where: str) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        if len(self.source) > MAX_TEMPLATE_CHARS:
            raise ConfigError(
                f"{where}: {len(self.source)} characters; a chat template has at most "
                f"{MAX_TEMPLATE_CHARS}"
            )
        self._process = subprocess.Popen(
            [sys.executable, "-I", template_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
            cwd="/",
            bufsize=0,
        )
        found = _talk(self._process, {"template": self.source})
        if found != {}:
            self.close()
            problem = "it takes too long to compile" if found is None else found["wrong"]
            raise ConfigError(
                f"{where}: {problem[:300]}; a chat template is jinja2 with messages, "
                "add_generation_prompt, bos_token and eos_token"
            )
        return self._process

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()


def _talk(process: subprocess.Popen[bytes], said: Mapping[str, Any]) -> dict[str, Any] | None:
    """One line there, one line back; None: the process has ended, or does not answer."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(said).encode() + b"\n")
    except BrokenPipeError:
        return None
    line, until = bytearray(), time.monotonic() + _WAIT_S
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(until - time.monotonic(), 0))
        block = process.stdout.read(_BLOCK) if ready else b""
        if not block:
            return None
        line += block
    answer: dict[str, Any] = json.loads(line)
    return answer
