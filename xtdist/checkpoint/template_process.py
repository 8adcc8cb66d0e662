"""The process that runs chat templates: a program of its own, which imports nothing of xtdist.

A template comes with a model, so it may be anybody's. It is run by jinja2's immutable sandbox, and
the sandbox in a process that holds no secret, opens no file, starts nothing, and ends when it has
used up its memory or a request's time. One JSON object a line: the first holds the template, each
further one a conversation.
"""

# What is used later is imported at the start: no file can be opened then.
import encodings.unicode_escape  # noqa: F401 (jinja2 reads string literals with it)
import json
import resource
import signal
import sys
from typing import Any

import jinja2.debug
import jinja2.ext
import jinja2.sandbox

_MEMORY = 512 * 2**20
_CPU_S = 1.0


class _Refused(Exception):
    """By the template, with ``raise_exception``."""


class _TooLong(Exception):
    pass


def _refuse(message: object = "") -> None:
    raise _Refused(str(message))


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def compile_template(source: str) -> jinja2.Template:
    """With the settings that chat templates are written for."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    for name in ("lipsum", "cycler", "joiner"):
        del env.globals[name]
    del env.filters["random"]  # the same conversation has the same text
    env.globals["raise_exception"] = _refuse
    env.filters["tojson"] = _to_json
    return env.from_string(source)


def render(template: jinja2.Template, request: dict[str, Any]) -> dict[str, Any]:
    """The text, and the stop strings that the template has set."""
    context = template.new_context(request["variables"])
    parts, left = [], request["max_chars"]
    for part in template.root_render_func(context):
        left -= len(part)
        if left < 0:
            raise _TooLong
        parts.append(part)
    stop = context.get_exported().get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(s, str) and s for s in stop):
        raise TypeError("stop")
    return {"text": "".join(parts), "stop": stop}


def _answer(template: jinja2.Template, line: str) -> dict[str, Any]:
    try:
        return render(template, json.loads(line))
    except _Refused as e:
        return {"refused": str(e)[:1000]}
    except _TooLong:
        return {"failed": "too_long"}
    except MemoryError:
        return {"failed": "memory"}
    except Exception as e:  # whatever a template can do wrong
        return {"failed": type(e).__name__}


def _shut_in() -> None:
    """No more files, no other process, so much memory. Later bounds can only be smaller."""
    for what, most in (
        (resource.RLIMIT_AS, _MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 3),  # stdin, stdout, stderr
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(what, (most, most))


def main() -> None:
    """Read the template, say whether it can be used, answer until there is no more input."""
    sys.setrecursionlimit(500)
    _shut_in()
    signal.setitimer(signal.ITIMER_PROF, _CPU_S)  # the signal ends the process
    try:
        template = compile_template(json.loads(sys.stdin.readline())["template"])
        found: dict[str, Any] = {}
    except jinja2.TemplateSyntaxError as e:
        found = {"wrong": f"line {e.lineno}: {e.message}"}
    except Exception as e:
        found = {"wrong": f"it can't be compiled ({type(e).__name__})"}
    signal.setitimer(signal.ITIMER_PROF, 0)
    print(json.dumps(found), flush=True)
    if found:
        return
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, _CPU_S)
        answer = _answer(template, line)
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
