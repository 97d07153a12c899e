"""Chat templates render as transformers' apply_chat_template renders them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from galley.chat.templates import ChatRenderer
from galley.errors import InvalidRequest, ModelError
from galley.loader.source import default_model
from galley.text import load_tokenizer
from tests.chat.families import CHATML, FAMILIES
from tests.text.vocabularies import trained_bpe

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'What\'s the weather? <now> & "then"',
            "parameters": {"type": "object", "properties": {"où": {"type": "string"}}},
        },
    }
]
_CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "weather", "arguments": {"où": "Paris", "days": 2}},
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "What is the capital of France?"}],
    "system": [
        {"role": "system", "content": "  Be brief. \n"},
        {"role": "user", "content": "Hi <b>&amp; 'quotes' \"double\""},
    ],
    "turns": [
        {"role": "user", "content": "日本語で 🤗"},
        {"role": "assistant", "content": " はい。\n\n"},
        {"role": "user", "content": "{{ not a template }} {% raw %}"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "content": '{"celsius": 21}', "tool_call_id": "call12345"},
        {"role": "tool", "content": "and wind"},
    ],
    "odd roles": [
        {"role": "user", "content": "a"},
        {"role": "skip", "content": "b"},
        {"role": "stop", "content": "c"},
        {"role": "user", "content": "d"},
    ],
}


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=trained_bpe(), **SPECIAL)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", [{}, {"tools": TOOLS}, {"enable_thinking": False}])
def test_families_render_as_in_transformers(
    theirs: PreTrainedTokenizerFast, family: str, conversation: str, options: dict[str, Any]
) -> None:
    messages = CONVERSATIONS[conversation]
    renderer = ChatRenderer({"default": FAMILIES[family]}, SPECIAL)
    tools = options.get("tools")
    kwargs = {name: value for name, value in options.items() if name != "tools"}
    for add in (True, False):
        want = _text_or_refusal(
            lambda add=add: theirs.apply_chat_template(
                messages,
                chat_template=FAMILIES[family],
                tokenize=False,
                add_generation_prompt=add,
                **options,
            )
        )
        got = _text_or_refusal(
            lambda add=add: renderer.render(
                messages, add_generation_prompt=add, tools=tools, kwargs=kwargs
            )
        )
        assert got == want


def _text_or_refusal(render: Callable[[], str]) -> tuple[str, str]:
    try:
        return "text", render()
    except TemplateError as error:
        return "refused", f"The chat template refused: {error.message}"
    except InvalidRequest as error:
        return "refused", error.message


@pytest.mark.parametrize("conversation", ["question", "system", "turns"])
def test_the_default_models_template(theirs: PreTrainedTokenizerFast, conversation: str) -> None:
    tokenizer = load_tokenizer(default_model())
    renderer = ChatRenderer.of(tokenizer)
    assert renderer is not None
    want = theirs.apply_chat_template(
        CONVERSATIONS[conversation],
        chat_template=tokenizer.chat_templates["default"],
        tokenize=False,
        add_generation_prompt=True,
    )
    got = renderer.render(CONVERSATIONS[conversation])
    assert got == want
    assert tokenizer.decode(tokenizer.encode(got, False), skip_special_tokens=False) == got


@pytest.mark.parametrize("family", ["chatml", "llama3", "qwen", "odds"])
@pytest.mark.parametrize("final", ["So far", " so good \n", "a CONTINUE b"])
def test_a_final_message_is_continued_as_in_transformers(
    theirs: PreTrainedTokenizerFast, family: str, final: str
) -> None:
    messages = [*CONVERSATIONS["question"], {"role": "assistant", "content": final}]
    want = theirs.apply_chat_template(
        messages, chat_template=FAMILIES[family], tokenize=False, continue_final_message=True
    )
    renderer = ChatRenderer({"default": FAMILIES[family]}, SPECIAL)
    got = renderer.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert got == want
    assert got.rstrip().endswith(final.strip())


def test_documents_and_variables_reach_the_template() -> None:
    template = "{% for d in documents %}[{{ d.title }}: {{ d.text }}]{% endfor %}{{ mood }}"
    renderer = ChatRenderer({"default": template}, {})
    documents = [{"title": "T", "text": "x"}]
    text = renderer.render(CONVERSATIONS["question"], documents=documents, kwargs={"mood": "calm"})
    assert text == "[T: x]calm"


def test_developers_are_the_system_where_the_template_knows_none() -> None:
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": "Ho"},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
    ]
    plain = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
    looping = (
        "{% for m in messages %}[{{ m.role }}:{% for p in m.content %}{{ p.text }};{% endfor %}]"
        "{% endfor %}"
    )
    knowing = plain + "{% if false and messages[0].role == 'developer' %}{% endif %}"
    for source, want in (
        (plain, "[system:Be brief.\n\nBe kind.][user:Hi][assistant:Ho]"),
        (looping, "[system:Be brief.;Be kind.;][user:Hi;][assistant:Ho;]"),
        (knowing, "[user:Hi][developer:Be brief.][assistant:Ho][system:Be kind.]"),
    ):
        assert ChatRenderer({"default": source}, {}).render(talk) == want
    empty = [{"role": "developer", "content": ""}, *talk]
    want = "[system:Be brief.\n\nBe kind.][user:Hi][assistant:Ho]"
    assert ChatRenderer({"default": plain}, {}).render(empty) == want


def test_what_the_caller_gave_is_not_changed() -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": [_CALL], "reasoning": "r"}
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, message]
    copy = [dict(m) for m in messages]
    ChatRenderer({"default": CHATML}, {}).render(
        messages, add_generation_prompt=False, continue_final_message=True
    )
    assert messages == copy


# ---------------------------------------------------------------------------- which template


def test_tools_choose_the_template_for_tools() -> None:
    templates = {"default": "plain", "tool_use": "tools", "rag": "docs"}
    renderer = ChatRenderer(templates, {})
    messages = CONVERSATIONS["question"]
    assert renderer.render(messages) == "plain"
    assert renderer.render(messages, tools=TOOLS) == "tools"
    assert renderer.render(messages, tools=[]) == "plain"
    assert renderer.render(messages, chat_template="rag") == "docs"
    assert renderer.render(messages, chat_template="own {{ messages|length }}") == "own 1"
    assert ChatRenderer({"rag": "docs"}, {}).render(messages) == "docs"


class _Carrier:
    """A tokenizer's names and templates."""

    bos_token, eos_token, unk_token, pad_token = "<s>", None, None, None

    def __init__(self, templates: dict[str, str]) -> None:
        self.chat_templates = templates


