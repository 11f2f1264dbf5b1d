"""The walk sees what libcst's own visitor sees, whatever was walked before."""

from __future__ import annotations

import libcst as cst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migrate_hierarchical.analysis.known import KNOWN
from migrate_hierarchical.analysis.order import ORDERS, order_of
from migrate_hierarchical.analysis.source_index import LINE_ENDS, PLAIN, SourceIndex
from migrate_hierarchical.engine import migrate_bytes
from migrate_hierarchical.settings import Settings

# Together they hold every node that libcst can parse; each is tried on its own, since an older libcst lacks some.
PROGRAMS = {
    "small statements": """
# header

import a.b, c as d
from . import e
from .f.g import (
    h,  # first
    i as j,
)
from k import *
assert a, "b"
del a, b
global_ = 1; other = 2; pass
x: int = 3
y: str
raise ValueError from None
a = b = c, *d = [1, *e]
""",
    "operators": """
+a; -a; ~a; not a
a + b - c * d / e // f % g ** h @ i << j >> k & l | m ^ n
a and b or c
a < b <= c > d >= e == f != g in h is i not in j is not k
a += 1; a -= 1; a *= 1; a /= 1; a //= 1; a %= 1; a **= 1; a @= 1; a <<= 1; a >>= 1; a &= 1; a |= 1; a ^= 1
""",
    "expressions": """
(a := 1)
a if b else c
lambda x, /, y=1, *z, w, **v: x
lambda *, k: k
[a for b in c if d for e in f]
{a for b in c}
{a: b for c in d}
(a async for b in c)
{1, 2.0, 3j}
{"a": 1, **b}
(1, *a)
f(a, *b, c=d, **e)[1:2:3, ..., g].h
"a" 'b' r"c"
b"d"
f"x{a!r:>{b.c}}{d=}y" "z"
()
[]
""",
    "definitions": """
@decorator(a)
async def f(a: int, /, b=1, *args: str, c, d: int = 2, **kwargs) -> None:
    global g
    await h
    yield
    yield a
    yield from b
    async for i in j: continue
    async with k as l, m: break
    return

@decorator
class A(B, metaclass=C):
    '''Docstring.'''

    def g(self, *, key):
        def inner():
            nonlocal self
            return self
        return inner

class D: ...
""",
    "blocks": """
if a:
    pass  # comment
elif b: pass
else:

    # leading
    pass
    # footer

for a in b:
    break
else:
    pass
while a:
    continue
else:
    pass
try:
    pass
except (A, B) as c:
    pass
except D: pass
except:
    pass
else:
    pass
finally:
    pass
with (
    a as b,
    c,
):
    pass
""",
    "exception groups": """
try:
    pass
except* A as b:
    pass
except* C: pass
""",
    "match": """
match a, b:
    case 1 | "x" | None | True: pass
    case -1 + 2j: pass
    case [a, *b, _]: pass
    case (a, *_): pass
    case {"a": b, **c}: pass
    case A.B(c, d=e) as f if g: pass
    case A(): pass
    case _: pass
""",
    "type parameters": """
type A[T: int, *Ts, **P] = dict[T, int]
def f[T: (int, str)](x: T) -> T: ...
class B[T]: ...
""",
    "defaults of type parameters": "type A[T = int, *Ts = *tuple[int], **P = [int]] = T\n",
    "unpacked in brackets": "a[*b]\ndef f(*args: *Ts): ...\n",
    "templates": 't"a{b!r:>{c}}d{e=}"\n',
    "lazy imports": "lazy import a.b as c, d\nlazy from .e import (f as g, h)\n",
    "unpacking in comprehensions": "[*a for a in b]\n{**a for a in b}\n",
}
# Base classes, which are no nodes of their own.
NEVER_PARSED = {"MatchPattern", "MatchSequence"}


