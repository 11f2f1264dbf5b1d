"""Decides, for every use of the removed API in one file, what happens to it; changes nothing itself."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import libcst as cst

from .analysis.context import (
    annotation_name_edit,
    fstring_quotes,
    in_annotation,
    in_type_call,
    is_docstring,
)
from .analysis.origins import Origins
from .analysis.scopes import Binding, ImportStatement, Scope, Walk, dotted
from .analysis.uses import Resolver, Use
from .density import LEVELS
from .edit.arguments import is_none, read_arguments, string_value
from .edit.build import Style
from .names import (
    CONFIG,
    FACTORY,
    HIERARCHICAL_STRINGS,
    KEPT,
    MEMBERS,
    PACKAGE,
    PARAMETERS,
    PRESET,
    PRESETS,
    REMOVED,
    REMOVED_MODULE,
    TYPES,
)
from .rules import DECIDERS
from .rules.base import Left, Rewrite
from .settings import Settings

NAMED_BY = ("variant", "pattern_type", "preset", "preset_name", "name")


@dataclass
class Outcome:
    """One entry of the report."""

    line: int
    rule: str
    detail: str = ""


class Planner:
    def __init__(self, module: cst.Module, walk: Walk, settings: Settings, is_init: bool) -> None:
        self.module, self.walk, self.settings, self.is_init = module, walk, settings, is_init
        self.resolver = Resolver(walk)
        self.origins = Origins(walk, self.resolver)
        self.replacements: dict[cst.CSTNode, Rewrite] = {}
        self.renames: dict[cst.CSTNode, cst.BaseExpression] = {}
        self.strings: dict[cst.CSTNode, str] = {}  # string literal -> its new source
        self.needs: dict[ImportStatement, dict[str, str]] = {}
        self.to_root: set[ImportStatement] = set()  # import statements of modules that become the package
        self.used: set[cst.Name] = set()  # leftmost names of uses that go
        self.todos: list[tuple[cst.CSTNode, Left]] = []
        self.rewritten: list[Outcome] = []
        self.densities: list[tuple[str, object, int]] = []  # name, levels, block size
        self.spoken: set[cst.CSTNode] = set()  # strings that a call explains

    # ---- questions of the rules

    def style(self, node: cst.CSTNode) -> Style | None:
        """Layout of a new call in place of a node; None if it cannot be written there."""
        quotes = fstring_quotes(node, self.walk.parents)
        if quotes is not None:
            free = [quote for quote in ('"', "'") if quote not in quotes]
            return Style(quote=free[0], indent=None) if free else None
        from_block, indent = self.walk.indents.get(node, (True, ""))
        return Style(indent=indent, from_block=from_block, unit=self.module.default_indent)

    def name(self, use: Use, name: str) -> cst.BaseExpression:
        """How a name of the package is written where `use` stands; notes what must be imported for it."""
        if use.base is not None:
            for binding in use.bindings:
                if binding.statement is not None:
                    self.to_root.add(binding.statement)
            return cst.Attribute(bare(use.base), cst.Name(name))
        if use.is_star:
            return cst.Name(name)
        statements = [binding.statement for binding in use.bindings if binding.statement is not None]
        there = self.visible(use, name, statements)
        if there is not None:
            return cst.Name(there)
        taken = [b for b in use.scope.lookup(name) if not (b.target or "").endswith("." + name)]
        local = f"dilated_{name}" if taken else name
        for statement in statements:
            self.needs.setdefault(statement, {})[name] = local
        return cst.Name(local)

    def visible(self, use: Use, name: str, statements: list[ImportStatement]) -> str | None:
        """The local name of an import that surely runs before the use."""
        for scope in use.scope.ancestors():
            for local, bindings in scope.bindings.items():
                if not all(
                    b.kind == "import" and self.is_ours(b.target) and (b.target or "").endswith("." + name)
                    for b in bindings
                ):
                    continue
                if use.scope.lookup(local) is not bindings:
                    continue
                if any(self.runs_with(b.statement, statements) for b in bindings):
                    return local
        return None

    @staticmethod
    def is_ours(target: str | None) -> bool:
        return (target or "").removeprefix("src.").startswith(PACKAGE + ".")

    def runs_with(self, statement: ImportStatement | None, statements: list[ImportStatement]) -> bool:
        if statement is None:
            return False
        blocks = [self.block(each) for each in statements]
        return isinstance(self.block(statement), cst.Module) or self.block(statement) in blocks

    def block(self, node: cst.CSTNode) -> cst.CSTNode:
        line = self.walk.parents[node]
        return self.walk.parents[line]

    def levels(self, node: cst.BaseExpression | None) -> tuple[str, object] | None:
        """Name and levels of an old configuration, if it is literal."""
        if node is None or is_none(node):
            return "default", LEVELS["standard"]
        if isinstance(node, cst.Call):
            use = self.resolver.by_node.get(node.func)
            if use is None or use.name != CONFIG:
                return None
            given = read_arguments(node.args, PARAMETERS[CONFIG])
            levels = given.named.get("level_configs")
            if given.stars or given.problem:
                return None
            if levels is None or is_none(levels):
                return "default", LEVELS["standard"]
            try:
                value = ast.literal_eval(self.module.code_for_node(levels).strip())
                if all(type(level["stride"]) is int and type(level["window_size"]) is int for level in value):
                    return "custom", value
            except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
                return None
        if isinstance(node, cst.Subscript) and self.is_presets_call(node.value):
            index = node.slice[0].slice
            name = string_value(index.value) if isinstance(index, cst.Index) else None
            return (name, LEVELS[name]) if name in LEVELS else None
        return None

    @staticmethod
    def levels_of_preset(name: str) -> tuple[str, object]:
        return name, LEVELS[name]

    @staticmethod
    def may_be_none(node: cst.BaseExpression, scope: Scope) -> bool:
        """Whether an expression is a parameter whose default is None."""
        if not isinstance(node, cst.Name):
            return False
        params = [binding.node for binding in scope.lookup(node.value) if binding.kind == "parameter"]
        return any(isinstance(param, cst.Param) and is_none(param.default) for param in params)

    def is_presets_call(self, node: cst.CSTNode) -> bool:
        use = self.resolver.by_node.get(node.func) if isinstance(node, cst.Call) else None
        return use is not None and use.name == PRESETS and use.agrees

    def mentions_hierarchical(self) -> bool:
        """Whether a string of the file is the name of a removed variant or preset."""
        return any(string_value(node) in HIERARCHICAL_STRINGS for node in self.walk.strings)

    # ---- the plan

    def run(self) -> None:
        absorbed: set[cst.CSTNode] = set()  # parts of rewritten calls that go
        for use in self.resolver:  # in source order: a call before the calls inside it
            if self.climb(use.node, absorbed):
                self.used.add(use.root)
                if use.name in REMOVED:
                    self.rewritten.append(Outcome(self.walk.lines[use.node], "HIER002"))
                continue
            before = {statement: dict(names) for statement, names in self.needs.items()}, set(self.to_root)
            decision = self.decide(use)
            if decision is None:
                if use.node not in self.renames:
                    self.needs, self.to_root = before
                continue
            self.apply(use, *decision)
            absorbed.update(decision[1].absorbs)
        self.check_members()
        self.check_strings()

    def decide(self, use: Use) -> tuple[cst.CSTNode, Rewrite] | None:
        """The node to replace and how; None if nothing changes here."""
        parents = self.walk.parents
        parent = parents[use.node]
        if isinstance(parent, cst.Del) or use.name == REMOVED_MODULE:
            if use.name == REMOVED_MODULE:
                self.leave(use.node, "HIER109", f"{REMOVED_MODULE} is used as a value")
            return None
        called = isinstance(parent, cst.Call) and parent.func is use.node
        if use.name in REMOVED:
            if not use.agrees:
                self.leave(use.node, "HIER107", f"{use.root.value} is bound in several ways")
                return None
            if use.is_star:
                self.leave(use.node, "HIER108", use.name)
                return None
        if called and use.name in DECIDERS:
            assert isinstance(parent, cst.Call)
            return self.decide_call(use, parent)
        if use.name in REMOVED:
            self.decide_value(use, parent)
        return None

    def decide_call(self, use: Use, call: cst.Call) -> tuple[cst.CSTNode, Rewrite] | None:
        arguments = read_arguments(call.args, PARAMETERS[use.name])
        decision = DECIDERS[use.name](self, use, call, arguments)
        if decision is None:
            return None
        if isinstance(decision, Left):
            self.leave(call, decision.reason, decision.detail)
            self.spoken.update(node for node in self.walk.strings if self.inside(node, call))
            return None
        if not self.settings.wants(decision.rule):
            self.spoken.update(node for node in self.walk.strings if self.inside(node, call))
            return None
        if not use.agrees:
            self.leave(call, "HIER107", f"{use.root.value} is bound in several ways")
            return None
        if use.name in (FACTORY, PRESET):
            self.origins.instances.add(call)
        target: cst.CSTNode = call
        if use.name == PRESETS:
            parent = self.walk.parents[call]
            if isinstance(parent, cst.Subscript) and parent.value is call:
                target = parent
        return target, decision

    def decide_value(self, use: Use, parent: cst.CSTNode) -> None:
        """A removed name that is not called: a type, a base class, or a value."""
        parents = self.walk.parents
        if isinstance(parent, cst.Arg) and isinstance(parents[parent], cst.ClassDef):
            self.leave(use.node, "HIER101", f"subclass of {use.name}")
        elif isinstance(parent, cst.Attribute) and parent.value is use.node:
            self.leave(use.node, "HIER102", f"{use.name}.{parent.attr.value}")
        elif use.name in TYPES and (in_annotation(use.node, parents) or in_type_call(use.node, parents)):
            if self.settings.wants("HIER008"):
                self.renames[use.node] = self.name(use, TYPES[use.name])
                self.used.add(use.root)
                self.rewritten.append(Outcome(self.walk.lines[use.node], "HIER008"))
        else:
            self.leave(use.node, "HIER109", f"{use.name} is used as a value")

    def apply(self, use: Use, target: cst.CSTNode, rewrite: Rewrite) -> None:
        self.replacements[target] = rewrite
        self.used.add(use.root)
        self.spoken.update(node for node in self.walk.strings if self.inside(node, target))
        self.rewritten.append(Outcome(self.walk.lines[use.node], rewrite.rule, "; ".join(rewrite.notes)))
        if rewrite.todo is not None:
            self.leave(target, rewrite.todo.reason, rewrite.todo.detail)
        if rewrite.old_levels is not None:
            name, levels = rewrite.old_levels
            self.densities.append((name, levels, rewrite.block_size))

    def leave(self, node: cst.CSTNode, reason: str, detail: str) -> None:
        self.todos.append((node, Left(reason, detail)))

    def inside(self, node: cst.CSTNode, outer: cst.CSTNode) -> bool:
        return self.climb(node, {outer})

    def climb(self, node: cst.CSTNode, targets: set[cst.CSTNode]) -> bool:
        """Whether a node is one of the targets or inside one."""
        current: cst.CSTNode | None = node if targets else None
        while current is not None:
            if current in targets:
                return True
            current = self.walk.parents.get(current)
        return False

    # ---- members and strings

    @property
    def has_use(self) -> bool:
        return bool(self.replacements or self.renames or self.todos)

    def check_members(self) -> None:
        """Members of the removed classes, where the object is one of them or nothing says that it is not."""
        if not (self.has_use or any(use.name in REMOVED for use in self.resolver)):
            return
        for node in self.walk.attributes:
            if node.attr.value not in MEMBERS:
                continue
            kind = self.origins.kind(node.value, self.walk.scope_of[node])
            if kind in ("instance", "config") or (kind is None and not self.is_foreign(node.value)):
                self.leave(node, "HIER102", f".{node.attr.value}")

    def is_foreign(self, node: cst.BaseExpression) -> bool:
        """Whether an expression begins with a name imported from another package or defined here as a class."""
        while isinstance(node, cst.Attribute | cst.Call | cst.Subscript):
            node = node.func if isinstance(node, cst.Call) else node.value
        if not isinstance(node, cst.Name):
            return False
        bindings = self.walk.scope_of[node].lookup(node.value) if node in self.walk.scope_of else []
        return bool(bindings) and all(b.kind == "import" and not self.is_ours(b.target) for b in bindings)

    def check_strings(self) -> None:
        imports_ours = any(self.is_ours(b.target) or b.target == PACKAGE for b in self.import_bindings())
        imports_ours = imports_ours or bool(self.walk.stars)
        for node in self.walk.strings:
            value = string_value(node)
            if value is None or node in self.spoken or is_docstring(node, self.walk.parents):
                continue
            if value in HIERARCHICAL_STRINGS:
                if imports_ours and self.given_by_name(node, value):
                    self.leave(node, "HIER113", repr(value))
                continue
            if self.rename_in_string(node):
                continue
            if not any(name in value for name in (*REMOVED, REMOVED_MODULE)):
                continue
            dotted_value = value.replace(":", ".")
            names_it = PACKAGE in value and all(part.isidentifier() for part in dotted_value.split("."))
            if names_it or (imports_ours and value in (*REMOVED, REMOVED_MODULE) and not self.in_all(node)):
                self.leave(node, "HIER103", repr(value))

    def import_bindings(self) -> list[Binding]:
        seen: list[Binding] = []
        for scope in {*self.walk.scope_of.values(), *self.walk.scopes}:
            for bindings in scope.bindings.values():
                seen.extend(binding for binding in bindings if binding.kind == "import")
        return seen

    def given_by_name(self, node: cst.SimpleString, value: str) -> bool:
        """`variant="hierarchical"` in a call that is none of ours, `{"variant": ...}`, `config.pattern_type = ...`."""
        parent = self.walk.parents[node]
        if isinstance(parent, cst.Arg) and parent.keyword is not None:
            return parent.keyword.value in NAMED_BY and not self.is_plain_call(parent)
        if isinstance(parent, cst.Arg):
            return self.is_partial(parent)
        if isinstance(parent, cst.DictElement) and parent.value is node:
            return string_value(parent.key) in NAMED_BY
        if isinstance(parent, cst.Assign):
            targets = [assigned.target for assigned in parent.targets]
            return any(isinstance(t, cst.Attribute) and t.attr.value in NAMED_BY for t in targets)
        return False

    def is_plain_call(self, arg: cst.Arg) -> bool:
        """Whether an argument goes to a class or function of the file or of another package."""
        call = self.walk.parents[arg]
        if not isinstance(call, cst.Call) or self.is_partial(arg):
            return False
        return self.is_foreign(call.func) and dotted(call.func) not in ("dataclasses.replace", "replace")

    def is_partial(self, arg: cst.Arg) -> bool:
        call = self.walk.parents[arg]
        if not isinstance(call, cst.Call) or not call.args:
            return False
        first = self.resolver.by_node.get(call.args[0].value)
        return first is not None and first.name in KEPT

    def in_all(self, node: cst.CSTNode) -> bool:
        current = self.walk.parents.get(node)
        while current is not None and not isinstance(current, cst.SimpleStatementLine):
            if isinstance(current, cst.Assign):
                return any(dotted(assigned.target) == "__all__" for assigned in current.targets)
            if isinstance(current, cst.AugAssign | cst.AnnAssign):
                return dotted(current.target) == "__all__"
            if isinstance(current, cst.Call):
                return (dotted(current.func) or "").startswith("__all__.")
            current = self.walk.parents.get(current)
        return False

    def rename_in_string(self, node: cst.SimpleString) -> bool:
        """A string annotation, or an entry of __all__; True if the string needs nothing more."""
        parents = self.walk.parents
        exported = self.in_all(node)
        if not exported and not (
            in_annotation(node, parents) or in_type_call(node, parents, first_of_cast=True)
        ):
            return False
        if not self.settings.wants("HIER008"):
            return True
        source, names = annotation_name_edit(node, self.walk.scope_of[node], self.text_use)
        if not names:
            bindings = self.walk.scope_of[node].lookup(string_value(node) or "")
            if exported and any(
                self.is_ours(b.target) and (b.target or "").split(".")[-1] in REMOVED for b in bindings
            ):
                self.leave(node, "HIER109", f"{string_value(node)} is exported")
            return exported
        for use, new in names:
            self.name(use, new)
        self.strings[node] = source
        self.rewritten.append(Outcome(self.walk.lines[node], "HIER008"))
        return True

    def text_use(self, name: str, scope: Scope) -> Use | None:
        """The use that a name in a string would be."""
        bindings = scope.lookup(name)
        targets = {
            (binding.target or "").split(".")[-1] for binding in bindings if self.is_ours(binding.target)
        }
        if len(targets) != 1 or any(not self.is_ours(binding.target) for binding in bindings):
            return None
        target = targets.pop()
        if target not in TYPES:
            return None
        root = cst.Name(name)
        return Use(target, root, root, scope, bindings, None, True)


def bare(node: cst.BaseExpression) -> cst.BaseExpression:
    return node.deep_clone()
