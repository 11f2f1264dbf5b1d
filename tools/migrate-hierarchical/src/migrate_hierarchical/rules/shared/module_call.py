"""Shared by HIER001, HIER003, HIER004, HIER005 and HIER006: the call that creates the module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import libcst as cst

from ...analysis.arguments import Arguments, is_none, read_arguments
from ...analysis.uses import Use
from ...changes import BlockSizes, Changes, Rewrite
from ...context import Context
from ...density import OldPattern, preset_pattern
from ...diagnostic import Diagnostic
from ...edit.build import (
    Item,
    Style,
    comment_behind,
    first_of,
    in_parentheses,
    integers,
    moved,
    pattern_config,
    string,
)
from ...edit.build import call as new_call
from ...removed_api import FACTORY, PARAMETERS, PASSED_ON, PATTERN, PATTERN_PARAMETERS, REMOVED_CONFIG
from ..hier002 import config_misfit
from .registry import Decision

HANDLED = {"segment_lengths", "dilation_rates", "hierarchical_config", "sparse_config"}
DEFAULT_SEGMENT = 2048
BLOCK_SIZES = (256, 128, 64, 32, 16)  # descending: of two equally near ones the larger is taken
KEPT_RATIO = 0.05  # an explicit ratio up to this is taken as intended


@dataclass
class OldForm:
    """Describes one form of the old API."""

    rule: str
    parameters: Sequence[str]
    ignored: dict[str, str] = field(default_factory=dict)  # argument without effect -> the note about it
    has_shorthands: bool = False  # sparsity_ratio and block_size
    preset: str | None = None  # the old configuration, if the form names it
    dropped: tuple[str, ...] = ()  # arguments that only selected the form


@dataclass
class PatternSource:
    """The source of the new module's pattern."""

    expression: bool = False  # hierarchical_config is already one: it becomes sparse_config
    block_size: Callable[[Arguments], cst.BaseExpression | None] = lambda arguments: None
    block_sizes: BlockSizes = field(default_factory=BlockSizes)
    ratio: float | None = None
    absorbs: list[cst.CSTNode] = field(default_factory=list)


def integer(node: cst.CSTNode | None) -> int | None:
    return node.evaluated_value if isinstance(node, cst.Integer) else None


def block_sizes_of(
    node: cst.CSTNode | None, notes: list[str]
) -> tuple[BlockSizes, cst.BaseExpression | None]:
    """The literal block size before and after, and the new expression if it differs."""
    size = integer(node)
    if size is None:
        return BlockSizes(literal=node is None), None
    old = size or 64  # 0 meant the default
    if size in BLOCK_SIZES:
        return BlockSizes(old, old), None
    new = min(BLOCK_SIZES, key=lambda each: abs(each - old))
    notes.append(f"block_size must be a power of two from 16 to 256: {size} becomes {new}")
    return BlockSizes(old, new), cst.Integer(str(new))


def ratio_of(node: cst.CSTNode | None) -> float | None:
    """The explicit literal ratio, if it is kept."""
    if isinstance(node, cst.Float | cst.Integer):
        value = float(node.evaluated_value)
        return value if 0 < value <= KEPT_RATIO else None
    return None


def module_call(
    context: Context, changes: Changes, use: Use, call: cst.Call, arguments: Arguments, old: OldForm
) -> Decision:
    """The rewrite of a call that created a hierarchical module, or the reason why it is left."""
    if arguments.problem:
        return Diagnostic("HIER111", arguments.problem)
    named = arguments.named
    hidden = [arg for arg in arguments.stars if arg.star == "*" or not set(named) >= HANDLED]
    if hidden:
        return Diagnostic("HIER104", f"{hidden[0].star}{context.module.code_for_node(hidden[0].value)}")
    style = context.style(call)
    if style is None:
        return Diagnostic("HIER112", "inside nested f-strings")
    notes = [note for name, note in old.ignored.items() if name in named]
    config = read_config(context, use, named)
    if isinstance(config, Diagnostic):
        return config
    read_sparse = read_sparse_config(context, use, named, config, notes)
    if isinstance(read_sparse, Diagnostic):
        return read_sparse
    if old.has_shorthands:
        read_shorthands(named, config, notes)
    segment = segment_lengths(context, use, named, config, notes)

    rest = [
        name
        for name in named
        if name not in HANDLED
        and name not in old.ignored
        and name not in old.dropped
        and not (old.has_shorthands and name in ("sparsity_ratio", "block_size"))
    ]
    foreign = [name for name in rest if name not in PASSED_ON]
    function = changes.name(use, FACTORY)
    given = named.get("hierarchical_config")
    # None meant the default configuration; sparse_config=None would mean another density
    or_default = config.expression and given is not None and context.may_be_none(given, use.scope)
    pattern = changes.name(use, PATTERN) if or_default or not config.expression else None

    new = NewCall(context, changes, call, old, config, style, function, pattern, segment, rest)
    before: OldPattern | None = None
    if pattern is not None:
        before = context.old_pattern(None if config.expression else given)
        if old.preset is not None:
            before = preset_pattern(old.preset)
    todo = Diagnostic("HIER110", ", ".join(foreign)) if foreign else None
    return Rewrite(
        old.rule,
        new.make,
        notes,
        absorbs=config.absorbs,
        old=[] if before is None else [before],
        block_sizes=config.block_sizes,
        ratio=None if config.expression else config.ratio,
        todo=todo,
    )