def _renderer(templates: dict[str, str], chosen: str | None) -> ChatRenderer | None:
    return ChatRenderer.of(_Carrier(templates), chosen)  # type: ignore[arg-type]


def test_the_flag_names_a_file_a_template_or_one_of_the_models(tmp_path: Path) -> None:
    own = {"default": "own", "rag": "docs"}
    path = tmp_path / "t.jinja"
    path.write_text("{{ bos_token }}file 日", encoding="utf-8")
    messages = CONVERSATIONS["question"]
    for chosen, want in (
        (None, "own"),
        (str(path), "<s>file 日"),
        ("{{ bos_token }}!", "<s>!"),
        ("two\nlines", "two\nlines"),
        ("rag", "docs"),
    ):
        renderer = _renderer(own, chosen)
        assert renderer is not None
        assert renderer.render(messages) == want
    assert _renderer({}, None) is None


@pytest.mark.parametrize("chosen", ["no-such-file.jinja", "/", "x" * 5000])
def test_a_flag_that_names_nothing_is_an_error(chosen: str) -> None:
    with pytest.raises(ModelError, match="--chat-template") as caught:
        _renderer({"default": "own"}, chosen)
    assert caught.value.field == "chat_template"


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Garbage of earlier tests is not finalized where the stack is full: that would fail."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("source", ["{% for", "{{ x", "{% odd %}", "{{" + "(" * 5000])
def test_a_template_that_is_no_jinja_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="'default' is not valid jinja"):
        ChatRenderer({"default": source}, {})
    renderer = ChatRenderer({"default": "fine"}, {})
    with pytest.raises(InvalidRequest, match="not valid jinja") as caught:
        renderer.render(CONVERSATIONS["question"], chat_template=source)
    assert caught.value.field == "chat_template"


# ---------------------------------------------------------------------------- bad requests


def _render(template: str = CHATML, messages: Any = None, **options: Any) -> str:
    chosen = CONVERSATIONS["question"] if messages is None else messages
    return ChatRenderer({"default": template}, SPECIAL).render(chosen, **options)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ raise_exception('Roles must alternate!') }}", "Roles must alternate!"),
        ("{{ messages[7].content }}", "list object has no element 7"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ undefined_thing.x }}", "undefined_thing"),
        ("{{ messages | nofilter }}", "nofilter"),
    ],
)
def test_a_template_that_refuses_is_the_callers_error(template: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        _render("x", chat_template=template)


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_variables_that_are_fields_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"must not set {name}") as caught:
        _render(kwargs={name: []})
    assert caught.value.field == "chat_template_kwargs"


def test_continuing_and_beginning_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="exclude each other"):
        _render(add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize("content", ["", None, []])
def test_nothing_to_continue_is_an_error(content: Any) -> None:
    messages = [{"role": "assistant", "content": content}]
    with pytest.raises(InvalidRequest, match="no text to continue"):
        _render(messages=messages, add_generation_prompt=False, continue_final_message=True)


def test_a_template_that_drops_the_final_message_cannot_continue_it() -> None:
    with pytest.raises(InvalidRequest, match="changes the final message"):
        _render("fixed", add_generation_prompt=False, continue_final_message=True)
