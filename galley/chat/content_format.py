"""Whether a template wants content as one text or as a list of parts."""

from __future__ import annotations

from jinja2 import nodes

from galley.chat.messages import ContentFormat


def detect_content_format(tree: nodes.Template) -> ContentFormat:
    """ "openai" if the template loops over a message's content, else "string".

    A loop over `message.content`, `message["content"]`, either through filters, or over a variable
    that was set to it counts.
    """
    held = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, held):
            held.add(assign.target.name)
    for loop in tree.find_all(nodes.For):
        if _is_content(loop.iter, held):
            return "openai"
    return "string"


def _is_content(node: nodes.Node | None, held: set[str]) -> bool:
    while isinstance(node, nodes.Filter):
        node = node.node
    if isinstance(node, nodes.Name):
        return node.name in held
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return False
