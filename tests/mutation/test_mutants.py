"""The mutation tester itself: what it changes, and that a changed function is the one that runs."""

from __future__ import annotations

import ast

from csd.runtime import schedule

from .mutants import mutants
from .patch import ROOT, patch_function

SOURCE = '''
def f(a, b=2):
    """A docstring stays."""
    if a > b:
        raise ValueError("so does the text of an error")
    return a + 1
'''


def test_every_operator_number_and_branch_is_changed_once():
    changed = {mutant.name: ast.unparse(mutant.tree(SOURCE)) for mutant in mutants(SOURCE)}
    for name, wanted in {
        "f: a > b -> a >= b": "if a >= b:",
        "f: a > b -> a <= b": "if a <= b:",
        "f: a + 1 -> a - 1": "return a - 1",
        "f: return a + 1 -> return": "return",
        "f: 2 -> 3": "def f(a, b=3):",
        "f: raise ValueError('so does the text of an error') -> nothing": "pass",
    }.items():
        assert wanted in [line.strip() for line in changed[name].splitlines()]
    assert len(changed) == len(set(changed.values())) == 10
    assert not any("docstring" in name for name in changed)


def test_a_mutant_knows_the_lines_that_run_before_it_matters():
    lines = {mutant.name: mutant.lines for mutant in mutants(SOURCE)}
    assert lines["f: a > b -> a >= b"] == range(4, 5)  # the head of the branch
    assert lines["f: a + 1 -> a - 1"] == range(6, 7)
    assert lines["f: 2 -> 3"] == range(3, 7)  # a default, where the function is called
    assert [mutant.lines for mutant in mutants("LIMIT = 3")] == [None, None]  # at the import


def test_a_live_function_gets_the_changed_code():
    path = ROOT / "runtime" / "schedule.py"
    source = path.read_text(encoding="utf-8")
    (found,) = (m for m in mutants(source) if m.name == "respaced_timesteps: 0.0 -> 1.0")
    plain = schedule.respaced_timesteps(2).tolist()
    try:
        patch_function(path, found.tree(source), found.scope)
        assert schedule.respaced_timesteps(2).tolist() == [place + 1 for place in plain]
    finally:
        patch_function(path, ast.parse(source), found.scope)
    assert schedule.respaced_timesteps(2).tolist() == plain
