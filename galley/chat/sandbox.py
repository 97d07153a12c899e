"""The jinja environment that chat templates run in, with Hugging Face's semantics.

A template comes with a checkpoint, so it is somebody else's program. It sees plain data, cannot
reach Python's internals (jinja's sandbox) nor files (there is no loader), and has a budget: loop
rounds and calls are counted, numbers and texts cannot be multiplied without bound.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Steps of one rendering: a loop round is one. A thousand messages, looked over by each, fit.
MAX_STEPS = 5_000_000
#: Steps that a call counts as: it takes as long as that many loop rounds.
CALL_STEPS = 50
#: Longest text or list that a template may make by multiplying, and the longest prompt.
MAX_SIZE = 1 << 26
#: Names that no template can spell: a space is in neither a variable nor a filter.
_BUDGET = "galley budget"
_COUNTED = "galley counted"


class TemplateLimit(SecurityError):
    """The template has used up its budget."""


class Budget:
    """Steps that are left to one rendering."""

    __slots__ = ("left",)

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def spend(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise TemplateLimit(f"the chat template takes more than {MAX_STEPS} steps")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """One environment for all templates; what changes per rendering is in the context."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols]
        )
        self.filters["tojson"] = _tojson
        self.filters[_COUNTED] = _counted
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """The text of a template. Raises whatever the template raises, TemplateLimit among it."""
        parts: list[str] = []
        size = 0
        for part in template.generate({**variables, _BUDGET: Budget()}):
            size += len(part)
            if size > MAX_SIZE:
                raise TemplateLimit(f"the chat template writes more than {MAX_SIZE} characters")
            parts.append(part)
        return "".join(parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's parser; then every loop counts its rounds."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno
            ).set_environment(self)
        return tree

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        context.resolve(_BUDGET).spend(CALL_STEPS)
        if isinstance(getattr(obj, "__self__", None), str):
            # rjust, zfill, expandtabs …: a width is a size.
            for value in args:
                if isinstance(value, int) and value > MAX_SIZE:
                    raise TemplateLimit(f"the chat template makes a text of {value} characters")
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if not _is_small_power(left, right):
                raise TemplateLimit(f"the chat template computes {left!r:.20} ** {right!r:.20}")
        elif _product_size(left, right) > MAX_SIZE:
            raise TemplateLimit("the chat template multiplies without bound")
        return super().call_binop(context, operator, left, right)


class GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the assistant says (for training); here
    it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Counted:
    """An iterable whose rounds are counted; keeps its length, which `loop.length` asks for."""

    __slots__ = ("_items", "_spend")

    def __init__(self, items: Iterable[Any], spend: Callable[[], None]) -> None:
        self._items = items
        self._spend = spend

    def __iter__(self) -> Iterator[Any]:
        spend = self._spend
        for item in self._items:
            spend()
            yield item

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]


@pass_context
def _counted(context: Context, items: Iterable[Any]) -> _Counted:
    return _Counted(items, context.resolve(_BUDGET).spend)


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
    return datetime.now().strftime(form)


def _is_small_power(base: Any, exponent: Any) -> bool:
    if not isinstance(base, int) or not isinstance(exponent, int):
        return True
    return base.bit_length() * max(exponent, 0) <= 1 << 16


def _product_size(left: Any, right: Any) -> int:
    """Items or bits of left * right."""
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            return len(many) * max(times, 0)
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() + right.bit_length()
    return 0
