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
        tree: the whole file with it.
    """

    name: str
    line: int
    tree: ast.Module


def mutants(source: str) -> Iterator[Mutant]:
    """All mutants of a file, in its order."""
    tree = ast.parse(source)
    places = list(_places(tree, ()))
    seen: dict[str, int] = {}
    for index, (node, scope) in enumerate(places):
        for k, _ in enumerate(_changes(node)):
            changed = copy.deepcopy(tree)
            place = list(_places(changed, ()))[index][0]
            before = _text(place)
            apply = list(_changes(place))[k]
            replaced = apply()
            after = "nothing" if replaced is None else _text(replaced)
            ast.fix_missing_locations(changed)
            name = f"{'.'.join(scope) or 'module'}: {before} -> {after}"
            seen[name] = seen.get(name, 0) + 1
            name += f" (#{seen[name]})" if seen[name] > 1 else ""
            yield Mutant(name, getattr(node, "lineno", 0), changed)


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 90 else text[:87] + "..."


def _places(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Nodes that may be changed, and the functions that they are in."""
    if isinstance(node, ast.Raise):
        yield node, scope
        return
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    yield node, scope
    skipped: list[ast.AST | None] = []
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        scope = (*scope, node.name)
        skipped += node.decorator_list
    if isinstance(node, ast.FunctionDef):
        skipped += [node.returns]
    if isinstance(node, ast.arg | ast.AnnAssign):
        skipped += [node.annotation]
    if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
        skipped += [node.body[0]]
    for child in ast.iter_child_nodes(node):
        if not any(child is one for one in skipped):
            yield from _places(child, scope)


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
    if isinstance(node, ast.Return) and node.value is not None:
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