@dataclass
class NewCall:
    """What is written in the place of an old call."""

    context: Context
    changes: Changes
    call: cst.Call  # the old one
    old: OldForm
    config: PatternSource
    style: Style
    function: cst.BaseExpression
    pattern: cst.BaseExpression | None  # the class of the pattern that is written
    segment_lengths: Callable[[cst.BaseExpression | None], cst.BaseExpression]
    rest: list[str]  # arguments that stay

    def make(self, updated: cst.Call) -> cst.BaseExpression:
        new_line = self.style.deeper()
        args = [
            moved(new, self.context.source.indents[each], new_line, self.changes.moved)
            for new, each in zip(updated.args, self.call.args)
        ]
        now = read_arguments(args, self.old.parameters)
        comments = {arg.value: comment_behind(arg) for arg in args}
        items = [
            Item("variant", string("base", self.style)),
            Item("segment_lengths", self.segment_lengths(now.named.get("segment_lengths"))),
            Item("dilation_rates", integers([1])),
            *self.pattern_items(now),
        ]
        items += [Item(name, now.named[name]) for name in self.rest]
        items += [Item("", arg.value, star=arg.star) for arg in now.stars]
        renamed = {"sparse_config": "hierarchical_config"} if self.config.expression else {}
        for i, item in enumerate(items):
            value = item.value if item.star else now.named.get(renamed.get(item.keyword, item.keyword))
            items[i] = replace(item, comment=comments.get(value) if value is not None else None)
        return new_call(self.function, items, self.style, updated.lpar, updated.rpar)

    def pattern_items(self, now: Arguments) -> Iterator[Item]:
        settings, inner = self.context.settings, self.style.deeper()
        block_size = self.config.block_size(now)
        if not self.config.expression:
            assert self.pattern is not None
            new = pattern_config(self.pattern, settings, inner, block_size, self.config.ratio)
            yield Item("sparse_config", new)
            return
        value = now.named["hierarchical_config"]
        if self.pattern is not None:
            default = pattern_config(self.pattern, settings, inner)
            value = cst.BooleanOperation(in_parentheses(value), cst.Or(), default)
        yield Item("sparse_config", value)
        if block_size is not None:
            yield Item("block_size", block_size)


def read_config(
    context: Context, use: Use, named: dict[str, cst.BaseExpression]
) -> PatternSource | Diagnostic:
    """Read hierarchical_config."""
    value = named.get("hierarchical_config")
    config = PatternSource()
    if value is None or is_none(value):
        return config
    if isinstance(value, cst.Call):
        inner = context.resolver.by_node.get(value.func)
        if inner is not None and inner.name == REMOVED_CONFIG and inner.agrees:
            config.absorbs = [value]
            return config_misfit(read_arguments(value.args, PARAMETERS[REMOVED_CONFIG])) or config
        if inner is not None and inner.name == PATTERN and is_written(context, value):
            config.absorbs = [value]
            return config
    if isinstance(value, cst.Subscript) and context.is_presets_call(value.value):
        config.absorbs = [value, value.value]
        return config
    kind = context.origins.kind(value, use.scope)
    if kind == "none":
        return config
    if kind not in ("config", "pattern"):  # a pattern comes from an earlier run with other rules
        code = context.module.code_for_node(value)
        return Diagnostic("HIER106", f"hierarchical_config={code}")
    config.expression = True
    return config


def is_written(context: Context, call: cst.Call) -> bool:
    """Whether a pattern is the one that the codemod writes."""
    new = pattern_config(call.func, context.settings, Style(indent=None))
    given = read_arguments(call.args, PATTERN_PARAMETERS).named
    wanted = read_arguments(new.args, PATTERN_PARAMETERS).named
    code = context.module.code_for_node
    return given.keys() == wanted.keys() and all(
        "".join(code(given[name]).split()).replace("'", '"') == "".join(code(wanted[name]).split())
        for name in wanted
    )


