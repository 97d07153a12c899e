"""Formats of tool calls by vLLM's names for --tool-call-parser: an open set.

To add one: a line here, if its family shares a format with others; else a class with the two
members of `calls.ToolFormat` in its own file, and a line here.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable
from dataclasses import replace

from galley.chat.tool_parsers.calls import ToolFormat
from galley.chat.tool_parsers.channels import Inkling, MuseGlimmer
from galley.chat.tool_parsers.gemma_calls import GemmaCalls
from galley.chat.tool_parsers.harmony import Harmony
from galley.chat.tool_parsers.json_calls import JsonCalls
from galley.chat.tool_parsers.named_calls import NamedCalls
from galley.chat.tool_parsers.nested_calls import NestedCalls
from galley.chat.tool_parsers.python_calls import PythonCalls
from galley.chat.tool_parsers.tagged_calls import TaggedCalls


def _kimi_id(written: str) -> tuple[str, str | None]:
    """`functions.NAME:INDEX` → (name, id)."""
    return written.removeprefix("functions.").rsplit(":", 1)[0], written


_HERMES = JsonCalls(("<tool_call>",), ("</tool_call>",))
_GLM = TaggedCalls(
    begin="<tool_call>",
    name_ends=("\n", "<arg_key>", "</tool_call>"),
    end="</tool_call>",
    key="<arg_key>",
    key_ends=("</arg_key>",),
    value="<arg_value>",
    value_end="</arg_value>",
)
_HUNYUAN = TaggedCalls(
    begin="<tool_call:opensource>",
    name_ends=("<tool_sep:opensource>", "<arg_key:opensource>", "</tool_call:opensource>"),
    end="</tool_call:opensource>",
    key="<arg_key:opensource>",
    key_ends=("</arg_key:opensource>",),
    value="<arg_value:opensource>",
    value_end="</arg_value:opensource>",
    opening=("<tool_calls:opensource>",),
    closing=("</tool_calls:opensource>",),
)
_QWEN_XML = TaggedCalls(
    begin="<function=",
    name_ends=(">",),
    end="</function>",
    key="<parameter=",
    key_ends=(">",),
    value_end="</parameter>",
    opening=("<tool_call>",),
    closing=("</tool_call>",),
    newlines=True,
)


def _dsml(section: str, space: str = "") -> TaggedCalls:
    """DeepSeek's markup, which says of each parameter whether it is text."""
    return TaggedCalls(
        begin=f'<｜DSML｜{space}invoke name="',
        name_ends=('">',),
        end=f"</｜DSML｜{space}invoke>",
        key=f'<｜DSML｜{space}parameter name="',
        key_ends=('" string="true">', '" string="false">', '">'),
        value_end=f"</｜DSML｜{space}parameter>",
        opening=(f"<｜DSML｜{section}>",),
        closing=(f"</｜DSML｜{section}>",),
        texts=('" string="true">',),
        others=('" string="false">',),
    )


def _invoke(prefix: str, section: str) -> TaggedCalls:
    """`<invoke name="…"><parameter name="…">` in a section."""
    return TaggedCalls(
        begin=f'<{prefix}invoke name="',
        name_ends=('">',),
        end=f"</{prefix}invoke>",
        key=f'<{prefix}parameter name="',
        key_ends=('">',),
        value_end=f"</{prefix}parameter>",
        opening=(f"<{section}>",),
        closing=(f"</{section}>",),
    )


def _deepseek(skip: tuple[str, ...], separator: str, end: tuple[str, ...]) -> NamedCalls:
    return NamedCalls(
        begin="<｜tool▁call▁begin｜>",
        separators=(separator,),
        end=(*end, "<｜tool▁call▁end｜>"),
        noise=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        skip=skip,
    )


_COHERE = JsonCalls(("<|START_ACTION|>",), ("<|END_ACTION|>",), name_keys=("tool_name", "name"))
_K3_TYPES = ("number", "integer", "boolean", "array", "object", "null")

