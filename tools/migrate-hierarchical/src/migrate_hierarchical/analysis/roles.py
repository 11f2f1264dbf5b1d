"""The role of an expression, decided once from its surroundings.

A type checker reads a name or a string as a type in an annotation, in `cast` and the like, and in the brackets of
another type. What a called or subscripted expression is, depends on its binding, not on its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import libcst as cst

from .binding import Binding, dotted, syntax
from .source_index import SourceIndex

# Roles.
TYPE = "type"  # a type checker reads it
CLASS = "class"  # the second argument of isinstance and issubclass: a class, never a string
ALL = "all"  # an entry of __all__
DOCSTRING = "docstring"  # a string that is a statement
LITERAL = "literal"  # inside Literal[...], or metadata of Annotated[...]
KEY = "key"  # of a dictionary, or in the brackets of a value
ARGUMENT = "argument"  # of a call
FIELDS = "fields"  # of NamedTuple or TypedDict: pairs of names and types, or a dictionary of them
FIELD = "field"  # one such pair
VALUE = "value"  # anything else

TYPING = frozenset({"typing", "typing_extensions", "collections.abc", "collections", "builtins", "types"})
GENERICS = frozenset(
    [
        "list",
        "dict",
        "set",
        "frozenset",
        "tuple",
        "type",
        "List",
        "Dict",
        "Set",
        "FrozenSet",
        "Tuple",
        "Type",
        "Optional",
        "Union",
        "Callable",
        "ClassVar",
        "Final",
        "Generic",
        "Protocol",
        "Iterable",
        "Iterator",
        "Generator",
        "Sequence",
        "MutableSequence",
        "Mapping",
        "MutableMapping",
        "Collection",
        "Container",
        "Awaitable",
        "Coroutine",
        "AsyncIterable",
        "AsyncIterator",
        "AsyncGenerator",
        "Deque",
        "deque",
        "DefaultDict",
        "defaultdict",
        "OrderedDict",
        "Counter",
        "ChainMap",
        "AbstractSet",
        "MutableSet",
        "KeysView",
        "ValuesView",
        "ItemsView",
        "ContextManager",
        "AsyncContextManager",
        "Concatenate",
        "TypeGuard",
        "TypeIs",
        "Required",
        "NotRequired",
        "ReadOnly",
        "Unpack",
        "Annotated",
    ]
)
# Function -> first and last (excluded) position, and keywords, of the arguments that are types; None: to the end.
TYPE_ARGUMENTS: dict[str, tuple[int, int | None, tuple[str, ...]]] = {
    "cast": (0, 1, ("typ",)),
    "assert_type": (1, 2, ("typ",)),
    "TypeVar": (1, None, ("bound", "default")),
    "ParamSpec": (1, 1, ("bound", "default")),
    "NewType": (1, 2, ("tp",)),
    "TypeAliasType": (1, 2, ("value",)),
    "ForwardRef": (0, 1, ("arg",)),
}
HAVE_FIELDS = frozenset({"NamedTuple", "TypedDict"})
NO_TYPES = frozenset({"typename", "total", "closed"})  # their other keywords
TAKE_TYPES = frozenset(
    {*TYPE_ARGUMENTS, *HAVE_FIELDS, "isinstance", "issubclass", "list", "tuple", "set", "sorted"}
)


def leftmost(node: cst.BaseExpression) -> cst.BaseExpression:
    """The expression with which a chain of attributes, calls and subscripts begins."""
    while isinstance(node, cst.Attribute | cst.Call | cst.Subscript):
        node = node.func if isinstance(node, cst.Call) else node.value
    return node


class Roles:
    """The roles of the nodes of one file, computed on demand and cached.

    The walk does not record them, because many depend on bindings, which are complete only when it ends.
    """

    def __init__(self, source: SourceIndex) -> None:
        self.source, self.parents = source, source.parents
        self.known: dict[cst.CSTNode, str] = {}

    def of(self, node: cst.CSTNode) -> str:
        chain = [node]
        while chain[-1] not in self.known and type(chain[-1]) in THROUGH and chain[-1] in self.parents:
            chain.append(self.parents[chain[-1]])
        for each in reversed(chain):
            if each not in self.known:
                self.known[each] = self.decide(each)
        return self.known[node]

    def decide(self, node: cst.CSTNode) -> str:
        """The role of a node; that of its parent is already known if it matters."""
        parent = self.parents.get(node)
        handler = HANDLERS.get(type(parent))
        return VALUE if handler is None else handler(self, node, parent)

    def path(self, node: cst.BaseExpression) -> str | None:
        """The dotted path that a name or attribute refers to by its import; as written if nothing binds it."""
        written = dotted(node)
        root = leftmost(node)
        if written is None or root not in self.source.scope_of:
            return written if isinstance(node, cst.Name) else None
        bindings = self.source.scope_of[root].lookup(written.split(".")[0])
        targets = {each.target for each in bindings}
        if not bindings:
            return written
        if len(targets) != 1 or any(each.kind != "import" for each in bindings):
            return None
        rest = written.partition(".")[2]
        return ".".join(part for part in (targets.pop(), rest) if part)

    def typing_name(self, node: cst.BaseExpression) -> str | None:
        """The name in `typing` or the builtins that an expression refers to; None for anything else."""
        path = self.path(node)
        if path is None:
            return None
        module, _, name = path.rpartition(".")
        # modules with backports of typing names for older Pythons have such names
        known = not module or module in TYPING or any(word in module for word in ("typing", "compat"))
        return name if known else None

    # ---- one function per kind of parent

    def inherit(self, node: cst.CSTNode, parent: cst.CSTNode) -> str:
        return self.known.get(parent, VALUE)

    def element(self, node: cst.CSTNode, parent: cst.List | cst.Tuple | cst.Set) -> str:
        role = self.known.get(parent, VALUE)
        if role == FIELDS:
            return FIELD if isinstance(node, cst.Element) else FIELDS
        if role == FIELD:
            return LITERAL if node is parent.elements[0] else TYPE
        return role

    def annotation(self, node: cst.CSTNode, parent: cst.CSTNode) -> str:
        return TYPE

    def operation(self, node: cst.CSTNode, parent: cst.BinaryOperation) -> str:
        role = self.known.get(parent, VALUE)
        joins = isinstance(parent.operator, cst.BitOr) if role in (TYPE, CLASS) else role in (ALL, FIELDS)
        return role if joins else VALUE

    def statement(self, node: cst.CSTNode, parent: cst.Expr) -> str:
        return DOCSTRING

    def assigned(self, node: cst.CSTNode, parent: cst.Assign) -> str:
        is_all = any(dotted(each.target) == "__all__" for each in parent.targets)
        return ALL if is_all and node is parent.value else VALUE

    def augmented(self, node: cst.CSTNode, parent: cst.AugAssign) -> str:
        return ALL if dotted(parent.target) == "__all__" and node is parent.value else VALUE

    def annotated(self, node: cst.CSTNode, parent: cst.AnnAssign) -> str:
        if node is not parent.value:
            return VALUE
        if dotted(parent.target) == "__all__":
            return ALL
        return TYPE if self.typing_name(parent.annotation.annotation) == "TypeAlias" else VALUE

    def parameter_of_type(self, node: cst.CSTNode, parent: Any) -> str:
        """`[T: bound = default]`, and `type X = value`."""
        return VALUE if node is getattr(parent, "name", None) else TYPE

    def entry(self, node: cst.CSTNode, parent: cst.DictElement) -> str:
        if parent.key is node:
            return KEY
        mapping = self.parents[parent]
        return TYPE if self.known.get(mapping) in (TYPE, FIELDS) else VALUE

    def index(self, node: cst.CSTNode, parent: cst.Index) -> str:
        element = self.parents[parent]
        subscript = self.parents[element]
        assert isinstance(subscript, cst.Subscript)
        name = self.typing_name(subscript.value)
        if name == "Literal":
            return LITERAL
        if name == "Annotated":
            return TYPE if subscript.slice[0] is element else LITERAL
        outer = self.of(subscript)
        if outer in (TYPE, CLASS) or name in GENERICS or self.is_generic_name(subscript.value):
            return TYPE
        return KEY

    def is_generic_name(self, node: cst.BaseExpression) -> bool:
        """Whether a name is that of a generic class or alias in the file, unlike, for example, an enumeration."""
        if not isinstance(node, cst.Name) or node not in self.source.scope_of:
            return False
        bindings = self.source.scope_of[node].lookup(node.value)
        return bool(bindings) and all(map(self.is_generic, bindings))

    def is_generic(self, binding: Binding) -> bool:
        node, value = binding.node, binding.value
        if isinstance(node, cst.ClassDef):
            return node.type_parameters is not None or any(
                isinstance(base.value, cst.Subscript) for base in node.bases
            )
        if isinstance(value, cst.Subscript):
            return self.typing_name(value.value) in GENERICS
        return isinstance(node, syntax("TypeAlias"))

    def argument(self, node: cst.CSTNode, parent: cst.Arg) -> str:
        call = self.parents[parent]
        if isinstance(call, cst.ClassDef):
            return TYPE if parent.keyword is None and not parent.star else VALUE
        if not isinstance(call, cst.Call):
            return VALUE
        if isinstance(call.func, cst.Attribute) and dotted(call.func.value) == "__all__":
            return ALL
        name = self.typing_name(call.func)
        if name not in TAKE_TYPES:
            return ARGUMENT
        if name in ("list", "tuple", "set", "sorted"):
            return ALL if self.of(call) == ALL else ARGUMENT
        position = next(i for i, each in enumerate(call.args) if each is parent)
        if name in ("isinstance", "issubclass"):
            return CLASS if position == 1 else ARGUMENT
        if name in HAVE_FIELDS:
            if parent.keyword is None or parent.keyword.value == "fields":
                return FIELDS if position > 0 or parent.keyword is not None else ARGUMENT
            return ARGUMENT if parent.keyword.value in NO_TYPES else TYPE
        first, last, keywords = TYPE_ARGUMENTS.get(name or "", (0, 0, ()))
        if parent.keyword is not None:
            return TYPE if parent.keyword.value in keywords else ARGUMENT
        return TYPE if first <= position and (last is None or position < last) else ARGUMENT


Handler = Callable[[Roles, Any, Any], str]
HANDLERS: dict[type, Handler] = {
    cst.Annotation: Roles.annotation,
    cst.Element: Roles.inherit,
    cst.StarredElement: Roles.inherit,
    cst.List: Roles.element,
    cst.Tuple: Roles.element,
    cst.Set: Roles.element,
    cst.Dict: Roles.inherit,
    cst.ConcatenatedString: Roles.inherit,
    cst.BinaryOperation: Roles.operation,
    cst.Expr: Roles.statement,
    cst.Assign: Roles.assigned,
    cst.AugAssign: Roles.augmented,
    cst.AnnAssign: Roles.annotated,
    cst.DictElement: Roles.entry,
    cst.Index: Roles.index,
    cst.Arg: Roles.argument,
    **dict.fromkeys(syntax("TypeAlias", "TypeVar", "TypeParam"), Roles.parameter_of_type),
}
# Nodes whose role depends on their parent's role.
THROUGH = frozenset(
    {
        cst.Element,
        cst.StarredElement,
        cst.List,
        cst.Tuple,
        cst.Set,
        cst.Dict,
        cst.DictElement,
        cst.ConcatenatedString,
        cst.BinaryOperation,
        cst.SimpleString,
        cst.Name,
        cst.Attribute,
        cst.Subscript,
        cst.Call,
    }
)
