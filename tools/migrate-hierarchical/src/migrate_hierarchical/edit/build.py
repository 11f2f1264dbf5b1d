"""Builds new expressions, laid out like the code around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import libcst as cst

from ..density import exact_percent
from ..dilated_sparse import LEAST
from ..settings import Settings

NO_SPACE = cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace(""))


@dataclass(frozen=True)
class Style:
    """The place of new code."""

    quote: str = '"'
    indent: str | None = ""  # of its first line, within its block; None: everything on one line
    from_block: bool = True  # whether the block's indentation is added to it
    unit: str = "    "

    def deeper(self) -> Style:
        return Style(
            self.quote, None if self.indent is None else self.indent + self.unit, self.from_block, self.unit
        )


@dataclass(frozen=True)
class Item:
    """One keyword argument of a new call."""

    keyword: str
    value: cst.BaseExpression
    comment: str | None = None
    star: Literal["", "*", "**"] = ""


def string(text: str, style: Style) -> cst.SimpleString:
    return cst.SimpleString(f"{style.quote}{text}{style.quote}")


def integers(values: Sequence[int]) -> cst.List:
    elements = [
        cst.Element(
            cst.Integer(str(value)),
            cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
            if i < len(values) - 1
            else cst.MaybeSentinel.DEFAULT,
        )
        for i, value in enumerate(values)
    ]
    return cst.List(elements)


def call(
    function: cst.BaseExpression, items: Sequence[Item], style: Style, lpar: Sequence[cst.LeftParen] = (),
    rpar: Sequence[cst.RightParen] = (),
) -> cst.Call:  # fmt: skip
    """A call with one keyword per line, or on one line if the style says so."""
    one_line = style.indent is None or not items
    args = []
    for i, item in enumerate(items):
        last = i == len(items) - 1
        comma: cst.Comma | cst.MaybeSentinel
        if one_line:
            comma = (
                cst.MaybeSentinel.DEFAULT if last else cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
            )
        else:
            comma = cst.Comma(whitespace_after=line_end(style if last else style.deeper(), item.comment))
        keyword = None if item.star else cst.Name(item.keyword)
        equal = cst.MaybeSentinel.DEFAULT if item.star else NO_SPACE
        args.append(cst.Arg(item.value, keyword=keyword, equal=equal, comma=comma, star=item.star))
    before = cst.SimpleWhitespace("") if one_line else line_end(style.deeper(), None)
    return cst.Call(function, args, lpar=lpar, rpar=rpar, whitespace_before_args=before)


def line_end(style: Style, comment: str | None) -> cst.ParenthesizedWhitespace:
    """The end of a line and the indentation of the next."""
    end = cst.TrailingWhitespace()
    if comment is not None:
        end = cst.TrailingWhitespace(cst.SimpleWhitespace("  "), cst.Comment(comment))
    return cst.ParenthesizedWhitespace(
        end, indent=style.from_block, last_line=cst.SimpleWhitespace(style.indent or "")
    )


def comment_behind(arg: cst.Arg) -> str | None:
    """The comment at the end of the line of an argument."""
    after: Any = arg.whitespace_after_arg
    if isinstance(arg.comma, cst.Comma):
        after = arg.comma.whitespace_after
    comment = after.first_line.comment if isinstance(after, cst.ParenthesizedWhitespace) else None
    return None if comment is None else comment.value


def without_comments(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    if isinstance(space, cst.ParenthesizedWhitespace):
        return space.with_changes(first_line=cst.TrailingWhitespace(), empty_lines=[])
    return space


class Indentation(cst.CSTTransformer):
    """Replaces the indentation of all lines of an expression but the first."""

    def __init__(self, old: tuple[bool, str], new: Style, moved: dict[cst.CSTNode, cst.CSTNode]) -> None:
        super().__init__()
        self.old, self.new, self.nodes = old, new, moved

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        left: Any = super().on_leave(original_node, updated_node)
        self.nodes[original_node] = left
        return left

    def leave_ParenthesizedWhitespace(
        self, original_node: cst.ParenthesizedWhitespace, updated_node: cst.ParenthesizedWhitespace
    ) -> cst.ParenthesizedWhitespace:
        if updated_node.indent is not self.old[0]:
            return updated_node
        return updated_node.with_changes(
            indent=self.new.from_block, last_line=self.moved(updated_node.last_line)
        )

    def leave_EmptyLine(self, original_node: cst.EmptyLine, updated_node: cst.EmptyLine) -> cst.EmptyLine:
        if updated_node.comment is None or updated_node.indent is not self.old[0]:
            return updated_node
        return updated_node.with_changes(
            indent=self.new.from_block, whitespace=self.moved(updated_node.whitespace)
        )

    def moved(self, space: cst.SimpleWhitespace) -> cst.SimpleWhitespace:
        if not space.value.startswith(self.old[1]):
            return space
        return cst.SimpleWhitespace((self.new.indent or "") + space.value[len(self.old[1]) :])


def moved(arg: cst.Arg, old: tuple[bool, str], new: Style, nodes: dict[cst.CSTNode, cst.CSTNode]) -> cst.Arg:
    """An argument, indented for its new line; `nodes` records the new node of every old one."""
    if new.indent is None or old == (new.from_block, new.indent):
        return arg
    inner = arg.value.visit(Indentation(old, new, nodes))
    assert isinstance(inner, cst.BaseExpression)
    return arg.with_changes(value=inner)


def pattern_config(
    function: cst.BaseExpression,
    settings: Settings,
    style: Style,
    block_size: cst.BaseExpression | None = None,
    ratio: float | None = None,
    lpar: Sequence[cst.LeftParen] = (),
    rpar: Sequence[cst.RightParen] = (),
) -> cst.Call:
    """`SparsePatternConfig(pattern_type="dilated_sparse", ...)`."""
    value = settings.sparsity_ratio if ratio is None else ratio
    explain = settings.explain and style.indent is not None
    items = [Item("pattern_type", string("dilated_sparse", style))]
    if block_size is not None:
        items.append(Item("block_size", block_size))
    items.append(Item("sparsity_ratio", number(value), about_ratio(value) if explain else None))
    rates = settings.dilation_rates
    items.append(Item("dilation_rates", integers(rates), about_rates(rates) if explain else None))
    return call(function, items, style, lpar, rpar)


def about_ratio(ratio: float) -> str:
    """The comment of --explain on a ratio; true at every length, causal or not."""
    if ratio == 1:
        return "# keeps all blocks"
    least = f"at least {LEAST[False]} per row (causal: {LEAST[True]})"
    return f"# keeps {exact_percent(ratio)}% of the blocks, {least}"


def about_rates(rates: Sequence[int]) -> str:
    """The comment of --explain on the rates; true at every length, causal or not."""
    if len(set(rates)) == 1:
        return "# distance in blocks"
    return "# distances in blocks; sparse rows share them out"


def number(value: float) -> cst.BaseNumber:
    text = repr(float(value))
    return cst.Float(text)


def first_of(node: cst.BaseExpression) -> cst.BaseExpression:
    """A list with the first element of a list literal; `expr[:1]` of anything else."""
    if isinstance(node, cst.List | cst.Tuple) and node.elements:
        first = node.elements[0]
        if isinstance(first, cst.Element):
            return cst.List([cst.Element(first.value)])
    return cst.Subscript(in_parentheses(node), [cst.SubscriptElement(cst.Slice(None, cst.Integer("1")))])


def in_parentheses(node: cst.BaseExpression) -> cst.BaseExpression:
    """An expression, in parentheses if an operator needs them."""
    simple = isinstance(
        node, cst.Name | cst.Attribute | cst.Call | cst.Subscript | cst.List | cst.Tuple | cst.ListComp
    )
    if node.lpar or (simple and not isinstance(node, cst.Tuple)):
        return node
    return node.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
