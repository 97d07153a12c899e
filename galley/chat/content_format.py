"""Detects whether a template reads content as one text, as a list of parts, or as either."""

from __future__ import annotations

from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai", "either"]


def detect_content_format(tree: nodes.Template) -> ContentFormat:
    """ "openai" if the template loops over a message's content, else "string"; "either" if it
    loops, and tests whether something is a text.

    The loop may go over `message.content`, over `message["content"]`, over either through filters,
    or over a variable that was set to it.
    """
    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    for loop in tree.find_all(nodes.For):
        if _is_content(loop.iter, names):
            texts = any(test.name == "string" for test in tree.find_all(nodes.Test))
            return "either" if texts else "openai"
    return "string"


def _is_content(node: nodes.Node | None, names: set[str]) -> bool:
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return False
