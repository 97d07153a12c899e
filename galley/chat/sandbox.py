"""The jinja environment that chat templates run in, with Hugging Face's semantics.

A template comes with a checkpoint, so it is somebody else's program. It sees plain data, cannot
reach Python's internals (jinja's sandbox) nor files (there is no loader), and has a budget
(`budget`): whatever it does goes through a hook that spends from it.

    loops, comparisons, slices, lists, ~     the syntax tree is rewritten to tell (`metering`)
    + - * / // % **                          jinja's own hook, `call_binop`
    calls, methods of texts                  jinja's own hook, `call`
    filters, tests                           wrapped
    what is written                          jinja's own hook, `finalize`
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, cast

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import _PassArg

from galley.chat import metering
from galley.chat.budget import (
    CALL_STEPS,
    CHARS_PER_STEP,
    MAX_BITS,
    MAX_SIZE,
    MAX_STEPS,
    Budget,
    Counted,
    TemplateLimit,
    format_size,
    grown,
)

#: The budget's name in a context: no template can spell it, for a space is in no variable.
_BUDGET = "galley budget"
#: Jinja's filters that no chat template uses and that take longer than their input is long.
_REMOVED = ("random", "striptags", "urlize", "wordwrap", "xmlattr", "pprint", "filesizeformat")
#: Methods of texts that make bytes or multiply in their own ways.
_NO_METHODS = frozenset({"encode", "translate", "maketrans", "format_map"})
#: Filters that look at the items of a list, but not into them.
_SHALLOW = frozenset(
    {"length", "count", "first", "last", "list", "reverse", "map", "select", "reject", "items"}
    | {"selectattr", "rejectattr", "batch", "slice", "default", "d", "attr", "safe"}
)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
    "in": lambda item, items: item in items,
    "notin": lambda item, items: item not in items,
}
#: Longest form of strftime_now.
_MAX_FORM = 200


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """One environment for all templates; what changes per rendering is in the context."""

    # All of them: what is intercepted is not computed while compiling either.
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, loopcontrols],
            finalize=_written,
        )
        self.filters["tojson"] = _tojson
        for name in _REMOVED:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters = {name: _metered(name, f) for name, f in self.filters.items()}
        self.tests = {name: _metered_test(cast(Any, f)) for name, f in self.tests.items()}
        self.filters |= {
            metering.COUNTED: _counted,
            metering.JOINED: _joined,
            metering.MADE: _made,
            metering.COMPARED: _compared,
            metering.WRITES: _writes,
        }
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def render(
        self, template: jinja2.Template, variables: dict[str, Any], steps: int = MAX_STEPS
    ) -> str:
        """The text of a template. Raises whatever the template raises, TemplateLimit among it."""
        budget = Budget(steps)
        parts: list[str] = []
        size = 0
        for part in template.generate({**variables, _BUDGET: budget}):
            size += len(part)
            budget.bound(size)
            parts.append(part)
        return "".join(parts)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's parser; then the tree is told to count."""
        return metering.metered(super()._parse(source, name, filename), self)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _NO_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        """Internals are refused at once; methods that change data are undefined, as elsewhere."""
        if attribute.startswith("_"):
            raise SecurityError(f"the chat template reads {attribute:.50}")
        return super().unsafe_undefined(obj, attribute)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend(CALL_STEPS)
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        text = getattr(method, "__self__", None)
        if isinstance(text, str):
            given = [*args, *kwargs.values()]
            budget.look_at(text)
            for arg in given:
                budget.look_at(arg)
            name = str(method.__name__)
            name = f"method {name}" if name == "join" else name
            budget.bound(grown(budget, name, text, given))
        return budget.make(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        if operator == "**":
            if not _is_small_power(left, right):
                raise TemplateLimit(f"the chat template computes {left!r:.20} ** {right!r:.20}")
        elif operator == "*":
            _check_product(budget, left, right)
        elif operator == "+":
            budget.bound(budget.weigh(left) + budget.weigh(right))
        elif operator == "%" and isinstance(left, str):
            budget.bound(format_size(budget, left, right))
        return budget.make(super().call_binop(context, operator, left, right))


class GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}` marks what the assistant says (for training); here
    it is its content."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _budget(context: Context) -> Budget:
    budget = context.resolve(_BUDGET)
    assert isinstance(budget, Budget), "a template runs by `render` only"
    return budget


def _leading(function: Callable[..., Any]) -> Callable[[Context], tuple[Any, ...]]:
    """What jinja hands to a filter or test before its value."""
    wanted = _PassArg.from_obj(function)
    if wanted is _PassArg.context:
        return lambda context: (context,)
    if wanted is _PassArg.eval_context:
        return lambda context: (context.eval_ctx,)
    if wanted is _PassArg.environment:
        return lambda context: (context.environment,)
    return lambda context: ()


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that spends. That it wants the context also keeps it from running while a template
    is compiled."""
    leading, shallow = _leading(function), name in _SHALLOW

    @pass_context
    def filtered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend()
        given = [*args, *kwargs.values()]
        if name == "join" and isinstance(value, Iterator):
            value = list(value)
        for part in (value, *given):
            budget.look_at(part)
            if not shallow:
                budget.read(part)
        if name == "sum" and any(isinstance(arg, list | tuple) for arg in given):
            raise SecurityError("sums of lists are not computed")
        budget.bound(grown(budget, name, value, given))
        return budget.make(function(*leading(context), value, *args, **kwargs))

    return filtered


def _metered_test(function: Callable[..., Any]) -> Callable[..., Any]:
    leading = _leading(function)

    @pass_context
    def tested(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        budget.spend()
        budget.look_at(value)
        for arg in args:
            budget.compare(value, arg)
        return function(*leading(context), value, *args, **kwargs)

    return tested


@pass_context
def _written(context: Context, value: Any) -> Any:
    """What a template writes, before it becomes text."""
    if not isinstance(value, str | int):
        _budget(context).bound(_budget(context).weigh(value))
    _budget(context).read(value)
    return value


@pass_context
def _counted(context: Context, items: Any) -> Counted:
    return Counted(items, _budget(context).spend)


@pass_context
def _joined(context: Context, items: list[Any]) -> str:
    budget = _budget(context)
    budget.bound(sum(map(budget.weigh, items)))
    text: str = budget.make("".join(map(str, items)))
    return text


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget(context).make(value)


@pass_context
def _compared(context: Context, value: Any, *operands: Any) -> Any:
    """`operands` are in turn an operator's name and what stands right of it."""
    budget = _budget(context)
    holds: Any = True
    for name, other in zip(operands[::2], operands[1::2], strict=True):
        budget.spend()
        budget.compare(value, other)
        holds = _COMPARE[name](value, other)
        if not holds:
            break
        value = other
    return holds


@pass_context
def _writes(context: Context, size: int) -> str:
    _budget(context).spend(size // CHARS_PER_STEP)
    return ""


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
    return datetime.now().strftime(form[:_MAX_FORM])


def _is_small_power(base: Any, exponent: Any) -> bool:
    if not isinstance(base, int) or not isinstance(exponent, int):
        return True
    return base.bit_length() * max(exponent, 0) <= MAX_BITS


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    for many, times in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(times, int):
            size = budget.weigh(many) * max(times, 0)
            if size > MAX_SIZE:
                raise TemplateLimit("the chat template multiplies without bound")
