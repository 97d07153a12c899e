"""A template's syntax tree, rewritten so that what jinja has no hook for goes through a filter.

    for x in items           →   for x in items | counted
    a ~ b                    →   [a, b] | joined
    [a, b], (a, b), {a: b}   →   [a, b] | made
    a == b, a in b           →   a | compared("eq", b)
    text[a:b]                →   text[a:b] | made
    text of the template     →   its length told of, where it is long

The filters' names hold a space, so that no template can spell them.
"""

from __future__ import annotations

from typing import cast

from jinja2 import Environment, nodes
from jinja2.visitor import NodeTransformer

COUNTED = "galley counted"
JOINED = "galley joined"
MADE = "galley made"
COMPARED = "galley compared"
WRITES = "galley writes"

#: A piece of a template's own text that is as long costs something.
_LONG_TEXT = 64


def metered(tree: nodes.Template, environment: Environment) -> nodes.Template:
    """The tree, changed in place."""
    changed: nodes.Template = _Metering(environment).visit(tree)
    return changed


class _Metering(NodeTransformer):
    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def _through(self, name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
        through = nodes.Filter(
            cast(nodes.Expr, node), name, list(args), [], None, None, lineno=node.lineno
        )
        through.set_environment(self._environment)
        return through

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._through(COUNTED, node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        items = nodes.List(node.nodes, lineno=node.lineno).set_environment(self._environment)
        return self._through(JOINED, items)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """`a < b < c` becomes a | compared("lt", b, "lt", c)."""
        self.generic_visit(node)
        args: list[nodes.Expr] = []
        for operand in node.ops:
            args += [nodes.Const(operand.op, lineno=node.lineno), operand.expr]
        return self._through(COMPARED, node.expr, *args)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self._through(MADE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._through(MADE, node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return self._through(MADE, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._through(MADE, node) if node.ctx == "load" else node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        size = sum(len(n.data) for n in node.nodes if isinstance(n, nodes.TemplateData))
        if size > _LONG_TEXT:
            told = nodes.Const(size, lineno=node.lineno)
            node.nodes.insert(0, self._through(WRITES, told))
        return node
