"""Messages as clients send them, as templates get them."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from galley.chat.content_format import detect_content_format
from galley.chat.messages import prepare
from galley.chat.sandbox import ChatEnvironment
from galley.chat.templates import ChatRenderer
from galley.errors import InvalidRequest, Unsupported
from tests.chat.families import FAMILIES

PARTS = [
    {"type": "text", "text": "one"},
    "two",
    {"type": "input_text", "text": "three"},
    {"type": "output_text", "text": "four"},
    {"type": "refusal", "refusal": "five"},
]


@pytest.mark.parametrize("message", [{"role": "user"}, {"role": "system", "content": None}])
def test_what_says_nothing_is_refused(message: dict[str, Any]) -> None:
    talk = [{"role": "user", "content": "Hi"}, message]
    with pytest.raises(InvalidRequest, match=r"messages\[1\]\.content is required"):
        prepare(talk, "string")
    assert prepare([{"role": "user", "content": ""}], "string")[0]["content"] == ""
    assert prepare([{"role": "assistant"}], "string")[0]["content"] == ""


def test_parts_become_one_text_or_a_list() -> None:
    message = {"role": "user", "content": PARTS, "name": "kept"}
    words = ["one", "two", "three", "four", "five"]
    assert prepare([message], "string") == [
        {"role": "user", "content": "\n".join(words), "name": "kept"}
    ]
    assert prepare([message], "openai") == [
        {
            "role": "user",
            "content": [{"type": "text", "text": word} for word in words],
            "name": "kept",
        }
    ]


@pytest.mark.parametrize(
    ("content", "text", "parts"),
    [
        ("hi", "hi", [{"type": "text", "text": "hi"}]),
        ("", "", [{"type": "text", "text": ""}]),
        (None, "", []),
        ([], "", []),
    ],
)
def test_plain_and_absent_content(content: Any, text: str, parts: list[Any]) -> None:
    message = {"role": "assistant", "content": content}
    assert prepare([message], "string")[0]["content"] == text
    assert prepare([message], "openai")[0]["content"] == parts
    if content is None:
        assert prepare([{"role": "assistant"}], "string")[0]["content"] == ""


def test_arguments_of_tool_calls_become_objects() -> None:
    def parsed(arguments: Any) -> Any:
        call = {"id": "1", "function": {"name": "f", "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        return prepare([message], "string")[0]["tool_calls"][0]["function"]["arguments"]

    assert parsed('{"a": [1, "ö"]}') == {"a": [1, "ö"]}
    assert parsed({"a": 1}) == {"a": 1}
    assert parsed("") == {}
    assert parsed(None) == {}
    for broken in ("{x", "[1]", "5", [1], 5):
        assert parsed(broken) == {}
    message = {"role": "assistant", "content": "x", "tool_calls": None}
    assert "tool_calls" not in prepare([message], "string")[0]


def test_reasoning_goes_by_every_name() -> None:
    for name in ("reasoning", "reasoning_content", "thinking"):
        message = prepare([{"role": "assistant", "content": "x", name: "because"}], "string")[0]
        assert message["reasoning"] == message["reasoning_content"] == "because"


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "no list": ("hi", InvalidRequest, "messages must be a list"),
    "empty": ([], InvalidRequest, "at least one message"),
    "not an object": ([3], InvalidRequest, r"messages\[0\] must be an object"),
    "no role": ([{"content": "x"}], InvalidRequest, r"messages\[0\]\.role"),
    "empty role": ([{"role": "", "content": "x"}], InvalidRequest, r"messages\[0\]\.role"),
    "role is a number": ([{"role": 1, "content": "x"}], InvalidRequest, r"\.role"),
    "content is a number": ([{"role": "user", "content": 5}], InvalidRequest, r"\.content"),
    "content is an object": (
        [{"role": "user", "content": {"type": "text"}}],
        InvalidRequest,
        r"\[0\]\.content must be",
    ),
    "part is a number": ([{"role": "user", "content": [5]}], InvalidRequest, r"content\[0\]"),
    "part without type": (
        [{"role": "user", "content": ["a", {"text": "x"}]}],
        InvalidRequest,
        r"content\[1\]",
    ),
    "part without text": (
        [{"role": "user", "content": [{"type": "text"}]}],
        InvalidRequest,
        r"content\[0\]\.text must be a text",
    ),
    "image": (
        [
            {"role": "user", "content": "x"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
        ],
        Unsupported,
        r"messages\[1\]\.content\[0\]: parts of type image_url",
    ),
    "audio": (
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        Unsupported,
        "input_audio",
    ),
    "calls": (
        [{"role": "assistant", "tool_calls": {"id": 1}}],
        InvalidRequest,
        "tool_calls must be a list",
    ),
    "call without function": (
        [{"role": "assistant", "tool_calls": [{"id": 1}]}],
        InvalidRequest,
        r"tool_calls\[0\]\.function",
    ),
    "an object of ours": (
        [{"role": "user", "content": "x", "extra": object()}],
        InvalidRequest,
        "p",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_message_is_refused_by_its_place(case: str) -> None:
    messages, kind, says = REFUSED[case]
    with pytest.raises(kind, match=says) as caught:
        prepare(messages, "string")
    assert caught.value.field == "messages"


# ---------------------------------------------------------------------------- content format

LOOPS = {
    "dot": "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
    "brackets": "{% for m in messages %}{% for p in m['content'] %}{{ p }}{% endfor %}{% endfor %}",
    "filtered": (
        "{% for m in messages %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}"
        "{{ p.text }}{% endfor %}{% endfor %}"
    ),
    "variable": (
        "{% for m in messages %}{% set parts = m['content'] %}{% for p in parts %}{{ p.text }}"
        "{% endfor %}{% endfor %}"
    ),
    "macro": "{% macro show(content) %}{% for p in content %}{{ p }}{% endfor %}{% endmacro %}",
    "either": (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("case", LOOPS)
def test_a_loop_over_content_wants_parts(case: str) -> None:
    wanted = "either" if case == "either" else "openai"
    assert detect_content_format(jinja2.Environment().parse(LOOPS[case])) == wanted


def test_a_template_that_reads_either_gets_what_the_caller_has() -> None:
    """The result of a tool is one text: templates of GLM and Mistral print it as it is."""
    parts = [{"type": "text", "text": "a"}, "b"]
    roles = {"user": parts, "assistant": "c", "tool": parts}
    messages = [{"role": role, "content": content} for role, content in roles.items()]
    user, assistant, tool = prepare(messages, "either")
    assert user["content"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert (assistant["content"], tool["content"]) == ("c", "a\nb")


@pytest.mark.parametrize("family", FAMILIES)
def test_no_such_loop_wants_text(family: str) -> None:
    assert detect_content_format(ChatEnvironment().parse(FAMILIES[family])) == "string"


def test_the_format_can_be_forced() -> None:
    show = {"default": "{{ messages[0].content | tojson }}"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]
    assert ChatRenderer(show, {}).render(messages) == '"a\\nb"'
    parts = '[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]'
    assert ChatRenderer(show, {}, "openai").render(messages) == parts
    assert ChatRenderer({"default": LOOPS["dot"]}, {}).render(messages) == "ab"
    final = [{"role": "assistant", "content": "go on"}]
    renderer = ChatRenderer({"default": LOOPS["dot"] + "END"}, {})
    text = renderer.render(final, add_generation_prompt=False, continue_final_message=True)
    assert text == "go on"
