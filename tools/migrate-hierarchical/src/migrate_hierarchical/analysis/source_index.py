"""Index of one file, filled in one walk: scopes, bindings, names that are read, strings, calls and their positions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import libcst as cst

from ..facts import LAZY, MISSING, SEVERAL, Facts
from ..removed_api import KEYWORD, MAGIC_LINE, PACKAGE, PIECE, TODO, below_package
from .binding import (
    IMPORTS,
    IMPORTS_FROM,
    Binding,
    ImportStatement,
    Scope,
    dotted,
    import_name,
    syntax,
    target_names,
)
from .class_bodies import look_before_binding
from .order import ORDERS, order_of

COMPREHENSIONS = syntax("GeneratorExp", "ListComp", "SetComp", "DictComp", "StarredDictComp")
TYPE_COMMENT = re.compile(r"#\s*type:(?!\s*ignore\b)\s*(.*)")
LINES = frozenset(
    {
        cst.SimpleStatementLine,
        cst.FunctionDef,
        cst.ClassDef,
        cst.If,
        cst.For,
        cst.While,
        cst.Try,
        cst.TryStar,
        cst.With,
        cst.Match,
        cst.MatchCase,
        cst.ExceptHandler,
        cst.ExceptStarHandler,
        cst.Else,
        cst.Finally,
        cst.Decorator,
    }
)


class SourceIndex:
    """The findings of one walk through a file, in source order."""

    def __init__(self, package: str | None, path: str = "", facts: Facts | None = None) -> None:
        self.package = package  # of the file, for relative imports
        self.path, self.facts = path, facts or Facts()
        self.again: dict[cst.ImportFrom, dict[str, str]] = {}  # imports of the API from the user's modules
        self.again_by_star: dict[str, str] = {}  # the same through a star
        self.star_of: dict[str, cst.ImportFrom] = {}  # name -> that star
        # those that are bound in several ways, are missing, or come from `__getattr__`
        self.unclear: list[tuple[cst.ImportAlias, str]] = []
        self.parents: dict[cst.CSTNode, cst.CSTNode] = {}
        self.stack: list[cst.CSTNode] = []
        self.lines: dict[cst.CSTNode, int] = {}  # of statements, calls, names and strings
        # of the line on which a call, an argument or a name begins
        self.indents: dict[cst.CSTNode, tuple[bool, str]] = {}
        self.scope_of: dict[cst.CSTNode, Scope] = {}  # of names, calls, strings and attributes
        self.names: list[cst.Name] = []  # that are read
        self.strings: list[cst.SimpleString] = []
        self.composed: list[cst.BaseExpression] = []  # sums, f-strings and joins of strings
        self.type_comments: list[tuple[cst.CSTNode, str, Scope]] = []
        self.calls: list[cst.Call] = []
        self.attributes: list[cst.Attribute] = []
        self.marks: dict[cst.CSTNode, tuple[int, str]] = {}  # of an earlier run: line number and reason
        # the words of magics and shell lines
        self.magics: dict[cst.CSTNode, tuple[frozenset[str], Scope]] = {}
        self.groups: list[tuple[int, str]] = []  # first line and block of the pieces of a page
        self.keywords: list[cst.Arg] = []  # hierarchical_config=... of any call
        self.imports: list[ImportStatement] = []
        self.stars: list[cst.ImportFrom] = []  # star imports of our package
        self.members: dict[str, list[tuple[cst.BaseExpression, Scope]]] = {}  # "self.x" -> what it is set to
        self.filled: dict[str, list[tuple[cst.BaseExpression, Scope]]] = {}  # name -> what is put into it
        self.given: dict[Scope, list[tuple[cst.BaseExpression, Scope]]] = {}  # function -> what it returns
        self.line, self.indent = 1, (True, "")
        self.scopes: list[Scope] = []
        self.module_scope: Scope
        self.opens: dict[cst.CSTNode, Scope] = {}  # body -> its scope
        self.skipped: set[cst.CSTNode] = set()  # names that are not read

    # ---- the walk

    def visit(self, node: cst.CSTNode) -> None:
        """Walk over a node and everything below it."""
        depth = len(self.scopes)
        if self.enter(node):
            for name in ORDERS[type(node)] or ():
                value = getattr(node, name)
                for child in value if type(value) in (tuple, list) else (value,):
                    kind = type(child)
                    if kind not in ORDERS:
                        ORDERS[kind] = order_of(child)
                    if ORDERS[kind] is not None:
                        self.visit(child)
        self.stack.pop()
        if node in self.opens:
            del self.scopes[depth:]
        if isinstance(node, cst.Module):
            look_before_binding(self)

    def enter(self, node: cst.CSTNode) -> bool:
        """Record a node; returns whether to visit its children."""
        kind = type(node)
        if self.stack:
            self.parents[node] = self.stack[-1]
        self.stack.append(node)
        if kind in LINE_ENDS:
            self.mark(node)
            self.line += 1
            return False  # it contains only blanks, a comment and the newline
        if kind is cst.Module:
            self.module_scope = Scope("module", None, node)
            self.scopes.append(self.module_scope)
        scope = self.opens.get(node)
        if scope is not None:
            self.scopes.append(scope)
        if kind in LINES:
            self.indent = (True, "")
        handler = HANDLERS.get(kind)
        if handler is not None:
            handler(self, node)
        return not (kind in PLAIN and is_plain(node))

    @property
    def scope(self) -> Scope:
        return self.scopes[-1]

    def mark(self, node: Any) -> None:
        comment = node.comment
        if comment is not None and comment.value.startswith(TODO):
            self.marks[node] = (self.line, comment.value[len(TODO) :].split(" ")[0])
        elif comment is not None and comment.value.startswith(PIECE):
            self.groups.append((self.line, comment.value.split(" ")[-1]))
        elif comment is not None and comment.value.startswith(MAGIC_LINE):
            self.lines[node] = self.line
            self.magics[node] = (frozenset(comment.value.split(" ")[2:]), self.scope)
        elif comment is not None and (found := TYPE_COMMENT.match(comment.value)) is not None:
            self.lines[node] = self.line
            self.type_comments.append((node, found.group(1), self.scope))

    def group(self, node: cst.CSTNode) -> str:
        """The block of a page, or of a docstring, that contains a node; empty outside of them."""
        return max((each for each in self.groups if each[0] <= self.lines[node]), default=(0, ""))[1]

    def line_of(self, node: cst.CSTNode) -> int:
        """The line on which a node begins; if unknown, that of the nearest node around it."""
        current: cst.CSTNode | None = node
        while current is not None and current not in self.lines:
            current = self.parents.get(current)
        return self.lines[current] if current is not None else 1

    def note(self, node: cst.CSTNode) -> None:
        self.lines[node] = self.line
        self.scope_of[node] = self.scope

    # ---- text: lines and indentation

    def newline(self, node: cst.CSTNode) -> None:
        self.line += 1

    def blank(self, node: cst.SimpleWhitespace) -> None:
        self.line += node.value.count("\n")

    def parenthesized(self, node: cst.ParenthesizedWhitespace) -> None:
        self.indent = (node.indent, node.last_line.value)

    def any_string(self, node: cst.SimpleString) -> None:
        self.note(node)
        self.strings.append(node)
        self.line += node.value.count("\n")

    def composed_string(self, node: cst.FormattedString | cst.ConcatenatedString) -> None:
        if not isinstance(self.stack[-2], cst.ConcatenatedString):
            self.note(node)
            self.composed.append(node)

    def operation(self, node: cst.BinaryOperation) -> None:
        outer = self.stack[-2]
        whole = not (isinstance(outer, cst.BinaryOperation) and isinstance(outer.operator, cst.Add))
        text = isinstance(node.left, cst.BaseString) or isinstance(node.right, cst.BaseString)
        if whole and text and isinstance(node.operator, cst.Add):
            self.note(node)
            self.composed.append(node)

    def string_text(self, node: cst.FormattedStringText) -> None:
        self.line += node.value.count("\n")

    # ---- bindings

    def bind(self, name: str, binding: Binding) -> None:
        scope = binding.scope
        where = scope.elsewhere.get(name)
        if where == "global":
            scope = scope.module
        elif where == "nonlocal":
            outer = [
                s for s in scope.ancestors() if s is not scope and s.kind == "function" and name in s.bindings
            ]
            scope = outer[0] if outer else scope
        binding.at = len(self.names)
        scope.bindings.setdefault(name, []).append(binding)

    def bind_target(
        self,
        target: cst.CSTNode,
        kind: str,
        node: cst.CSTNode,
        value: cst.BaseExpression | None = None,
        scope: Scope | None = None,
    ) -> None:
        plain = isinstance(target, cst.Name)
        for name, index in target_names(target):
            self.skipped.add(name)
            here = kind if plain or kind == "loop" else "other"
            self.bind(name.value, Binding(here, scope or self.scope, node, value=value, index=index))

    def assign(self, node: cst.Assign) -> None:
        for assigned in node.targets:
            self.bind_target(assigned.target, "value", node, node.value)
            path = dotted(assigned.target)
            if path is not None and "." in path:
                self.members.setdefault(path, []).append((node.value, self.scope))
            if isinstance(assigned.target, cst.Subscript):
                self.fill(assigned.target.value, node.value)

    def fill(self, container: cst.BaseExpression, value: cst.BaseExpression) -> None:
        if isinstance(container, cst.Name):
            self.filled.setdefault(container.value, []).append((value, self.scope))

    def gives(self, node: cst.Return | cst.Yield) -> None:
        """What a function returns, or a generator yields."""
        function = next((scope for scope in self.scope.ancestors() if scope.kind == "function"), None)
        value = node.value
        if function is not None and isinstance(value, cst.BaseExpression):
            self.given.setdefault(function, []).append((value, self.scope))

    def annotated(self, node: cst.AnnAssign) -> None:
        path = dotted(node.target)
        if isinstance(node.target, cst.Name):
            self.skipped.add(node.target)
            binding = Binding(
                "value", self.scope, node, value=node.value, annotation=node.annotation.annotation
            )
            self.bind(node.target.value, binding)
        elif path is not None and node.value is not None:
            self.members.setdefault(path, []).append((node.value, self.scope))

    def augmented(self, node: cst.AugAssign) -> None:
        if isinstance(node.target, cst.Name) and node.target.value != "__all__":
            self.bind_target(node.target, "other", node)

    def loop(self, node: cst.For | cst.CompFor) -> None:
        self.bind_target(node.target, "loop", node, node.iter)

    def walrus(self, node: cst.NamedExpr) -> None:
        scope = next(scope for scope in self.scope.ancestors() if scope.kind != "comprehension")
        self.bind_target(node.target, "value", node, node.value, scope)

    def with_item(self, node: cst.WithItem) -> None:
        if node.asname is not None:
            self.bind_target(node.asname.name, "other", node)

    def handler(self, node: cst.ExceptHandler | cst.ExceptStarHandler) -> None:
        if node.name is not None:
            self.bind_target(node.name.name, "other", node)

    def deleted(self, node: cst.Del) -> None:
        self.bind_target(node.target, "other", node)

    def capture(self, node: cst.MatchAs | cst.MatchStar) -> None:
        if node.name is not None:
            self.bind_target(node.name, "other", node)

    def capture_rest(self, node: cst.MatchMapping) -> None:
        if node.rest is not None:
            self.bind_target(node.rest, "other", node)

    def type_alias(self, node: cst.TypeAlias) -> None:
        self.bind_target(node.name, "other", node)

    def type_parameter(self, node: cst.TypeVar | cst.TypeVarTuple | cst.ParamSpec) -> None:
        self.bind_target(node.name, "other", node)

    def declared(self, node: cst.Global | cst.Nonlocal) -> None:
        kind = "global" if isinstance(node, cst.Global) else "nonlocal"
        for item in node.names:
            self.skipped.add(item.name)
            self.scope.elsewhere[item.name.value] = kind

    # ---- scopes

    def function(self, node: cst.FunctionDef) -> None:
        self.skipped.add(node.name)
        self.bind(node.name.value, Binding("def", self.scope, node))
        self.open(node.body, Scope("function", self.scope, node), node.params)

    def lambda_(self, node: cst.Lambda) -> None:
        self.open(node.body, Scope("function", self.scope, node), node.params)

    def open(self, body: cst.CSTNode, scope: Scope, params: cst.Parameters) -> None:
        self.opens[body] = scope
        everything = [*params.posonly_params, *params.params, *params.kwonly_params]
        for star in (params.star_arg, params.star_kwarg):
            if isinstance(star, cst.Param):
                everything.append(star)
        for param in everything:
            self.skipped.add(param.name)
            annotation = param.annotation.annotation if param.annotation else None
            kind = "other" if param.star in ("*", "**") else "parameter"
            scope.bindings.setdefault(param.name.value, []).append(
                Binding(kind, scope, param, annotation=annotation)
            )

    def class_(self, node: cst.ClassDef) -> None:
        self.skipped.add(node.name)
        self.bind(node.name.value, Binding("class", self.scope, node))
        self.opens[node.body] = Scope("class", self.scope, node)

    def comprehension(self, node: cst.BaseComp) -> None:
        self.opens[node.for_in.iter] = self.scope  # the first iterable is evaluated outside
        scope = Scope("comprehension", self.scope, node)
        self.opens[node] = scope
        self.scopes.append(scope)

    # ---- imports

    def import_(self, node: cst.Import) -> None:
        self.note(node)
        self.imports.append(node)
        for alias in node.names:
            self.skip_alias(alias)
            path = dotted(alias.name) or ""
            if alias.asname is not None:
                name, target = dotted(alias.asname.name) or "", path
            else:
                name = target = path.split(".")[0]
            self.bind_import(name, target, node, alias)

    def import_from(self, node: cst.ImportFrom) -> None:
        self.note(node)
        self.imports.append(node)
        self.skip_path(node.module)
        module = self.absolute(node)
        if isinstance(node.names, cst.ImportStar):
            if module is not None and below_package(module) is not None:
                self.stars.append(node)
            given = self.own_names(node)
            self.again_by_star.update(given)
            self.star_of.update(dict.fromkeys(given, node))
            return
        again = self.imported_again(node)
        for alias in node.names:
            self.skip_alias(alias)
            imported = dotted(alias.name) or ""
            name = (dotted(alias.asname.name) or "") if alias.asname else imported
            target = f"{PACKAGE}.{again[imported]}" if imported in again else f"{module or '?'}.{imported}"
            self.bind_import(name, target.removesuffix("."), node, alias)

    def imported_again(self, node: cst.ImportFrom) -> dict[str, str]:
        """The API names that a statement imports from a module of the user's own."""
        known = self.own_names(node)
        taken: dict[str, str] = {}
        for alias in node.names if known and not isinstance(node.names, cst.ImportStar) else ():
            api = known.get(import_name(alias))
            if api in (SEVERAL, MISSING, LAZY):
                self.unclear.append((alias, api))
            elif api is not None:
                taken[import_name(alias)] = api
        if taken:
            self.again[node] = taken
        return taken

    def own_names(self, node: cst.ImportFrom) -> dict[str, str]:
        """The API names in the module of a statement, if that is a module of the user's own."""
        absolute = self.absolute(node)
        if absolute is not None and below_package(absolute) is not None:
            return {}
        return self.facts.find("." * len(node.relative) + (dotted(node.module) or "" if node.module else ""))

    def alias(self, node: cst.ImportAlias) -> None:
        self.lines[node] = self.line

    def skip_alias(self, alias: cst.ImportAlias) -> None:
        self.skip_path(alias.name)
        if alias.asname is not None:
            self.skipped.add(alias.asname.name)

    def skip_path(self, node: cst.CSTNode | None) -> None:
        while isinstance(node, cst.Attribute):
            self.skipped.add(node)
            node = node.value
        if node is not None:
            self.skipped.add(node)

    def bind_import(self, name: str, target: str, statement: ImportStatement, alias: cst.ImportAlias) -> None:
        binding = Binding("import", self.scope, alias, target=target, statement=statement, alias=alias)
        self.bind(name, binding)

    def absolute(self, node: cst.ImportFrom) -> str | None:
        """The module of a from-import; relative ones are resolved from the file's package."""
        module = dotted(node.module) if node.module else ""
        if not node.relative:
            return module
        if self.package is None:
            return None
        parts = self.package.split(".")
        if len(node.relative) > len(parts):
            return None
        base = parts[: len(parts) - len(node.relative) + 1]
        return ".".join([*base, module] if module else base)

    # ---- reads

    def name(self, node: cst.Name) -> None:
        parent = self.stack[-2]
        if isinstance(parent, cst.ImportAlias):
            self.lines.setdefault(parent, self.line)
        if (
            node in self.skipped
            or (isinstance(parent, cst.Attribute) and parent.attr is node)
            or (isinstance(parent, cst.Arg) and parent.keyword is node)
            or (isinstance(parent, cst.MatchKeywordElement) and parent.key is node)
        ):
            return
        self.note(node)
        self.indents[node] = self.indent
        self.names.append(node)

    def attribute(self, node: cst.Attribute) -> None:
        if node not in self.skipped:
            self.note(node)
            self.attributes.append(node)

    def argument(self, node: cst.Arg) -> None:
        self.indents[node] = self.indent

    def call(self, node: cst.Call) -> None:
        self.note(node)
        self.indents[node] = self.indent
        if isinstance(node.func, cst.Attribute) and node.func.attr.value == "append" and node.args:
            self.fill(node.func.value, node.args[0].value)
        self.calls.append(node)
        if isinstance(node.func, cst.Attribute) and node.func.attr.value in FILLS:
            for arg in node.args:
                self.fill(node.func.value, arg.value)
        if isinstance(node.func, cst.Attribute) and node.func.attr.value == "join":
            self.composed.append(node)
        self.keywords += (arg for arg in node.args if arg.keyword and arg.keyword.value == KEYWORD)


