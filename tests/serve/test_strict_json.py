import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xtdist.serve.errors import ApiError
from xtdist.serve.strict_json import parse_object

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(text, values, max_size=5), st.booleans())
def test_what_the_standard_allows_is_read_like_the_standard_reader(tree, ascii_only):
    raw = json.dumps(tree, ensure_ascii=ascii_only).encode()
    assert parse_object(raw, max_depth=100) == json.loads(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\xff"}',
        b'{"a": 01}',
        b'{"a": 1} {"b": 2}',
        b"\xef\xbb\xbf{}",
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-16-le"),
        b'{"a": "\x00"}',
    ],
)
def test_what_it_does_not_allow_is_refused(raw):
    with pytest.raises(ApiError) as e:
        parse_object(raw, max_depth=100)
    assert (e.value.status, e.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_nesting_is_bounded_before_it_is_followed(opening):
    with pytest.raises(ApiError, match="nested deeper than 8"):
        parse_object(opening * 100_000, max_depth=8)


def test_brackets_inside_strings_are_not_nesting():
    raw = json.dumps({"a": '[[[["\\"{{{{' * 10}).encode()
    assert parse_object(raw, max_depth=1) == json.loads(raw)


def test_a_pair_of_surrogate_escapes_is_one_character():
    assert parse_object(b'{"a": "\\ud83d\\ude00"}', max_depth=1) == {"a": "\N{GRINNING FACE}"}


def test_messages_never_repeat_the_input():
    with pytest.raises(ApiError) as e:
        parse_object(b'{"canary": 1, "canary": 2}', max_depth=3)
    assert "canary" not in json.dumps(e.value.body())


def test_a_long_run_of_escaped_quotes_is_answered_without_stepping_back():
    code = """if True:
        from xtdist.serve.errors import ApiError
        from xtdist.serve.strict_json import parse_object

        for end in (b"", b"\\\\", b'"', b'"}', b'x"}'):
            raw = b'{"a": "' + b'\\\\"' * 100_000 + end
            try:
                print(len(parse_object(raw, max_depth=9)["a"]))
            except ApiError as e:
                print(e.code)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=True, text=True
    )
    assert done.stdout.split() == ["invalid_json"] * 3 + ["100000", "100001"]
