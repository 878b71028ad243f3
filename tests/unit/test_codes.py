"""The table of fault codes in tests/README.md: every code that a test uses is in it, and every row names its test."""

import ast
import re
from collections import Counter
from itertools import chain

from samples import ROOT

TESTS = ROOT / "tests"
ROW = re.compile(r"\| ([A-Z]\d) \| (.+?) \| (`.+`) \|")
NAME = re.compile(r"test_([a-z]\d)_")
ROWS = re.compile(r"\(rows? ([^)]*)\)")
RANGE = re.compile(r"([A-Z])(\d)(?:-[A-Z](\d))?")


def table() -> list[tuple[str, str, list[str]]]:
    """Return code, sentence and tests of every row."""
    found = [ROW.fullmatch(line) for line in (TESTS / "README.md").read_text().splitlines()]
    return [(row[1], row[2], re.findall(r"`([^`]+)`", row[3])) for row in found if row]


def used() -> set[str]:
    """Return the codes in names of tests, and in docstrings as "(row X1)" or "(rows C1-C3 and C5-C9)"."""
    codes = set[str]()
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (name := NAME.match(node.name)):
                codes.add(name[1].upper())
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for first, begin, end in chain(*map(RANGE.findall, ROWS.findall(ast.get_docstring(node) or ""))):
                    codes |= {f"{first}{number}" for number in range(int(begin), int(end or begin) + 1)}
    return codes


def security() -> set[str]:
    """Return the codes in the table of SECURITY.md."""
    rows = re.findall(r"^\| ([A-Z]\d(?:, [A-Z]\d)*) \|", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    return set(chain(*(row.split(", ") for row in rows)))


def test_every_code_that_is_used_is_in_the_table_once() -> None:
    codes = Counter(code for code, _, _ in table())
    assert len(used()) > 30
    assert used() | security() - {"L3"} <= codes.keys()  # L3 is measured by a benchmark
    assert [code for code, count in codes.items() if count > 1] == []
    assert list(codes) == sorted(codes)


def test_every_row_names_tests_that_exist() -> None:
    missing = []
    for code, sentence, tests in table():
        assert sentence.endswith("."), code
        for test in tests:
            file, _, name = test.partition("::")
            path = TESTS / file
            if not path.is_file() or f"def {name}(" not in path.read_text():
                missing.append(f"{code}: {test}")
    assert missing == []