TOOL_PARSERS: dict[str, ToolFormat] = {
    "apertus": JsonCalls(("<|tools_prefix|>",), ("<|tools_suffix|>",), keyed=True),
    "cohere_command3": _COHERE,
    "cohere_command4": _COHERE,
    "deepseek_v3": _deepseek(("function<｜tool▁sep｜>",), "\n```json\n", ("```",)),
    "deepseek_v31": _deepseek((), "<｜tool▁sep｜>", ()),
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "deepseek_v41": _dsml(" calls", " "),
    "dots": replace(
        _invoke("", "dots_function_call"),
        newlines=True,
        listed=JsonCalls(("<dots_function_call>",), ("</dots_function_call>",)),
    ),
    "ernie45": _HERMES,
    "functiongemma": GemmaCalls("<start_function_call>", "<end_function_call>", "<escape>"),
    "gemma4": GemmaCalls("<|tool_call>", "<tool_call|>", '<|"|>'),
    "gigachat3": JsonCalls(
        ("function call<|role_sep|>", "<|function_call|>"), noise=("<|message_sep|>",)
    ),
    "glm45": _GLM,
    "glm47": _GLM,
    "granite": JsonCalls(("<|tool_call|>", "<tool_call>"), ("</tool_call>",)),
    "granite-20b-fc": JsonCalls(("<function_call>",), ("</function_call>",)),
    "granite4": _HERMES,
    "hermes": _HERMES,
    "hunyuan_a13b": JsonCalls(("<tool_calls>",), ("</tool_calls>",)),
    "hy_v3": _HUNYUAN,
    "hy_v4": _HUNYUAN,
    "inkling": Inkling(),
    "internlm": JsonCalls(("<|action_start|><|plugin|>",), ("<|action_end|>",)),
    "jamba": JsonCalls(("<tool_calls>",), ("</tool_calls>",)),
    "json": JsonCalls(special=False),
    "k2_horizon": TaggedCalls(
        begin="<ifm|tool_call>",
        name_ends=("<ifm|arg_key>", "</ifm|tool_call>"),
        end="</ifm|tool_call>",
        key="<ifm|arg_key>",
        key_ends=("</ifm|arg_key>",),
        value="<ifm|arg_value>",
        value_end="</ifm|arg_value>",
        opening=("<ifm|tool_calls>",),
        closing=("</ifm|tool_calls>",),
        kind=("<ifm|arg_type>", "</ifm|arg_type>"),
        listed=JsonCalls(("<ifm|tool_call>",), ("</ifm|tool_call>",)),
    ),
    "kimi_k2": NamedCalls(
        begin="<|tool_call_begin|>",
        separators=("<|tool_call_argument_begin|>",),
        end=("<|tool_call_end|>",),
        noise=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        split=_kimi_id,
    ),
    "kimi_k3": TaggedCalls(
        begin='<|open|>call tool="',
        name_ends=('"',),
        end="<|close|>call<|sep|>",
        key='<|open|>argument key="',
        key_ends=tuple(f'" type="{kind}"<|sep|>' for kind in ("string", *_K3_TYPES)),
        value_end="<|close|>argument<|sep|>",
        opening=("<|open|>tools<|sep|>",),
        closing=("<|close|>tools<|sep|>",),
        noise=("<|open|>response<|sep|>", "<|close|>response<|sep|>", "<|close|>message<|sep|>"),
        texts=('" type="string"<|sep|>',),
        others=tuple(f'" type="{kind}"<|sep|>' for kind in _K3_TYPES),
    ),
    "lfm2": PythonCalls(("<|tool_call_start|>",), ("<|tool_call_end|>",), bare=False),
    "ling3": _GLM,
    "llama3_json": JsonCalls(noise=("<|python_tag|>",)),
    "llama4_json": JsonCalls(noise=("<|python_tag|>",)),
    "llama4_pythonic": PythonCalls(("<|python_start|>",), ("<|python_end|>",)),
    "longcat": JsonCalls(("<longcat_tool_call>",), ("</longcat_tool_call>",)),
    "mimo": _QWEN_XML,
    "minicpm5": TaggedCalls(
        begin='<function name="',
        name_ends=('">',),
        end="</function>",
        key='<param name="',
        key_ends=('">',),
        value_end="</param>",
        cdata=True,
    ),
    "minimax": JsonCalls(("<tool_calls>",), ("</tool_calls>",)),
    "minimax_m2": _invoke("", "minimax:tool_call"),
    "minimax_m3": NestedCalls("]<]minimax[>["),
    "mistral": NamedCalls(
        begin="[TOOL_CALLS]",
        separators=("[ARGS]", "[CALL_ID]", "{"),
        id_mark="[CALL_ID]",
        listed=JsonCalls(("[TOOL_CALLS]",)),
    ),
    "muse_glimmer": MuseGlimmer(),
    "olmo3": PythonCalls(("<function_calls>",), ("</function_calls>",), bare=False),
    "openai": Harmony(),
    "phi4_mini_json": JsonCalls(("functools",), special=False),
    "plamo3": NamedCalls(
        begin="<|plamo:begin_tool_request:plamo|>",
        separators=("<|plamo:end_tool_name:plamo|>",),
        end=("<|plamo:end_tool_arguments:plamo|>", "<|plamo:end_tool_request:plamo|>"),
        noise=(
            "<|plamo:begin_tool_requests:plamo|>",
            "<|plamo:end_tool_requests:plamo|>",
            "<|plamo:tag|>",
        ),
        skip=("<|plamo:begin_tool_name:plamo|>",),
        before=(
            "<|plamo:begin_tool_arguments:plamo|>",
            "<|plamo:constrain|>json",
            "<|plamo:msg|>",
        ),
    ),
    "poolside_v1": _GLM,
    "pythonic": PythonCalls(special=False),
    "qwen3_coder": _QWEN_XML,
    "qwen3_json": _HERMES,
    "qwen3_xml": _QWEN_XML,
    "seed_oss": replace(
        _QWEN_XML,
        opening=("<seed:tool_call>",),
        closing=("</seed:tool_call>",),
        newlines=False,
    ),
    "step3": TaggedCalls(
        begin='<steptml:invoke name="',
        name_ends=('">',),
        end="</steptml:invoke>",
        key='<steptml:parameter name="',
        key_ends=('">',),
        value_end="</steptml:parameter>",
        noise=(
            "<｜tool_calls_begin｜>",
            "<｜tool_calls_end｜>",
            "<｜tool_call_begin｜>function<｜tool_sep｜>",
            "<｜tool_call_end｜>",
        ),
    ),
    "step3p5": _QWEN_XML,
    "xlam": JsonCalls(special=False),
}


def _nine_characters(name: str, index: int) -> str:
    """The form that Mistral's templates demand."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


#: Ids of calls that the model gives none, (name, index) → id, where templates expect a form.
CALL_IDS: dict[str, Callable[[str, int], str]] = {
    "kimi_k2": lambda name, index: f"functions.{name}:{index}",
    "mistral": _nine_characters,
}
