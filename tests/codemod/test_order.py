"""The quick walk sees what libcst's own visit sees, in the same order."""

from __future__ import annotations

import inspect
import textwrap
import tokenize

import libcst as cst
import pytest

from migrate_hierarchical.analysis import order

RARE = textwrap.dedent(
    """\
    match x:
        case [1, *rest] | {"a": A(b=1), **c} if y:
            pass
        case _ as z:
            pass
    try:
        pass
    except* (A, B) as e:
        raise C from e
    type Pair[T: int, *Ts, **P] = tuple[T, T]
    async def f(a, /, b: int = 1, *args, c=2, **kw) -> None:
        async with a as b, c: await d
        return [(yield), *x, lambda *, a=1: a, {**a}, f"{x!r:>{y}}" "b", a if b else c, not -x[1:2, ...]]
    @dec
    class A(B, metaclass=M):
        global g; nonlocal h; del x; assert a, b
        x: int = 1; y += 1; z @= 2
    """
)


class Visit(cst.CSTVisitor):
    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[cst.CSTNode] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.nodes.append(node)
        return True


def quick(node: cst.CSTNode) -> list[cst.CSTNode]:
    found = [node]
    for name in order.order_of(node) or ():
        value = getattr(node, name)
        for child in value if isinstance(value, list | tuple) else [value]:
            if isinstance(child, cst.CSTNode):
                found += quick(child)
    return found


@pytest.mark.parametrize("source", [RARE, inspect.getsource(textwrap), inspect.getsource(tokenize)])
def test_order_is_that_of_libcst(source: str) -> None:
    module = cst.parse_module(source)
    visit = Visit()
    module.visit(visit)
    assert [id(node) for node in quick(module)] == [id(node) for node in visit.nodes]
