"""How calls are written in the formats whose calls a grammar can make: an open set."""

from __future__ import annotations

from dataclasses import replace

from galley.chat.tool_parsers.spelling import (
    ID,
    KEY,
    KIND,
    NUMBER,
    CallSpelling,
    HarmonySpelling,
    JsonSpelling,
    LeadingSpelling,
    ListSpelling,
    NestedSpelling,
    TaggedSpelling,
)

_NAME, _ARGUMENTS, _PARAMETERS = '{"name": "', '", "arguments": ', '", "parameters": '


def _json_between(begin: str, end: str) -> JsonSpelling:
    return JsonSpelling(
        trigger=begin, before=f"\n{_NAME}", between=_ARGUMENTS, end=f"}}\n{end}", separator="\n"
    )


def _listed(begin: str, close: str, *excluded: str) -> ListSpelling:
    return ListSpelling(
        trigger=begin,
        before=_NAME,
        between=_ARGUMENTS,
        end="}",
        close=close,
        excluded=excluded,
    )


_HERMES = _json_between("<tool_call>", "</tool_call>")
#: The beginning of a call for a parser of bare JSON: the first key of an object, also
#: one with an escape.
_SPACE = r"[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_FIRST_KEYS = rf'\{{{_SPACE}*"(name|type|function)"|\{{{_SPACE}*"[^"\\]*\\'
_BARE = JsonSpelling(
    trigger=_NAME,
    before="",
    between=_PARAMETERS,
    end="}",
    separator="; ",
    marked=False,
    around=("<|python_tag|>",),
    forbidden=(_FIRST_KEYS,),
)
_QWEN = TaggedSpelling(
    trigger="<tool_call>",
    before="\n<function=",
    after=">\n",
    key_begin="<parameter=",
    key_end=">\n",
    value_end="\n</parameter>\n",
    end="</function>\n</tool_call>",
    excluded=("<function=",),
)
_GLM = TaggedSpelling(
    trigger="<tool_call>",
    before="",
    after="\n",
    key_begin="<arg_key>",
    key_end="</arg_key>\n<arg_value>",
    value_end="</arg_value>\n",
    end="</tool_call>",
)
_GLM_COMPACT = replace(_GLM, after="", key_end="</arg_key><arg_value>", value_end="</arg_value>")
_COHERE = ListSpelling(
    trigger="<|START_ACTION|>",
    open="[\n    ",
    before=f'{{"tool_call_id": "{NUMBER}", "tool_name": "',
    between=_PARAMETERS,
    end="}",
    comma=",\n    ",
    close="\n]<|END_ACTION|>",
    around=(
        *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        *("<|START_TEXT|>", "<|END_TEXT|>"),
    ),
)
_DEEPSEEK = JsonSpelling(
    trigger="<｜tool▁call▁begin｜>",
    before="",
    between="<｜tool▁sep｜>",
    end="<｜tool▁call▁end｜>",
    separator="",
    around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)


def _dsml(section: str, space: str = "") -> TaggedSpelling:
    return TaggedSpelling(
        trigger=f'<｜DSML｜{space}invoke name="',
        before="",
        after='">\n',
        key_begin=f'<｜DSML｜{space}parameter name="',
        key_end=f'" string="{KIND}">',
        value_end=f"</｜DSML｜{space}parameter>\n",
        end=f"</｜DSML｜{space}invoke>",
        kinds=(("string", "true"), ("", "false")),
        around=(f"<｜DSML｜{section}>", f"</｜DSML｜{section}>"),
    )


_MISTRAL = JsonSpelling(trigger="[TOOL_CALLS]", before="", between="[ARGS]", end="", separator="")
_HUNYUAN = TaggedSpelling(
    trigger="<tool_call:opensource>",
    before="",
    after="<tool_sep:opensource>\n",
    key_begin="<arg_key:opensource>",
    key_end="</arg_key:opensource>\n<arg_value:opensource>",
    value_end="</arg_value:opensource>\n",
    end="</tool_call:opensource>",
    around=("<tool_calls:opensource>", "</tool_calls:opensource>"),
)
_INVOKE = TaggedSpelling(
    trigger='<invoke name="',
    before="",
    after='">\n',
    key_begin='<parameter name="',
    key_end='">',
    value_end="</parameter>\n",
    end="</invoke>",
)
_PYTHON = ListSpelling(
    trigger="<|python_start|>",
    before="",
    between="(",
    end=")",
    close="]<|python_end|>",
    style="python",
)
#: Calls at the beginning of an answer.
_BARE_PYTHON = rf"{_SPACE}*\[{_SPACE}*[^()\[\]]*\("
_GIGACHAT = JsonSpelling(
    trigger="<|role_sep|>",
    before=f"\n{_NAME}",
    between=_ARGUMENTS,
    end="}",
    separator="",
    around=("<|message_sep|>",),
    marked=False,
)
_GEMMA = JsonSpelling(
    trigger="<|tool_call>",
    before="call:",
    between="{",
    end="}<tool_call|>",
    separator="",
    style="gemma",
    quote='<|"|>',
)
_TYPES = ("string", "number", "boolean", "array", "object", "null")

CALL_SPELLINGS: dict[str, CallSpelling] = {
    **dict.fromkeys(("ernie45", "granite4", "hermes", "qwen3_json"), _HERMES),
    **dict.fromkeys(("json", "llama3_json", "llama4_json"), _BARE),
    **dict.fromkeys(("mimo", "qwen3_coder", "qwen3_xml", "step3p5"), _QWEN),
    "glm45": _GLM,
    **dict.fromkeys(("glm47", "poolside_v1"), _GLM_COMPACT),
    **dict.fromkeys(("cohere_command3", "cohere_command4"), _COHERE),
    "apertus": ListSpelling(
        trigger="<|tools_prefix|>",
        before='{"',
        between='": ',
        end="}",
        close="]<|tools_suffix|>",
    ),
    "deepseek_v3": replace(
        _DEEPSEEK,
        before="function<｜tool▁sep｜>",
        between="\n```json\n",
        end="\n```<｜tool▁call▁end｜>",
        separator="\n",
    ),
    "deepseek_v31": _DEEPSEEK,
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "deepseek_v41": _dsml(" calls", " "),
    "dots": replace(_INVOKE, forbidden=(rf"<dots_function_call>{_SPACE}*[\[{{]",)),
    "functiongemma": replace(
        _GEMMA,
        trigger="<start_function_call>",
        end="}<end_function_call>",
        quote="<escape>",
    ),
    "gemma4": _GEMMA,
    "gigachat3": replace(
        _GIGACHAT, also=(replace(_GIGACHAT, trigger="<|function_call|>", before=_NAME),)
    ),
    "granite": _listed("<|tool_call|>", "]", "<tool_call>"),
    "granite-20b-fc": replace(_HERMES, trigger="<function_call>", before=f" {_NAME}", end="}"),
    "hunyuan_a13b": _listed("<tool_calls>", "]</tool_calls>"),
    "hy_v3": _HUNYUAN,
    "hy_v4": replace(
        _HUNYUAN,
        after="",
        key_end="</arg_key:opensource><arg_value:opensource>",
        value_end="</arg_value:opensource>",
    ),
    "inkling": JsonSpelling(
        trigger="<|content_invoke_tool_json|>",
        before='{"name":"',
        between='","args":',
        end="}<|end_message|>",
        separator="",
        around=(
            *("<|message_model|>", "<|content_thinking|>", "<|content_text|>", "<|end_message|>"),
            "<|content_model_end_sampling|>",
        ),
        marked=False,
        whole=True,
    ),
    "internlm": JsonSpelling(
        trigger="<|action_start|>",
        before=f"<|plugin|>\n{_NAME}",
        between=_PARAMETERS,
        end="}<|action_end|>",
    ),
    "jamba": replace(_listed("<tool_calls>", "\n]</tool_calls>"), open="[\n    ", comma=",\n    "),
    "k2_horizon": replace(
        _GLM,
        trigger="<ifm|tool_call>",
        key_begin="<ifm|arg_key>",
        key_end="</ifm|arg_key>\n<ifm|arg_value>",
        value_end="</ifm|arg_value>\n",
        end="</ifm|tool_call>",
        around=("<ifm|tool_calls>", "</ifm|tool_calls>"),
    ),
    "kimi_k2": JsonSpelling(
        trigger="<|tool_call_begin|>",
        before="functions.",
        between=f":{NUMBER}<|tool_call_argument_begin|>",
        end="<|tool_call_end|>",
        separator="",
        around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
    ),
    "kimi_k3": TaggedSpelling(
        trigger="<|open|>",
        before='call tool="',
        after=f'" index="{NUMBER}"<|sep|>',
        key_begin='<|open|>argument key="',
        key_end=f'" type="{KIND}"<|sep|>',
        value_end="<|close|>argument<|sep|>",
        end="<|close|>call<|sep|>",
        kinds=(*((kind, kind) for kind in _TYPES), ("integer", "number"), ("", "object")),
        around=("<|close|>", "<|sep|>"),
        plain=tuple(f"<|open|>{name}<|sep|>" for name in ("think", "response", "tools")),
        separator="",
        marked=False,
    ),
    "lfm2": replace(_PYTHON, trigger="<|tool_call_start|>", close="]<|tool_call_end|>"),
    "ling3": replace(_GLM, value_end="</arg_value>", end="\n</tool_call>"),
    "llama4_pythonic": replace(_PYTHON, not_leading=(_BARE_PYTHON,)),
    "longcat": _json_between("<longcat_tool_call>", "</longcat_tool_call>"),
    "minimax": replace(_listed("<tool_calls>", "\n</tool_calls>"), open="\n", comma="\n"),
    "minicpm5": TaggedSpelling(
        trigger='<function name="',
        before="",
        after='">',
        key_begin='<param name="',
        key_end='">',
        value_end="</param>",
        end="</function>",
    ),
    "minimax_m2": replace(_INVOKE, around=("<minimax:tool_call>", "</minimax:tool_call>")),
    "minimax_m3": NestedSpelling(
        trigger="]<]minimax[>[",
        before='<invoke name="',
        after='">',
        key_begin="\n]<]minimax[>[<",
        key_end=">",
        value_end=f"]<]minimax[>[</{KEY}>",
        end="]<]minimax[>[</invoke>",
        plain=("]<]minimax[>[<tool_call>", "]<]minimax[>[</tool_call>"),
    ),
    "mistral": replace(
        _MISTRAL,
        also=(
            replace(_MISTRAL, between=f"[CALL_ID]{ID}[ARGS]"),
            replace(_listed("[TOOL_CALLS]", "]"), open=" ["),
            _listed("[TOOL_CALLS]", "]"),
        ),
    ),
    "muse_glimmer": TaggedSpelling(
        trigger='<atem:invoke name="',
        before="",
        after='">\n',
        key_begin='<atem:parameter name="',
        key_end='">',
        value_end="</atem:parameter>\n",
        end="</atem:invoke>",
        around=("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
        doubled=True,
        marked=False,
        whole=True,
    ),
    "olmo3": replace(
        _PYTHON,
        trigger="<function_calls>",
        open="\n",
        comma="\n",
        close="\n</function_calls>",
        style="python_json_words",
    ),
    "openai": HarmonySpelling(),
    "phi4_mini_json": _listed("functools", "]"),
    "plamo3": JsonSpelling(
        trigger="<|plamo:begin_tool_request:plamo|>",
        before="<|plamo:begin_tool_name:plamo|>",
        between="<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|>"
        "<|plamo:constrain|>json<|plamo:msg|>",
        end="<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>",
        separator="",
        around=(
            *("<|plamo:begin_tool_requests:plamo|>", "<|plamo:end_tool_requests:plamo|>"),
            "<|plamo:tag|>",
        ),
    ),
    "pythonic": LeadingSpelling(
        trigger="[",
        open="",
        before="",
        between="(",
        end=")",
        close="]",
        style="python",
        not_leading=(_BARE_PYTHON,),
    ),
    "seed_oss": replace(
        _QWEN,
        trigger="<seed:tool_call>",
        key_end=">",
        value_end="</parameter>\n",
        end="</function>\n</seed:tool_call>",
    ),
    "step3": TaggedSpelling(
        trigger='<steptml:invoke name="',
        before="",
        after='">',
        key_begin='<steptml:parameter name="',
        key_end='">',
        value_end="</steptml:parameter>",
        end="</steptml:invoke>",
        around=(
            *("<｜tool_calls_begin｜>", "<｜tool_calls_end｜>", "<｜tool_call_begin｜>"),
            *("<｜tool_sep｜>", "<｜tool_call_end｜>"),
        ),
    ),
    "xlam": replace(_BARE, between=_ARGUMENTS),
}
