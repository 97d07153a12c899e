"""A conversation as the text of a prompt: `ChatRenderer.render`.

Holds a checkpoint's chat templates and renders messages with one of them, as Hugging Face's
`apply_chat_template` does. Knows no HTTP and no token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

from galley.chat.content_format import ContentFormat
from galley.chat.messages import Message, developer_as_system, prepare
from galley.chat.sandbox import ChatEnvironment, Template, TemplateLimit, failure
from galley.chat.template_process import TemplateFailure, TemplateProcess, Trial
from galley.errors import InvalidRequest, ModelError
from galley.text import Tokenizer

#: Names that a request's chat_template_kwargs must not set: the request has fields for them.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
#: Largest conversation that is rendered in this process: messages, items of all its lists and
#: objects, and characters. A template that compares all messages with all takes some hundredths
#: of a second for so many.
MAX_QUICK_MESSAGES, MAX_QUICK_ITEMS, MAX_QUICK_CHARS = 500, 10_000, 1 << 20
#: Largest number in chat_template_kwargs, which a template may take for a count, in this process.
MAX_QUICK_NUMBER = 1 << 20
#: Put after the final message's text to find where that ends in the prompt.
_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "

_USER = {"role": "user", "content": "Hello"}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
#: Messages and tools that a checkpoint's template is tried with.
_TRIALS: tuple[tuple[list[Message], list[dict[str, Any]] | None], ...] = (
    ([_USER], None),
    (
        [{"role": "system", "content": "s"}, _USER, {"role": "assistant", "content": "a"}, _USER],
        None,
    ),
    (
        [
            _USER,
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": "1", "tool_call_id": "c1"},
        ],
        [_TOOL],
    ),
)


class ChatRenderer:
    """The templates of one model.

    A model's own templates run in this process, unless a conversation is very large; those that
    requests bring run in a child process with limits.

    Attributes:
        name: of the template that serves when a request asks for none ("default").
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        content_format: Literal["auto", "string", "openai"] = "auto",
        process: TemplateProcess | None = None,
    ) -> None:
        """
        Args:
            templates: name → jinja source; "default" is the plain one, "tool_use" serves requests
                with tools, if there is one.
            special_tokens: variables that every template sees: bos_token, eos_token ….
            content_format: how content is given to a template; "auto" looks at the template.
            process: runs templates under limits; by default one of this renderer's own.

        Raises:
            ModelError: a template that is not valid jinja.
        """
        assert templates, "a renderer without a template cannot render"
        self._special_tokens = dict(special_tokens)
        self._content_format = content_format
        self._process = process or TemplateProcess()
        self._inspect = lru_cache(maxsize=16)(self._process.inspect)
        self._sources = dict(templates)
        self._templates: dict[str, Template] = {}
        environment = ChatEnvironment()
        for name, source in templates.items():
            try:
                self._templates[name] = Template(environment, source)
            except ValueError as error:
                raise ModelError(
                    f"chat template {name!r} is not valid jinja: {str(error)[:500]}",
                    field="chat_template",
                ) from None
        self.name = "default" if "default" in self._templates else next(iter(self._templates))

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        content_format: Literal["auto", "string", "openai"] = "auto",
        process: TemplateProcess | None = None,
    ) -> ChatRenderer | None:
        """The renderer of a model, None if neither the model nor `chat_template` has a template.

        Args:
            chat_template: --chat-template: a file, the template itself, or the name of one of the
                model's templates; wins over the model's own.
            process: as in the constructor.
        """
        templates = tokenizer.chat_templates
        if chat_template is not None:
            templates = {"default": read_template(chat_template, templates)}
        if not templates:
            return None
        special = {
            "bos_token": tokenizer.bos_token,
            "eos_token": tokenizer.eos_token,
            "unk_token": tokenizer.unk_token,
            "pad_token": tokenizer.pad_token,
        }
        present = {name: token for name, token in special.items() if token is not None}
        return cls(templates, present, content_format, process)

    def start_trial(self) -> Callable[[], None]:
        """Start to run the model's templates under limits, in forks of this process.

        Returns:
            A function that waits for their end. It raises ModelError for a template that exceeds a
            limit; one that refuses these messages is accepted, since it may take others.
        """
        trials = {name: Trial(partial(self._try_out, name)) for name in self._sources}

        def wait() -> None:
            for name, trial in trials.items():
                try:
                    trial.wait()
                except TemplateLimit as error:
                    raise ModelError(
                        f"chat template {name!r} is refused: {error}", field="chat_template"
                    ) from None

        return wait

    def _try_out(self, name: str) -> None:
        template = self._templates[name]
        for messages, tools in _TRIALS:
            variables = {
                **self._special_tokens,
                "messages": prepare(messages, template.content_format),
                "tools": tools,
                "documents": None,
                "add_generation_prompt": True,
            }
            try:
                template.render(variables)
            except (MemoryError, TemplateLimit):
                raise
            except Exception:  # noqa: BLE001 - a template may refuse these messages
                pass

    def is_quick(
        self,
        messages: list[Message],
        *,
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, str]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> bool:
        """Whether `render` takes some milliseconds; otherwise it blocks for a child process."""
        own = chat_template is None or chat_template in self._templates
        return own and _is_small(messages, (messages, tools, documents), kwargs or {})

    def render(
        self,
        messages: list[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, str]] | None = None,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt's text. It carries its special tokens: tokenise it without adding any.

        Args:
            add_generation_prompt: end with what starts an answer.
            continue_final_message: end inside the final message, so that it is continued.
            chat_template: the request's own template, or the name of one of the model's.
            tools, documents: given to the template as they are.
            kwargs: further template variables.

        Raises:
            InvalidRequest: not messages, a bad template, one that refuses these messages, or one
                that exceeds a limit, which the message names.
            Unsupported: content that is no text.
        """
        for name in kwargs or ():
            if name in RESERVED:
                raise InvalidRequest(
                    f"chat_template_kwargs must not set {name}: the request has a field for it.",
                    field="chat_template_kwargs",
                )
        if add_generation_prompt and continue_final_message:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other.",
                field="continue_final_message",
            )
        source = self._choose(chat_template, bool(tools))
        own = self._templates.get(source)
        content_format, knows_developer = self._traits(source)
        prepared = prepare(messages, content_format)
        if not knows_developer:
            prepared = developer_as_system(prepared, content_format)
        final = _mark_final_text(prepared[-1]) if continue_final_message else None
        variables = {
            **self._special_tokens,
            **(kwargs or {}),
            "messages": prepared,
            "tools": tools,
            "documents": documents,
            "add_generation_prompt": add_generation_prompt,
        }
        quick = _is_small(messages, (messages, tools, documents), kwargs or {})
        text = self._run(source, own if quick else None, variables)
        return text if final is None else _cut_at_mark(text, final)

    def _choose(self, chat_template: str | None, has_tools: bool) -> str:
        """The name of a template of the model, or the source of a request's."""
        if chat_template is not None:
            return chat_template
        return "tool_use" if has_tools and "tool_use" in self._templates else self.name

    def _traits(self, name_or_source: str) -> tuple[ContentFormat, bool]:
        """(content format, whether the template knows developers)."""
        own = self._templates.get(name_or_source)
        if own is not None:
            detected, knows_developer = own.content_format, own.knows_developer
        else:
            try:
                detected, knows_developer = self._inspect(name_or_source)
            except (TemplateFailure, TemplateLimit) as error:
                raise InvalidRequest(
                    f"chat_template is not valid jinja: {str(error)[:500]}", field="chat_template"
                ) from None
        wanted = self._content_format
        return detected if wanted == "auto" else wanted, knows_developer

    def _run(
        self, name_or_source: str, template: Template | None, variables: dict[str, Any]
    ) -> str:
        """Render with `template` in this process; None: in the child process."""
        try:
            if template is None:
                source = self._sources.get(name_or_source, name_or_source)
                return self._process.render(source, variables)
            return template.render(variables)
        except (TemplateFailure, TemplateLimit) as error:
            message = str(error)
        except Exception as error:  # noqa: BLE001 - a template is a program and can raise anything
            message = failure(error)
        raise InvalidRequest(f"The chat template refused: {message:.500}", field="messages")


