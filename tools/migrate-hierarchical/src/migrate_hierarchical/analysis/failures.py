"""Detects code that is expected to fail, or may: the body of `pytest.raises(...)`, `try: ... except ImportError`."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from .binding import ImportStatement, last_part
from .placement import Parents

RAISES = frozenset({"raises", "assertRaises", "assertRaisesRegex", "assertRaisesRegexp", "xfail"})
# The exceptions of importing or reading a removed name.
OF_NAMES = frozenset(
    {"ImportError", "ModuleNotFoundError", "AttributeError", "NameError", "Exception", "BaseException"}
)


def expects_failure(node: cst.CSTNode, parents: Parents, of_name: bool) -> bool:
    """Whether a test passes only if a node fails. of_name: only failures because of a missing name count."""
    return any(not of_name or raised & OF_NAMES for raised in expected(node, parents))


def expected(node: cst.CSTNode, parents: Parents) -> Iterator[set[str]]:
    """The exceptions that each construct around a node expects it to raise."""
    child, parent = node, parents.get(node)
    while parent is not None:
        if isinstance(parent, cst.With) and child is parent.body:
            for item in parent.items:
                if isinstance(item.item, cst.Call):
                    function = last_part(item.item.func)
                    if function in RAISES or (function == "suppress" and objects(node, parent.body, parents)):
                        yield exceptions(item.item)
        elif (
            isinstance(parent, cst.Call) and last_part(parent.func) in RAISES and child is not parent.args[0]
        ):
            yield exceptions(parent)
        elif isinstance(parent, cst.Try | cst.TryStar) and child is parent.body:
            goes_on = parent.orelse is not None and is_objection(parent.orelse.body)
            if goes_on or objects(node, parent.body, parents):
                for handler in parent.handlers:
                    yield {"Exception"} if handler.type is None else names(handler.type)
        elif isinstance(parent, cst.FunctionDef) and child is parent.body:
            for decorator in parent.decorators:
                if last_part(decorator.decorator) == "expectedFailure":
                    yield {"Exception"}
                elif (
                    isinstance(decorator.decorator, cst.Call)
                    and last_part(decorator.decorator.func) == "xfail"
                ):
                    given = [each.value for each in decorator.decorator.args if is_raises(each)]
                    if given:
                        yield set().union(*map(names, given))
            return
        child, parent = parent, parents.get(parent)


def exceptions(call: cst.Call) -> set[str]:
    """The exceptions that a call names."""
    given = [arg for arg in call.args if arg.keyword is None or is_raises(arg)]
    first = given if last_part(call.func) == "suppress" else given[:1]
    return set().union(*(names(arg.value) for arg in first))


def is_raises(arg: cst.Arg) -> bool:
    return arg.keyword is not None and arg.keyword.value in ("raises", "expected_exception", "exception")


def names(node: cst.BaseExpression) -> set[str]:
    """The last part of the name of a class, or of each class in a tuple."""
    if isinstance(node, cst.Tuple):
        return set().union(*(names(element.value) for element in node.elements))
    return {last_part(node)}


def objects(node: cst.CSTNode, block: cst.BaseSuite, parents: Parents) -> bool:
    """Whether a statement after a node, in the same block, fails if the node did not."""
    line = node
    while line not in block.body and line in parents:
        line = parents[line]
    body = list(block.body)
    return line in body and any(map(is_objection, body[body.index(line) :]))


def is_objection(node: cst.CSTNode) -> bool:
    """Whether code does nothing but fail: `raise`, `assert False`, `pytest.fail()`."""
    if isinstance(node, cst.BaseSuite | cst.SimpleStatementLine):
        return any(map(is_objection, node.body))
    if isinstance(node, cst.Assert):
        return isinstance(node.test, cst.Name) and node.test.value == "False"
    if isinstance(node, cst.Expr):
        return isinstance(node.value, cst.Call) and last_part(node.value.func) in ("fail", "exit")
    return isinstance(node, cst.Raise)


def is_tried(statement: ImportStatement, parents: Parents) -> bool:
    """Whether an import decides which code runs: `try: ... except ImportError`, `suppress(ImportError)`."""
    child: cst.CSTNode = statement
    parent = parents.get(child)
    while parent is not None and not isinstance(parent, cst.FunctionDef | cst.ClassDef | cst.Module):
        if isinstance(parent, cst.Try | cst.TryStar) and child is parent.body:
            return True
        if isinstance(parent, cst.With) and any(
            last_part(item.item.func) == "suppress"
            for item in parent.items
            if isinstance(item.item, cst.Call)
        ):
            return True
        child, parent = parent, parents.get(parent)
    return False
