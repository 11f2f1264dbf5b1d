"""One call of something of upstream's API, and the changes that the rules make to its arguments."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

import libcst as cst

from ..analysis.arguments import is_none, literal_mapping, string_value
from ..analysis.uses import Use
from ..changes import Changes, Rewrite
from ..context import Context
from ..edit.argument_list import appended, between, named, with_comma, without
from ..edit.build import NO_SPACE, without_comments
from .old_api import OLD_PARAMETERS, STILL_IN_PLACE

# Functions without an effect of their own.
PURE = frozenset(
    {"bool", "dict", "float", "int", "len", "list", "max", "min", "range", "sorted", "str", "sum", "tuple"}
)
EFFECTS = (cst.NamedExpr, cst.Await, cst.Yield)


@dataclass(eq=False)
class OldCall:
    """A call, its arguments by old parameter, and what the rules decided about them."""

    context: Context
    changes: Changes
    use: Use
    call: cst.Call
    renames_function: bool  # the function gets another name, so the arguments are those of another signature
    places: dict[str, int] = field(default_factory=dict)  # parameter -> position in the call
    stars: list[cst.Arg] = field(default_factory=list)
    problem: str = ""  # why the arguments are not known
    gone: dict[int, str] = field(default_factory=dict)  # position -> rule that removes the argument
    keywords: dict[int, str] = field(default_factory=dict)  # position -> its new keyword
    values: dict[int, cst.BaseExpression] = field(default_factory=dict)  # position -> its new value
    # Keywords that are added in front.
    first: list[tuple[str, cst.BaseExpression]] = field(default_factory=list)
    last: list[tuple[str, cst.BaseExpression]] = field(default_factory=list)  # and at the end
    notes: list[tuple[str, str]] = field(default_factory=list)  # rule and what the report says

    def __post_init__(self) -> None:
        parameters = OLD_PARAMETERS[self.use.name]
        for place, arg in enumerate(self.call.args):
            if arg.star:
                self.stars.append(arg)
            elif arg.keyword is not None:
                self.places[arg.keyword.value] = place
            elif any(each.star == "*" for each in self.call.args[:place]) or place >= len(parameters):
                self.problem = "positional arguments that the old signature does not have"
            else:
                self.places[parameters[place]] = place

    # ---- what is there

    def has(self, *names: str) -> bool:
        """Whether one of the arguments is given, other than as None."""
        return any(name in self.places and not is_none(self.value(name)) for name in names)

    def value(self, name: str) -> cst.BaseExpression:
        return self.call.args[self.places[name]].value

    def literal(self, name: str) -> str | None:
        """The value of an argument that is a string literal."""
        return string_value(self.value(name)) if name in self.places else None

    def pattern_fields(self) -> tuple[str, dict[str, cst.BaseExpression]]:
        """The argument that is a pattern written as a dictionary, and its fields; empty if there is none."""
        name = "sparse_config" if "sparse_config" in self.places else "sparsity_config"
        fields = literal_mapping(self.value(name)) if name in self.places else None
        return ("", {}) if fields is None else (name, fields)

    def code(self, node: cst.CSTNode) -> str:
        return self.context.module.code_for_node(node)

    def wants(self, rule: str) -> bool:
        """Whether a rule may act here. With the name of a class, its arguments are migrated too."""
        if self.renames_function:
            ignored = rule in self.context.settings.ignore
            return not ignored and not self.context.is_silenced(rule, self.use.node)
        return self.context.wants(rule, self.use.node)

    # ---- what the rules decide

    def note(self, rule: str, text: str) -> None:
        self.notes.append((rule, text))

    def leave(self, reason: str, detail: str, text: str = "") -> None:
        self.changes.leave(self.call, reason, detail, text)

    def remove(self, rule: str, name: str, why: str) -> None:
        """Remove an argument, unless its value does something."""
        value = self.value(name)
        if has_effect(value):
            self.leave("UP109", f"{name}={self.code(value)}")
            return
        if self.problem and self.call.args[self.places[name]].keyword is None:
            return  # it would move the arguments that no parameter is known for
        self.gone[self.places[name]] = rule
        self.note(rule, f"{name} {why}")

    def add(self, rule: str, name: str, value: cst.BaseExpression, in_front: bool = False) -> None:
        (self.first if in_front else self.last).append((name, value))
        self.note(rule, "")

    def give(self, rule: str, name: str, value: cst.BaseExpression) -> None:
        """Write an argument that is left out or None."""
        if name in self.places:
            self.values[self.places[name]] = value
            self.note(rule, "")
        else:
            self.add(rule, name, value)

    # ---- the new call

    @property
    def changed(self) -> bool:
        return bool(self.gone or self.keywords or self.values or self.first or self.last)

    def finish(self) -> None:
        """Record the rewrite."""
        self.name_positional()
        if not self.changed:
            return
        self.changes.replacements[self.call] = Rewrite("", self.make, keeps_name=True)
        by_rule: dict[str, list[str]] = {}
        for rule, text in self.notes:
            by_rule.setdefault(rule, []).append(text)
        for rule, texts in sorted(by_rule.items()):
            self.changes.note(self.use.node, rule, "; ".join(filter(None, texts)))

    def name_positional(self) -> None:
        """Give positional arguments a keyword where their places have changed."""
        if self.problem:
            return  # marked as UP105
        parameters = OLD_PARAMETERS[self.use.name]
        fixed = STILL_IN_PLACE[self.use.name] if self.renames_function or self.changed else parameters
        for place, arg in enumerate(self.call.args):
            if arg.keyword is not None or arg.star or place in self.gone:
                continue
            in_place = place < len(fixed) and fixed[place] == parameters[place]
            if not in_place or any(earlier < place for earlier in self.gone):
                self.keywords.setdefault(place, parameters[place])

    def make(self, now: cst.Call) -> cst.Call:
        args = []
        for place, arg in enumerate(now.args):
            value = self.values.get(place, arg.value)
            new = arg if value is arg.value else arg.with_changes(value=value)
            args.append(named(new, self.keywords[place]) if place in self.keywords else new)
        space, end = now.whitespace_before_args, None
        if not now.args and isinstance(space, cst.ParenthesizedWhitespace):  # a comment in parentheses
            inner = space.last_line.value + self.context.module.default_indent
            space, end = space.with_changes(last_line=cst.SimpleWhitespace(inner)), without_comments(space)
        kept = without(args, self.gone)
        for name, value in reversed(self.first):
            added = cst.Arg(value, cst.Name(name), NO_SPACE)
            kept = [with_comma(added, between(kept, space)), *kept] if kept else [added]
        for name, value in self.last:
            kept = appended(kept, cst.Arg(value, cst.Name(name), NO_SPACE), space)
        if end is not None:
            kept[-1] = kept[-1].with_changes(whitespace_after_arg=end)
        return now.with_changes(args=kept, whitespace_before_args=space if kept else cst.SimpleWhitespace(""))


CallRule = Callable[[OldCall], None]
CALL_RULES: dict[str, list[CallRule]] = {}  # name of upstream -> what decides about its calls


def edits(*names: str) -> Callable[[CallRule], CallRule]:
    """Register the function that decides about the arguments of calls of these names."""

    def register(rule: CallRule) -> CallRule:
        for name in names:
            CALL_RULES.setdefault(name, []).append(rule)
        return rule

    return register


def call_rules(name: str) -> list[CallRule]:
    """Those of a name in the order of their files, whatever was imported first; the ones that only mark come before."""

    def place(rule: CallRule) -> tuple[bool, str]:
        file = rule.__module__.rpartition(".")[2]
        return not file.startswith("up1"), file

    return sorted(CALL_RULES.get(name, ()), key=place)


def is_multihead(call: OldCall) -> bool:
    """Whether the factory makes the multihead variant."""
    if "variant" in call.places and call.literal("variant") != "auto":
        return call.literal("variant") == "multihead"
    return call.has("embed_dim") and call.has("num_heads") and not call.has("distributed_config")


def has_effect(node: cst.CSTNode) -> bool:
    """Whether computing an expression may do more than give a value."""
    if isinstance(node, EFFECTS):
        return True
    if isinstance(node, cst.Call) and not (isinstance(node.func, cst.Name) and node.func.value in PURE):
        return True
    return any(has_effect(child) for child in node.children)


NUMBER = re.compile(r"[\d_.eE+-]+")


def number(node: cst.BaseExpression | None) -> float | None:
    """The value of a number literal; None for anything else."""
    if isinstance(node, cst.Integer | cst.Float) and NUMBER.fullmatch(node.value):
        return float(node.value)
    return None