# methods that put something into a container
FILLS = frozenset({"update", "setdefault", "extend", "insert", "add"})
LINE_ENDS = frozenset({cst.TrailingWhitespace, cst.EmptyLine})
# Nodes whose children need no visit, unless they contain the end of a line.
PLAIN = frozenset({cst.Name, cst.Comma, cst.Dot, cst.AssignEqual, cst.SimpleWhitespace, cst.Integer})


def is_plain(node: Any) -> bool:
    kind = type(node)
    if kind is cst.Name or kind is cst.Integer:
        return not node.lpar
    if kind is cst.SimpleWhitespace:
        return True
    before, after = node.whitespace_before, node.whitespace_after
    return (
        type(before) is cst.SimpleWhitespace
        and type(after) is cst.SimpleWhitespace
        and "\n" not in before.value
        and "\n" not in after.value
    )


HANDLERS: dict[type, Callable[[SourceIndex, Any], None]] = {
    cst.Newline: SourceIndex.newline,
    cst.SimpleWhitespace: SourceIndex.blank,
    cst.ParenthesizedWhitespace: SourceIndex.parenthesized,
    cst.SimpleString: SourceIndex.any_string,
    **dict.fromkeys(syntax("FormattedStringText", "TemplatedStringText"), SourceIndex.string_text),
    cst.FormattedString: SourceIndex.composed_string,
    cst.ConcatenatedString: SourceIndex.composed_string,
    cst.BinaryOperation: SourceIndex.operation,
    cst.ImportAlias: SourceIndex.alias,
    cst.Assign: SourceIndex.assign,
    cst.AnnAssign: SourceIndex.annotated,
    cst.AugAssign: SourceIndex.augmented,
    cst.For: SourceIndex.loop,
    cst.CompFor: SourceIndex.loop,
    cst.NamedExpr: SourceIndex.walrus,
    cst.WithItem: SourceIndex.with_item,
    cst.ExceptHandler: SourceIndex.handler,
    cst.ExceptStarHandler: SourceIndex.handler,
    cst.Del: SourceIndex.deleted,
    cst.MatchAs: SourceIndex.capture,
    cst.MatchStar: SourceIndex.capture,
    cst.MatchMapping: SourceIndex.capture_rest,
    cst.TypeAlias: SourceIndex.type_alias,
    cst.Global: SourceIndex.declared,
    cst.Nonlocal: SourceIndex.declared,
    cst.FunctionDef: SourceIndex.function,
    cst.Lambda: SourceIndex.lambda_,
    cst.ClassDef: SourceIndex.class_,
    **dict.fromkeys(COMPREHENSIONS, SourceIndex.comprehension),
    **dict.fromkeys(syntax("TypeVar", "TypeVarTuple", "ParamSpec"), SourceIndex.type_parameter),
    **dict.fromkeys(IMPORTS, SourceIndex.import_),
    **dict.fromkeys(IMPORTS_FROM, SourceIndex.import_from),
    cst.Name: SourceIndex.name,
    cst.Attribute: SourceIndex.attribute,
    cst.Arg: SourceIndex.argument,
    cst.Call: SourceIndex.call,
    cst.Return: SourceIndex.gives,
    cst.Yield: SourceIndex.gives,
}