def _is_small(messages: list[Message], values: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a template that has been tried can take these variables in this process."""
    if isinstance(messages, list) and len(messages) > MAX_QUICK_MESSAGES:
        return False
    items, chars = 0, 0
    stack: list[Any] = [*values, *kwargs.values()]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, Mapping):
            items += len(value)
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            items += len(value)
            stack.extend(value)
        if items > MAX_QUICK_ITEMS or chars > MAX_QUICK_CHARS:
            return False
    numbers = (value for value in kwargs.values() if isinstance(value, int | float))
    return all(abs(number) <= MAX_QUICK_NUMBER for number in numbers)


def read_template(value: str, named: Mapping[str, str]) -> str:
    """The source that --chat-template means: a file's, itself, or one of the model's by name.

    Raises ModelError if it is none of these or the file cannot be read.
    """
    if value in named:
        return named[value]
    if any(sign in value for sign in "{}\n"):
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise ModelError(
            f"--chat-template {value:.200}: not a readable file, and not a template: {why}",
            field="chat_template",
        ) from None


def _mark_final_text(message: Message) -> str:
    """Put the mark after the final message's text and return the text."""
    content = message["content"]
    if isinstance(content, str) and content:
        message["content"] = content + _END_MARK
        return content
    if isinstance(content, list) and content:
        text = content[-1]["text"]
        content[-1] = {**content[-1], "text": text + _END_MARK}
        return text
    raise InvalidRequest(
        "continue_final_message is set, but the final message has no text to continue.",
        field="continue_final_message",
    )


def _cut_at_mark(text: str, final: str) -> str:
    offset = text.rfind(_END_MARK.strip())
    if offset < 0 or final.strip() not in text:
        raise InvalidRequest(
            "continue_final_message is set, but the chat template changes the final message.",
            field="continue_final_message",
        )
    if text.startswith(_END_MARK, offset):
        return text[:offset]
    # The template has trimmed the message, so the text before the mark is trimmed too.
    return text[:offset].rstrip()
