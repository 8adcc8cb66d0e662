"""``xtdist generate --url``: the same options as with weights, and the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulty import serving
from tiny_server import save_tiny

from xtdist.cli.generate import KEY
from xtdist.cli.main import main
from xtdist.serve.auth import LiveKeys, new_key
from xtdist.serve.backend import Backend
from xtdist.serve.config import AppConfig, ServedModel
from xtdist.serve.gate import Gate
from xtdist.serve.loading import load_served
from xtdist.serve.routes import make_app

PROMPT = "import numpy as "
OPTIONS: dict[str, tuple[str, ...]] = {
    "greedy": ("--repetition-penalty", "1.3"),
    "sample": ("--seed", "3", "--top-k", "40", "--min-p", "0.01", "--temperature", "1.2"),
    "beam": ("--num-beams", "3", "--length-penalty", "0.6"),
    "contrastive": ("--alpha", "0.2", "--beta", "0.9"),
    "contrastive-search": ("--penalty-alpha", "0.4", "--top-k", "3"),
}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """(exit code, stdout, stderr) of one command line."""
    monkeypatch.delenv(KEY, raising=False)

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["generate", *map(str, words)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("weights")
    return save_tiny(folder / "expert", seed=1), save_tiny(folder / "amateur", seed=2)


@contextmanager
def server(
    weights: Path, amateur: Path | None = None, *, keys: LiveKeys | None = None
) -> Iterator[str]:
    """The URL of a server as a replica would make it."""
    spec = ServedModel(
        name="tiny", weights=str(weights), amateur=str(amateur) if amateur is not None else None
    )
    config = AppConfig(models=(spec,))
    served = load_served(spec, config)
    backend = Backend(limits=config.limits, gate=Gate(keys or LiveKeys()), models=[served])
    try:
        with serving(make_app(backend)) as url:
            yield url
    finally:
        served.thread.stop()


@pytest.fixture(scope="module")
def url(folders: tuple[Path, Path]) -> Iterator[str]:
    with server(*folders) as found:
        yield found


def test_a_server_writes_what_the_weights_write(
    generate: Command, folders: tuple[Path, Path], url: str
) -> None:
    expert, amateur = folders
    for method, options in OPTIONS.items():
        words = ("--prompt", PROMPT, "--method", method, *options, "--max-tokens", 24)
        local = generate(expert, "--amateur", amateur, *words)
        assert local[0] == 0
        assert len(local[1]) > len(PROMPT) + len(method) + 12
        for stream in ("--stream", "--no-stream"):
            assert generate("--url", url, *words, stream) == local


def test_masks_are_filled_alike(generate: Command, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "nar", seed=3, objective="nonautoregressive")
    with server(folder) as url:
        words = ("--prompt", "def ", "--seed", 3, "--max-tokens", 20, "--steps", 5)
        for more in ((), ("--suffix", " return x\n", "--temperature", "1.1"), ("--no-stream",)):
            local = generate(folder, *words, *more)
            assert local[0] == 0
            assert local[1].startswith("--- mask-predict\ndef ")
            assert generate("--url", url, *words, *more) == local


def test_a_stop_ends_both_in_the_same_place(
    generate: Command, folders: tuple[Path, Path], url: str
) -> None:
    words = ("--prompt", PROMPT, "--method", "greedy", "--max-tokens", 40)
    whole = generate(folders[0], *words)[1].split("\n", 1)[1].removeprefix(PROMPT)
    words = (*words, "--stop", whole[9:12], "--stop", "never there")
    code, out, _ = generate(folders[0], *words)
    assert code == 0
    end = whole.index(whole[9:12])
    assert out == f"--- greedy\n{PROMPT}{whole[:end]}\n"
    assert generate("--url", url, *words)[1] == out


def test_all_that_the_model_can_do_is_shown_if_no_method_is_named(
    generate: Command, folders: tuple[Path, Path], url: str
) -> None:
    local = generate(folders[0], "--amateur", folders[1], "--prompt", PROMPT)
    assert generate("--url", url, "--prompt", PROMPT, "--model", "tiny") == local
    assert local[1].count("--- ") == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--url", "URL", "--model", "other"), "it has no 'other'; name one of tiny"),
        (("--url", "URL", "--amateur", "x"), "--amateur: the server decides that"),
        (("--url", "URL", "--dtype", "int8"), "--dtype: the server decides that"),
        (("--url", "URL", "weights"), "give either weights or --url"),
        ((), "give either weights or --url"),
        (("weights", "--model", "x"), "--model: it is for --url"),
        (("weights", "--api-key-file", "x"), "--api-key-file: it is for --url"),
        (("--url", "URL", "--method", "beam", "--top-p", "0.5"), "--top-p: beam would not use it"),
        (("--url", "URL", "--steps", "5"), "would not use it; leave it out, or add --method mask"),
        (("--url", "URL", "--temperature", "-1"), "temperature"),
        (("--url", "URL", "--max-tokens", "9999"), "max_tokens: at most 1024 tokens here"),
        (("--url", "URL", "--max-tokens", "90"), "prompt: 16 tokens and max_tokens=90 exceed"),
        (("--url", "nowhere"), "url: got 'nowhere'"),
        (("--url", "URL", "--api-key-file", "/no/such"), "--api-key-file: /no/such can't be read"),
    ],
)
def test_what_can_not_be_honoured_is_said(
    generate: Command, url: str, words: tuple[str, ...], said: str
) -> None:
    given = [url if w == "URL" else w for w in words]
    code, _, error = generate("--prompt", PROMPT, *given)
    assert code == 2
    assert error.startswith("error: ")
    assert said in error


def test_the_key_comes_from_a_file_or_the_environment_and_is_shown_nowhere(
    generate: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, line = new_key("me")
    (tmp_path / "keys").write_text(line)
    (tmp_path / "key").write_text(key + "\n")
    (tmp_path / "two").write_text(f"{key} {key}")
    with server(folders[0], keys=LiveKeys(str(tmp_path / "keys"))) as url:
        words = ("--url", url, "--prompt", "x", "--method", "greedy", "--max-tokens", 4)
        code, out, error = generate(*words)
        assert (code, out) == (2, "")
        assert "API key" in error
        with_file = generate(*words, "--api-key-file", tmp_path / "key")
        assert with_file[0] == 0
        code, _, error = generate(*words, "--api-key-file", tmp_path / "two")
        assert code == 2
        assert "one key and no more" in error
        assert key not in error
        monkeypatch.setenv(KEY, key)
        assert generate(*words) == with_file


def test_control_characters_do_not_reach_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from xtdist.cli import generate as verb

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    verb._write("a\x1b[2Jb\x9b\té\n")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x9b\té\n"
