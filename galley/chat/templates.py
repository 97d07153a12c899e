"""A conversation as the text of a prompt: `ChatRenderer.render`.

Holds a checkpoint's chat templates and renders messages with one of them, as Hugging Face's
`apply_chat_template` does. Knows no HTTP and no token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from galley.chat.budget import MAX_STEPS, MoreSteps, TemplateLimit
from galley.chat.content_format import detect_content_format
from galley.chat.messages import ContentFormat, Message, developer_as_system, prepare
from galley.chat.sandbox import ChatEnvironment
from galley.errors import GalleyError, InvalidRequest, ModelError
from galley.text import Tokenizer

#: What a request's chat_template_kwargs must not set: the request has fields for it.
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
#: Longest template, in characters; real ones have up to 30,000.
MAX_SOURCE = 1 << 16
#: Largest syntax tree, which says how long it takes to compile.
MAX_NODES = 20_000
#: Put after the final message's text to find where that ends in the prompt.
_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class Template:
    """One compiled template, the content format that it wants, and whether it knows developers."""

    def __init__(self, environment: ChatEnvironment, source: str) -> None:
        """Raises ValueError for a source that is not valid jinja or cannot be compiled."""
        self._environment = environment
        self.knows_developer = "'developer'" in source or '"developer"' in source
        if len(source) > MAX_SOURCE:
            raise ValueError(f"it is longer than {MAX_SOURCE} characters")
        try:
            tree = environment.parse(source)
            if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
                raise ValueError(f"it has more than {MAX_NODES} parts")
            self.content_format: ContentFormat = detect_content_format(tree)
            self._compiled: jinja2.Template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise ValueError(str(error)) from None
        except Exception as error:  # noqa: BLE001 - jinja compiles it to Python, which has limits too
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def render(self, variables: dict[str, Any], steps: int) -> str:
        return self._environment.render(self._compiled, variables, steps)


class ChatRenderer:
    """The templates of one model.

    Attributes:
        name: of the template that serves when a request asks for none ("default").
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        special_tokens: Mapping[str, str],
        content_format: Literal["auto", "string", "openai"] = "auto",
    ) -> None:
        """
        Args:
            templates: name → jinja source; "default" is the plain one, "tool_use" serves requests
                with tools, if there is one.
            special_tokens: variables that every template sees: bos_token, eos_token ….
            content_format: how content is given to a template; "auto" looks at the template.

        Raises:
            ModelError: a template that is not valid jinja, or that does not end.
        """
        assert templates, "a renderer without a template cannot render"
        self._environment = ChatEnvironment()
        self._special_tokens = dict(special_tokens)
        self._content_format = content_format
        self._compile_given = lru_cache(maxsize=16)(self._compile)
        self._templates: dict[str, Template] = {}
        for name, source in templates.items():
            try:
                self._templates[name] = self._compile(source)
            except ValueError as error:
                raise ModelError(
                    f"chat template {name!r} is not valid jinja: {str(error)[:500]}",
                    field="chat_template",
                ) from None
            self._try_out(name)
        self.name = "default" if "default" in self._templates else next(iter(self._templates))

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        content_format: Literal["auto", "string", "openai"] = "auto",
    ) -> ChatRenderer | None:
        """The renderer of a model, None if neither the model nor `chat_template` has a template.

        Args:
            chat_template: --chat-template: a file, the template itself, or the name of one of the
                model's templates; wins over the model's own.
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
        return cls(templates, present, content_format)

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
        steps: int = MAX_STEPS,
    ) -> str:
        """The prompt's text. It carries its special tokens: tokenise it without adding any.

        Args:
            add_generation_prompt: end with what starts an answer.
            continue_final_message: end inside the final message, so that it is continued.
            chat_template: the request's own template, or the name of one of the model's.
            tools, documents: given to the template as they are.
            kwargs: further template variables.
            steps: of the template's program. Where others wait, try with few, and on MoreSteps
                again somewhere else with `MAX_STEPS`.

        Raises:
            MoreSteps: `steps` were not enough, but MAX_STEPS may be.
            InvalidRequest: not messages, a bad template, or one that refuses these messages.
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
        template = self._choose(chat_template, bool(tools))
        wanted = self._content_format
        content_format = template.content_format if wanted == "auto" else wanted
        prepared = prepare(messages, content_format)
        if not template.knows_developer:
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
        text = self._run(template, variables, steps)
        return text if final is None else _cut_at_mark(text, final)

    def _try_out(self, name: str) -> None:
        """Raise ModelError for a template that no request would see the end of."""
        template = self._templates[name]
        variables = {
            **self._special_tokens,
            "messages": prepare([{"role": "user", "content": "Hello"}], template.content_format),
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            template.render(variables, MAX_STEPS)
        except TemplateLimit as error:
            raise ModelError(
                f"chat template {name!r} is refused: {error}", field="chat_template"
            ) from None
        except Exception:  # noqa: BLE001 - a template may refuse these messages and take others
            pass

    def _compile(self, source: str) -> Template:
        return Template(self._environment, source)

    def _choose(self, given: str | None, has_tools: bool) -> Template:
        if given is None:
            name = "tool_use" if has_tools and "tool_use" in self._templates else self.name
            return self._templates[name]
        if given in self._templates:
            return self._templates[given]
        try:
            return self._compile_given(given)
        except ValueError as error:
            raise InvalidRequest(
                f"chat_template is not valid jinja: {str(error)[:500]}", field="chat_template"
            ) from None

    @staticmethod
    def _run(template: Template, variables: dict[str, Any], steps: int) -> str:
        try:
            return template.render(variables, steps)
        except GalleyError:
            raise
        except MoreSteps as error:
            if steps < MAX_STEPS:
                raise
            message = str(error)
        except TemplateError as error:
            message = error.message or type(error).__name__
        except Exception as error:  # noqa: BLE001 - a template is a program and can raise anything
            message = f"{type(error).__name__}: {error}"
        raise InvalidRequest(f"The chat template refused: {message:.500}", field="messages")


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
        raise ModelError(
            f"--chat-template {value:.200}: not a readable file, and not a template: {error}",
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
    at = text.rfind(_END_MARK.strip())
    if at < 0 or final.strip() not in text:
        raise InvalidRequest(
            "continue_final_message is set, but the chat template changes the final message.",
            field="continue_final_message",
        )
    if text.startswith(_END_MARK, at):
        return text[:at]
    # The template has trimmed the message, so the text before the mark is trimmed too.
    return text[:at].rstrip()
