"""The jinja environment that chat templates run in, with Hugging Face's semantics.

A template comes with a checkpoint or a request, so it is untrusted code. Jinja's sandbox keeps it
away from Python's internals, from files (there is no loader) and from changing its variables. The
sandbox does not bound time or memory: see `template_process`.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from galley.chat.content_format import ContentFormat, detect_content_format

#: Longest template in characters; real ones have up to 30,000.
MAX_SOURCE = 1 << 16
#: Largest syntax tree in nodes, which bounds the time to compile it.
MAX_NODES = 20_000
#: Longest prompt in characters.
MAX_TEXT = 1 << 23
#: Longest format of strftime_now.
_MAX_DATE_FORMAT = 200


class TemplateLimit(Exception):
    """The template exceeds a limit on time, memory or output; the message names it."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """One environment for all templates."""

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, loopcontrols],
            # Constants are not folded: compiling must not run any of the template.
            optimized=False,
            finalize=_at_run_time,
        )
        self.filters["tojson"] = _tojson
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Internals raise at once; methods that change data are undefined, as in transformers."""
        if attribute.startswith("_"):
            raise SecurityError(f"the chat template reads {attribute:.50}")
        return super().unsafe_undefined(obj, attribute)


class Template:
    """One compiled template.

    Attributes:
        content_format: the form in which the template reads a message's content.
        knows_developer: the template handles the role "developer" itself.
    """

    def __init__(self, environment: ChatEnvironment, source: str) -> None:
        """Raises ValueError for a source that is not valid jinja or cannot be compiled."""
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
        except Exception as error:  # noqa: BLE001 - jinja compiles to Python, which has limits too
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def render(self, variables: dict[str, Any]) -> str:
        """The text. Raises whatever the template raises, and TemplateLimit for too much text."""
        parts: list[str] = []
        size = 0
        for part in self._compiled.generate(variables):
            size += len(part)
            if size > MAX_TEXT:
                raise TemplateLimit(f"it writes more than {MAX_TEXT} characters")
            parts.append(part)
        return "".join(parts)


class GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks the assistant's text (for training); here it
    renders its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def failure(error: Exception) -> str:
    """The message of what a template has raised."""
    if isinstance(error, TemplateLimit):
        return str(error)
    if isinstance(error, TemplateError):
        return error.message or type(error).__name__
    return f"{type(error).__name__}: {error}"


@pass_context
def _at_run_time(context: Context, value: Any) -> Any:
    """Needs the context, so jinja cannot evaluate an expression while it compiles."""
    return value


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which models have never seen."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form[:_MAX_DATE_FORMAT])