def read_sparse_config(
    context: Context, use: Use, named: dict[str, cst.BaseExpression], config: PatternSource, notes: list[str]
) -> Diagnostic | None:
    """Only the block size of an old sparse_config had an effect."""
    value = named.get("sparse_config")
    if value is None or is_none(value):
        return None
    if isinstance(value, cst.Call):
        inner = context.resolver.by_node.get(value.func)
        if inner is not None and inner.name == PATTERN and inner.agrees:
            given = read_arguments(value.args, PATTERN_PARAMETERS)
            if given.stars or given.problem:
                return Diagnostic("HIER104", "sparse_config=" + context.module.code_for_node(value))
            config.absorbs.append(value)
            if "block_size" in given.named:
                config.block_sizes, other = block_sizes_of(given.named["block_size"], notes)
                config.block_size = inner_block_size if other is None else lambda now: other
            return None
    kind = context.origins.kind(value, use.scope)
    if kind == "none":
        return None
    if kind != "pattern":
        return Diagnostic("HIER106", f"sparse_config={context.module.code_for_node(value)}")
    may_be_none = context.may_be_none(value, use.scope)
    config.block_size = block_size_or_default if may_be_none else attribute_block_size
    config.block_sizes = BlockSizes(literal=False)
    return None


def inner_block_size(now: Arguments) -> cst.BaseExpression | None:
    inner = now.named["sparse_config"]
    assert isinstance(inner, cst.Call)
    return read_arguments(inner.args, PATTERN_PARAMETERS).named.get("block_size")


def attribute_block_size(now: Arguments) -> cst.BaseExpression | None:
    return cst.Attribute(in_parentheses(now.named["sparse_config"]), cst.Name("block_size"))


def block_size_or_default(now: Arguments) -> cst.BaseExpression | None:
    """`(pattern.block_size if pattern is not None else 64)`: without a pattern the old default applied."""
    pattern = now.named["sparse_config"]
    is_given = cst.Comparison(in_parentheses(pattern), [cst.ComparisonTarget(cst.IsNot(), cst.Name("None"))])
    attribute = cst.Attribute(in_parentheses(pattern), cst.Name("block_size"))
    return cst.IfExp(is_given, attribute, cst.Integer(str(BlockSizes().old)))


def read_shorthands(named: dict[str, cst.BaseExpression], config: PatternSource, notes: list[str]) -> None:
    """Read sparsity_ratio and block_size next to the configs; sparse_config took precedence."""
    sparse = named.get("sparse_config")
    if "sparsity_ratio" in named and not is_none(named["sparsity_ratio"]):
        config.ratio = ratio_of(named["sparsity_ratio"])
        if config.ratio is None:
            notes.append("sparsity_ratio had no effect on the hierarchical pattern: the default is used")
    if "block_size" in named and not is_none(named["block_size"]) and (sparse is None or is_none(sparse)):
        config.block_sizes, other = block_sizes_of(named["block_size"], notes)
        config.block_size = lambda now: now.named["block_size"] if other is None else other


def segment_lengths(
    context: Context, use: Use, named: dict[str, cst.BaseExpression], config: PatternSource, notes: list[str]
) -> Callable[[cst.BaseExpression | None], cst.BaseExpression]:
    """A function that returns the new segment_lengths for the old ones."""
    value = named.get("segment_lengths")
    if value is None or is_none(value):
        return lambda now: integers([DEFAULT_SEGMENT])
    if isinstance(value, cst.List | cst.Tuple) and value.elements:
        first = integer(value.elements[0].value)
        block = config.block_sizes.new
        if first is not None and first % block:
            rounded = -(-first // block) * block
            notes.append(
                f"segment length {first} is no multiple of the block size {block}: {rounded} is written instead"
            )
            return lambda now: integers([rounded])
    if context.may_be_none(value, use.scope):
        default = integers([DEFAULT_SEGMENT])

        def with_default(now: cst.BaseExpression | None) -> cst.BaseExpression:
            assert now is not None
            either = cst.BooleanOperation(
                in_parentheses(now), cst.Or(), default, lpar=[cst.LeftParen()], rpar=[cst.RightParen()]
            )
            return cst.Subscript(either, [cst.SubscriptElement(cst.Slice(None, cst.Integer("1")))])

        return with_default

    def first_part(now: cst.BaseExpression | None) -> cst.BaseExpression:
        assert now is not None
        return first_of(now)

    return first_part
