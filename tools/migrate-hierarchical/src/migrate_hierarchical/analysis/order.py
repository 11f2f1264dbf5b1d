"""Finds the children of syntax nodes in source order, without the copies that libcst's own visit makes."""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import version
from typing import Any

import libcst as cst

from .known import KNOWN

Node = cst.CSTNode
ORDERS: dict[type, tuple[str, ...] | None] = {}  # node type -> its attributes with children; None: no node
VERSION = version("libcst")


class UnknownSyntax(Exception):
    """A construct that libcst parses but this tool does not support."""


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
    """The child attributes of a node, asked of libcst once per type; raises UnknownSyntax.

    libcst does not visit an optional attribute of some nodes if it is empty (the format of `f"{x}"`), so the declared
    attributes that this node did not show come last.
    """
    if not isinstance(value, Node):
        return None
    kind = type(value)
    if kind.__name__ not in KNOWN:
        raise UnknownSyntax(
            f"libcst {VERSION} reads the construct {kind.__name__}, which this release does not know"
        )
    recorder = Recorder(value)
    value.visit(recorder)
    return (*recorder.names, *(each for each in node_fields(kind) if each not in recorder.names))


def node_fields(kind: Any) -> list[str]:
    """The declared attributes of a type that may hold nodes."""
    return [each.name for each in fields(kind) if each.init and each.type not in ("str", "bool", str, bool)]
