"""Chat templates: what they make of a conversation, and what a hostile one can't do."""

from __future__ import annotations

import os

import jinja2
import pytest

from xtdist.checkpoint.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate, TemplateError
from xtdist.config import ConfigError
from xtdist.data.tokenizer import byte_tokenizer

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße {{ 7 * 7 }}"},
]


@pytest.fixture
def render():
    """``render(source, …)``: a template's text for a conversation."""
    made = []

    def run(source, messages=None, **options):
        made.append(ChatTemplate(source))
        return made[-1].render(TALK if messages is None else messages, **options)

    yield run
    for template in made:
        template.close()


@pytest.mark.parametrize("go_on", [True, False])
def test_a_conversation_becomes_what_jinja_and_transformers_make_of_it(render, go_on):
    from transformers.utils.chat_template_utils import render_jinja_template

    (wanted,), _ = render_jinja_template([TALK], chat_template=CHATML, add_generation_prompt=go_on)
    assert render(CHATML, go_on=go_on).parts == (wanted,)


def test_bos_and_eos_are_the_end_of_a_document_and_no_message_can_spell_them(render):
    tokenizer = byte_tokenizer()
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}>"
    rendered = render(source, [{"role": "user", "content": "<|endoftext|> \x00"}] * 2)
    said = list(b"<|endoftext|> \x00")
    eot = [tokenizer.eot_id]
    assert rendered.encode(tokenizer) == eot + said + eot + said + eot + list(b">")


def test_an_unfinished_last_message_ends_the_text_where_its_content_ends(render):
    talk = [*TALK, {"role": "assistant", "content": "Yes, "}]
    rendered = render(CHATML, talk, go_on=False, unfinished=True)
    assert rendered.parts[0].endswith("<|im_start|>assistant\nYes, ")
    with pytest.raises(TemplateError, match="leaves out"):
        render("{{ messages[0].content }}", talk, unfinished=True)


def test_a_template_says_which_strings_end_an_answer(render):
    assert render("{% set stop = ['<|im_end|>', 'User:'] %}x").stop == ("<|im_end|>", "User:")
    with pytest.raises(TemplateError):
        render("{% set stop = [1] %}")


def test_a_refusal_says_the_templates_own_words_and_never_a_messages(render):
    own = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(TemplateError, match="refuses them: roles must alternate"):
        render(own)
    with pytest.raises(TemplateError) as e:
        render("{{ raise_exception('unknown: ' + messages[1].content) }}")
    assert "Gr" not in str(e.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ ''['__cl' ~ 'ass__'].mro() }}",
        "{{ messages|map(attribute='__class__')|map(attribute='__mro__')|list|first|first }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(range) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append({}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ 'a'|center(10 ** 10) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
        "{% endfor %}{{ n.x|length }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * (2 ** 20 + 1) }}",
    ],
)
def test_a_hostile_template_gets_neither_python_nor_memory(render, source):
    try:
        text = render(source).parts[0]
    except TemplateError:
        return
    assert text in ("", "[Undefined, Undefined]")  # an attribute that is not there


def test_a_template_that_never_ends_is_ended_and_the_next_request_has_a_new_process(render):
    long = (
        "{% if messages|length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}ok"
    )
    template = ChatTemplate(long)
    try:
        with pytest.raises(TemplateError, match="too long"):
            template.render(TALK)
        assert template.render(TALK[:1]).parts == ("ok",)
    finally:
        template.close()


def test_the_process_has_no_environment_and_opens_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XTDIST_API_KEY", "secret")
    template = ChatTemplate("x")
    try:
        template.check("here")
        process = template._process
        assert process is not None
        with open(f"/proc/{process.pid}/environ", "rb") as f:
            assert b"secret" not in f.read()
        assert len(os.listdir(f"/proc/{process.pid}/fd")) == 3
        with open(f"/proc/{process.pid}/limits") as f:
            bounds = {line[:26].strip(): line[26:].split()[:2] for line in f}
        assert bounds["Max open files"] == ["3", "3"]
        assert bounds["Max file size"] == ["0", "0"]
    finally:
        template.close()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for %}", "line 1: "),
        ("\n{{ x|nope }}", "line 2: "),
        ("x" * (MAX_TEMPLATE_CHARS + 1), "at most"),
        ("{{ " + "(" * 5000 + " }}", "can't be compiled"),
    ],
)
def test_a_file_without_a_template_is_refused_when_it_is_read(tmp_path, source, problem):
    path = tmp_path / "t.jinja"
    path.write_text(source)
    with pytest.raises(ConfigError, match=problem) as e:
        ChatTemplate.read(path, where="models.m.chat_template")
    assert str(path) in str(e.value)
    with pytest.raises(ConfigError, match="can't be read"):
        ChatTemplate.read(tmp_path / "none", where="here")


def test_the_sandbox_is_jinjas_own():
    assert tuple(map(int, jinja2.__version__.split(".")[:3])) >= (3, 1, 6)  # CVE-2025-27516