class Visited(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.nodes.append(node)
        return True


def parse(source: str) -> cst.Module | None:
    try:
        return cst.parse_module(source)
    except cst.ParserSyntaxError:
        return None


PARSED = {name: module for name, source in PROGRAMS.items() if (module := parse(source)) is not None}


def walked(module: cst.Module) -> SourceIndex:
    ORDERS.setdefault(cst.Module, order_of(module))
    walk = SourceIndex(None)
    walk.visit(module)
    return walk


def skipped(walk: SourceIndex, node: cst.CSTNode, top: dict[cst.CSTNode, cst.CSTNode]) -> bool:
    """Whether a node stands below one whose inside holds nothing but blanks, which the walk does not enter."""
    outer: cst.CSTNode | None = top.get(node)
    while outer is not None:
        if outer in walk.parents and type(outer) in LINE_ENDS | PLAIN:
            return True
        outer = top.get(outer)
    return False


def parents_of(module: cst.Module) -> dict[cst.CSTNode, cst.CSTNode]:
    found: dict[cst.CSTNode, cst.CSTNode] = {}
    pending: list[cst.CSTNode] = [module]
    while pending:
        node = pending.pop()
        for child in node.children:
            found[child] = node
            pending.append(child)
    return found


@pytest.mark.parametrize("first", ["nothing", "small statements", "templates"])
@pytest.mark.parametrize("name", PARSED)
def test_walk_sees_every_node_that_libcst_visits(name: str, first: str) -> None:
    """Whatever was walked before: the attributes of a class do not depend on the first node of it."""
    ORDERS.clear()
    for source in (
        {"nothing": "", "small statements": 'f"{1}"\n', "templates": "a = b\n"}[first],
        PROGRAMS[name],
    ):
        module = parse(source)
        assert module is not None
        walk = walked(module)
    wrapped = cst.MetadataWrapper(module, unsafe_skip_copy=True)
    visitor = Visited()
    wrapped.visit(visitor)
    top = parents_of(module)
    missed = {
        type(node).__name__
        for node in visitor.nodes
        if node is not module and node not in walk.parents and not skipped(walk, node, top)
    }
    assert missed == set()


@pytest.mark.parametrize("name", PARSED)
def test_walk_goes_in_the_order_of_the_source(name: str) -> None:
    ORDERS.clear()
    module = PARSED[name]
    walk = walked(module)
    visitor = Visited()
    cst.MetadataWrapper(module, unsafe_skip_copy=True).visit(visitor)
    seen = set(walk.parents)
    assert list(walk.parents) == [node for node in visitor.nodes if node in seen]


def test_line_numbers_are_those_of_the_source() -> None:
    for name, source in PROGRAMS.items():
        module = parse(source + "end\n")
        if module is None:
            continue
        walk = walked(module)
        last = walk.names[-1]
        assert (last.value, walk.lines[last]) == ("end", source.count("\n") + 1), name


def test_programs_hold_every_node_of_the_newest_libcst() -> None:
    """A new kind of node is either put into a program above or known to be never parsed."""
    kinds = {
        name
        for name in dir(cst)
        if isinstance(kind := getattr(cst, name), type)
        and issubclass(kind, cst.CSTNode)
        and not name.startswith("Base")
        and kind is not cst.CSTNode
    }
    held = set()
    for module in PARSED.values():
        visitor = Visited()
        cst.MetadataWrapper(module, unsafe_skip_copy=True).visit(visitor)
        held |= {type(node).__name__ for node in visitor.nodes}
    assert kinds - held == NEVER_PARSED & kinds
    assert held <= KNOWN


@settings(max_examples=40, deadline=None)
@given(st.permutations(sorted(PARSED)), st.integers(1, len(PARSED)))
def test_code_of_every_kind_around_a_use_stays(names: list[str], count: int) -> None:
    use = "model = BlockSparseHierarchical([2048], [1])\n"
    first = "from dilated_attention_pytorch import BlockSparseHierarchical\n"
    chosen = [PROGRAMS[name] for name in names[:count]]
    source = first + "".join(program + use for program in chosen)
    result = migrate_bytes("example.py", source.encode(), Settings())
    assert result.error is None
    assert result.left == []
    assert result.new is not None
    new = result.new.decode()
    assert new.count("create_block_sparse_attention(\n") == count
    assert all(program in new for program in chosen)
    assert migrate_bytes("example.py", result.new, Settings()).new is None
