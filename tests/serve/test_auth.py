"""Keys: files and variables of them, what they let in, and how they are taken away."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os

import pytest

from xtdist.cli.main import main
from xtdist.config import ConfigError
from xtdist.serve import auth
from xtdist.serve.auth import KeyRing, LiveKeys, add_key, load_keys, new_key
from xtdist.serve.errors import ApiError


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def status_of(ring, key):
    try:
        ring.authenticate(f"Bearer {key}")
    except ApiError as e:
        return e.status
    return 200


def test_a_ring_names_the_key_that_was_used(tmp_path):
    keys = {name: new_key(name) for name in ("a", "b", "c")}
    ring = load_keys(write(tmp_path / "keys", *(line for _, line in keys.values())))
    for name, (key, line) in keys.items():
        assert ring.authenticate(f"Bearer {key}").name == name
        assert hashlib.sha256(key.encode()).hexdigest() in line
        assert key not in line
    assert KeyRing().authenticate(None).name == "anonymous"


def test_new_keys_are_long_and_all_different():
    keys = {new_key("a")[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(len(k) == len("xt-") + 43 for k in keys)  # 256 bits in base 64


@pytest.mark.parametrize("wrong", ["", " ", "x", "é", "\ud800", "x" * 257])
def test_other_keys_are_refused_alike(tmp_path, wrong):
    ring = load_keys(write(tmp_path / "keys", new_key("a")[1]))
    answers = []
    for header in (None, "Bearer xt-none", wrong, f"Bearer {wrong}", f"Basic {wrong}"):
        with pytest.raises(ApiError) as e:
            ring.authenticate(header)
        answers.append((e.value.status, e.value.body(), e.value.headers))
    assert answers[0][0] == 401
    assert all(a == answers[0] for a in answers)


def test_the_digest_of_nothing_lets_nobody_in(tmp_path):
    ring = load_keys(write(tmp_path / "keys", "a sha256:" + hashlib.sha256(b"").hexdigest()))
    assert [status_of(ring, k) for k in ("", " ", "x")] == [401] * 3


def test_every_key_is_compared_in_constant_time(tmp_path, monkeypatch):
    """The first, the last and an unknown key take the same comparisons (CVE-2025-59425)."""
    made = [new_key(str(i)) for i in range(5)]
    ring = load_keys(write(tmp_path / "keys", *(line for _, line in made)))
    counts = []
    compare = hmac.compare_digest

    def counted(a, b):
        counts[-1] += 1
        return compare(a, b)

    monkeypatch.setattr(auth.hmac, "compare_digest", counted)
    for key in (made[0][0], made[-1][0], "xt-unknown", ""):
        counts.append(0)
        status_of(ring, key)
    assert counts == [5] * 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xt-abcdef", "keys:1: write it as"),
        ("a sha256:ABC", "keys:1: write it as"),
        ("a b sha256:" + "0" * 64, "keys:1: write it as"),
        ("# none\n", "no key in it"),
        ("a sha256:" + "0" * 64 + "\nb sha256:" + "0" * 64, "keys:2: this name or key"),
        ("a sha256:" + "0" * 64 + "\na sha256:" + "1" * 64, "keys:2: this name or key"),
        ("a sha256:" + "0" * 64 + " rpm=3", "requests_per_min=N"),
        ("a sha256:" + "0" * 64 + " tokens_per_min=0", "tokens_per_min: a whole number"),
        ("a sha256:" + "0" * 64 + " tokens_per_min=xt-abcdef", "tokens_per_min: a whole number"),
        ("a sha256:" + "0" * 64 + " tokens_per_min=" + "9" * 5000, "a whole number"),
    ],
)
def test_a_wrong_key_file_is_refused_without_showing_what_it_holds(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as e:
        load_keys(write(tmp_path / "keys", text))
    assert "xt-abcdef" not in str(e.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for file in ("none", "bytes"):
        with pytest.raises(ConfigError, match="can't be read"):
            load_keys(str(tmp_path / file))


def test_a_line_can_say_what_its_key_may_use(tmp_path):
    key, line = new_key("a")
    words = "requests_per_min=600 concurrent_requests=8 tokens_per_min=none # more"
    found = load_keys(write(tmp_path / "keys", f"{line} {words}")).authenticate(f"Bearer {key}")
    assert found.quota == {
        "requests_per_min": 600,
        "concurrent_requests": 8,
        "tokens_per_min": None,
    }


def test_a_key_that_is_switched_off_is_told_so_and_no_other(tmp_path):
    (off, line), (on, other) = new_key("a"), new_key("b")
    ring = load_keys(write(tmp_path / "keys", f"{line} disabled", other))
    assert [status_of(ring, k) for k in (off, on, "xt-unknown")] == [403, 200, 401]


def test_keys_come_from_a_variable_too_beside_those_of_a_file(tmp_path):
    (a, line_a), (b, line_b), (c, line_c) = (new_key(n) for n in "abc")
    environ = {"KEYS": f"{line_a};{line_b} disabled"}
    ring = load_keys(env="KEYS", environ=environ)
    assert [status_of(ring, k) for k in (a, b, c)] == [200, 403, 401]
    file = write(tmp_path / "keys", line_c)
    both = load_keys(file, "KEYS", environ=environ)
    assert [status_of(both, k) for k in (a, b, c)] == [200, 403, 200]
    with pytest.raises(ConfigError, match=r"\$KEYS:1: this name or key is there already"):
        load_keys(write(tmp_path / "keys", line_a), "KEYS", environ=environ)
    with pytest.raises(ConfigError, match="variable OTHER is not set"):
        load_keys(env="OTHER", environ=environ)


def test_a_key_is_revoked_by_taking_its_line_away(tmp_path):
    (a, line_a), (b, line_b) = new_key("a"), new_key("b")
    file = tmp_path / "keys"
    live = LiveKeys(write(file, line_a))
    assert [status_of(live.ring(), k) for k in (a, b)] == [200, 401]
    write(file, line_a, line_b)
    assert [status_of(live.ring(), k) for k in (a, b)] == [200, 200]
    write(file, line_b)
    assert [status_of(live.ring(), k) for k in (a, b)] == [401, 200]
    replaced = tmp_path / "new"
    os.replace(write(replaced, line_a), file)
    assert [status_of(live.ring(), k) for k in (a, b)] == [200, 401]


@pytest.mark.parametrize("broken", ["xt-canary\n", "", None])
def test_a_broken_edit_keeps_the_keys_and_says_so_once(tmp_path, caplog, broken):
    key, line = new_key("a")
    file = tmp_path / "keys"
    live = LiveKeys(write(file, line))
    if broken is None:
        file.unlink()
    else:
        file.write_text(broken)
    with caplog.at_level(logging.INFO):
        assert [status_of(live.ring(), key) for _ in range(3)] == [200] * 3
    assert len(caplog.records) == 1
    assert "stay as they were" in caplog.text
    assert "xt-canary" not in caplog.text
    write(file, new_key("b")[1])
    assert status_of(live.ring(), key) == 401


def test_a_file_that_does_not_change_is_read_once(tmp_path, monkeypatch):
    live = LiveKeys(write(tmp_path / "keys", new_key("a")[1]))
    monkeypatch.setattr(auth, "load_keys", lambda *_, **__: pytest.fail("read again"))
    assert live.ring() is live.ring()


def test_a_new_key_is_added_to_a_file_that_only_its_owner_reads(tmp_path):
    file = tmp_path / "keys"
    before = os.umask(0o022)
    try:
        keys = [add_key(name, str(file)) for name in ("a", "b")]
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    ring = load_keys(str(file))
    assert [ring.authenticate(f"Bearer {k}").name for k in keys] == ["a", "b"]
    content = file.read_text()
    for name, message in (
        ("a", "key of 'a' already"),
        ("two words", "key name"),
        ("x#", "key name"),
    ):
        with pytest.raises(ConfigError, match=message):
            add_key(name, str(file))
    assert file.read_text() == content
    with pytest.raises(ConfigError, match="can't add a key"):
        add_key("a", str(tmp_path / "none" / "keys"))


def test_the_command_shows_a_key_once_and_its_line_lets_it_in(tmp_path, capsys):
    file = tmp_path / "keys"
    assert main(["serve", "--new-key", "a", "--api-keys-file", str(file)]) == 0
    kept = capsys.readouterr().out.strip()
    assert load_keys(str(file)).authenticate(f"Bearer {kept}").name == "a"
    assert main(["serve", "--new-key", "b"]) == 0
    shown = capsys.readouterr()
    line = shown.err.splitlines()[1]
    environ = {"KEYS": line}
    assert load_keys(env="KEYS", environ=environ).authenticate(f"Bearer {shown.out.strip()}")
    assert shown.out.strip() not in shown.err
    for wrong in (["weights"], ["--api-keys-file", str(file)], ["--config", "x.yaml"]):
        assert main(["serve", "--new-key", "a", *wrong]) == 2
    assert kept not in capsys.readouterr().err
