"""The children of syntax nodes in the order of the source, without the copies that libcst's own visit makes."""

from __future__ import annotations

import libcst as cst

Node = cst.CSTNode
ORDERS: dict[type, tuple[str, ...] | None] = {}  # node type -> its attributes with children; None: no node


class Recorder(cst.CSTVisitor):
    """Notes the attributes of one node as libcst visits them."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.node = node
        self.names: list[str] = []

    def on_visit(self, node: Node) -> bool:
        return node is self.node

    def on_visit_attribute(self, node: Node, attribute: str) -> None:
        if node is self.node:
            self.names.append(attribute)


def order_of(value: object) -> tuple[str, ...] | None:
    """Asked of libcst once for every type; the order is the same for all nodes of a type."""
    if not isinstance(value, Node):
        return None
    recorder = Recorder(value)
    value.visit(recorder)
    return tuple(recorder.names)
