"""Reads the arguments of a call by parameter name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import libcst as cst

# A string literal without escapes, which needs no evaluation.
PLAIN = re.compile(r"'([^'\\]*)'" + r'|"([^"\\]*)"')


@dataclass
class Arguments:
    """The arguments of a call by parameter name, and unpacked ones."""

    named: dict[str, cst.BaseExpression] = field(default_factory=dict)
    stars: list[cst.Arg] = field(default_factory=list)  # *args and **kwargs with unknown content
    problem: str | None = None  # why the call does not fit the signature

    def literal(self, name: str) -> str | None:
        """The value of an argument that is a string literal; None otherwise."""
        return string_value(self.named.get(name))


def string_value(node: cst.CSTNode | None) -> str | None:
    """The value of a string literal, also of several that are concatenated implicitly; None for anything else."""
    if isinstance(node, cst.SimpleString):
        plain = PLAIN.fullmatch(node.value)
        if plain is not None:
            return plain.group(1) or plain.group(2) or ""
    if isinstance(node, cst.SimpleString | cst.ConcatenatedString):
        value = node.evaluated_value
        return value if isinstance(value, str) else None
    return None


def is_none(node: cst.CSTNode | None) -> bool:
    return isinstance(node, cst.Name) and node.value == "None"


def literal_mapping(node: cst.BaseExpression) -> dict[str, cst.BaseExpression] | None:
    """The items of `{"a": x}` or `dict(a=x)`; None for anything else, or if something is unpacked in it."""
    items: dict[str, cst.BaseExpression] = {}
    if isinstance(node, cst.Dict):
        for element in node.elements:
            key = string_value(element.key) if isinstance(element, cst.DictElement) else None
            if key is None or not key.isidentifier():
                return None
            items[key] = element.value
        return items
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value == "dict":
        for arg in node.args:
            if arg.star or arg.keyword is None:
                return None
            items[arg.keyword.value] = arg.value
        return items
    return None


def read_arguments(args: Sequence[cst.Arg], parameters: Sequence[str]) -> Arguments:
    """Assign positional arguments to parameters, as Python does."""
    result = Arguments()
    for position, arg in enumerate(args):
        if arg.star == "**":
            items = literal_mapping(arg.value)
            if items is None:
                result.stars.append(arg)
            else:
                for name, value in items.items():
                    add(result, name, value)
        elif arg.star == "*":
            result.stars.append(arg)
        elif arg.keyword is not None:
            add(result, arg.keyword.value, arg.value)
        elif any(earlier.star == "*" for earlier in args[:position]):
            result.problem = "a positional argument follows *args"
        elif position >= len(parameters):
            result.problem = f"it takes {len(parameters)} positional arguments"
        else:
            add(result, parameters[position], arg.value)
    return result


def add(result: Arguments, name: str, value: cst.BaseExpression) -> None:
    if name in result.named:
        result.problem = f"{name} is given twice"
    result.named[name] = value
