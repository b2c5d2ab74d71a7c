"""Mutants of a Python file: each differs from it in one small place.

| place | becomes |
| --- | --- |
| `+ - * / // % ** @ & \\|` | another operator |
| `< <= > >= == != is in` | its neighbour, or its opposite |
| `and`, `or`, `not x`, `-x`, `~x` | the other one, `x` |
| a number, a truth value, a text | another one |
| `if c`, `while c`, `a if c else b` | `not c` |
| `a[x:y]` | without `x`, without `y` |
| `x += y`, a call by itself, `raise` | nothing |
| `return x` | `return None` |
| `f(key=x)` | without `key` |
| `break`, `continue` | the other one |

Texts of errors, docstrings, annotations and decorators stay.
"""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

OPERATORS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,), ast.Mod: (ast.FloorDiv,), ast.Pow: (ast.Mult,),
    ast.MatMult: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,), ast.RShift: (ast.LShift,),
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt), ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.And: (ast.Or,), ast.Or: (ast.And,),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: function that it is in, what stood there and what stands there now, and which one of
            this name it is.
        line: where.
        scope: names of the classes and functions around it.
        lines: that run before it can make a difference, any of them; None is the import.
        place: which node of the file it changes, and how.
    """

    name: str
    line: int
    scope: tuple[str, ...]
    lines: range | None
    place: tuple[int, int]

    def tree(self, source: str) -> ast.Module:
        """The whole file with the change."""
        tree, (index, change) = ast.parse(source), self.place
        node = next(itertools.islice(_places(tree), index, None)).node
        list(_changes(node))[change]()
        return ast.fix_missing_locations(tree)


@dataclass(frozen=True)
class _Place:
    """A node that may be changed, and where it is."""

    node: ast.AST
    scope: tuple[str, ...] = ()
    lines: range | None = None
    inside: bool = False  # a function

    def within(self, node: ast.AST) -> _Place:
        """The place of a child."""
        if isinstance(self.node, ast.ClassDef):
            return _Place(node, (*self.scope, self.node.name), None, self.inside)
        if isinstance(self.node, ast.FunctionDef):
            scope, body = (*self.scope, self.node.name), self.node.body
            # A default makes a difference where the function is called.
            lines = range(body[0].lineno, (body[-1].end_lineno or 0) + 1)
            return _Place(node, scope, self.lines if self.inside else lines, True)._at(node)
        return _Place(node, self.scope, self.lines, self.inside)._at(node)

    def _at(self, node: ast.AST) -> _Place:
        """The same with the lines of a statement, or of the head of one that has a body."""
        if not self.inside or not isinstance(node, ast.stmt):
            return self
        body = getattr(node, "body", None)
        stop = body[0].lineno if body else (node.end_lineno or node.lineno) + 1
        return _Place(node, self.scope, range(node.lineno, max(stop, node.lineno + 1)), True)


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a file, in its order."""
    seen: dict[str, int] = {}
    for index, place in enumerate(_places(ast.parse(source))):
        for change, _ in enumerate(_changes(place.node)):
            node = copy.deepcopy(place.node)
            before = _text(node)
            replaced = list(_changes(node))[change]()
            after = "nothing" if replaced is None else _text(replaced)
            name = f"{'.'.join(place.scope) or 'module'}: {before} -> {after}"
            seen[name] = seen.get(name, 0) + 1
            name += f" (#{seen[name]})" if seen[name] > 1 else ""
            line = getattr(node, "lineno", 0)
            yield Mutant(name, line, place.scope, place.lines, (index, change))


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 90 else text[:87] + "..."


def _places(tree: ast.Module) -> Iterator[_Place]:
    """Nodes that may be changed."""
    waiting = [_Place(tree)]
    while waiting:
        place = waiting.pop()
        node = place.node
        if isinstance(node, ast.JoinedStr):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        yield place
        if isinstance(node, ast.Raise):
            continue
        skipped: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            skipped += node.decorator_list
        if isinstance(node, ast.FunctionDef):
            skipped += [node.returns]
        if isinstance(node, ast.arg | ast.AnnAssign):
            skipped += [node.annotation]
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            skipped += [node.body[0]]
        children = [
            place.within(child)
            for child in ast.iter_child_nodes(node)
            if not any(child is one for one in skipped)
        ]
        waiting += reversed(children)


def _changes(node: ast.AST):
    """Functions that change a node in place and return what now stands there, or None."""

    def put(**values):
        def apply():
            for name, value in values.items():
                setattr(node, name, value)
            return node

        return apply

    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        yield from (put(op=kind()) for kind in OPERATORS.get(type(node.op), ()))
    if isinstance(node, ast.Compare):
        for k, operator in enumerate(node.ops):
            for kind in OPERATORS.get(type(operator), ()):
                yield put(ops=[*node.ops[:k], kind(), *node.ops[k + 1 :]])
    if isinstance(node, ast.UnaryOp):
        yield _become(node, node.operand)
    if isinstance(node, ast.Constant):
        yield from (put(value=value) for value in _others(node.value))
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield put(test=ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.Slice):
        if node.lower is not None:
            yield put(lower=None)
        if node.upper is not None:
            yield put(upper=None)
    if isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield _become(node, None)
    if isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield put(value=None)
    if isinstance(node, ast.Call):
        for k, keyword in enumerate(node.keywords):
            if keyword.arg != "strict":  # found by what it asserts, or not at all
                yield put(keywords=node.keywords[:k] + node.keywords[k + 1 :])
    if isinstance(node, ast.Break):
        yield _become(node, ast.Continue())
    if isinstance(node, ast.Continue):
        yield _become(node, ast.Break())


def _others(value: object) -> list[object]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, *([value - 1] if value > 0 else [])]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    return [f"{value}?"] if isinstance(value, str) and value else []


def _become(node: ast.AST, other: ast.AST | None):
    """Turn a node into another one, or into nothing."""

    def apply():
        location = {name: getattr(node, name) for name in ("lineno", "col_offset")}
        kept = ast.Pass() if other is None else other
        node.__class__ = type(kept)
        node.__dict__.clear()
        node.__dict__.update({**kept.__dict__, **location})
        return None if other is None else node

    return apply
