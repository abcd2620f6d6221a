"""A method is read in one sitting: 100 lines of code at most, and none of them in another method."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import interfuse.families
import interfuse.methods

FOLDERS = (interfuse.methods, interfuse.families)
FILES = sorted(path for folder in FOLDERS for path in Path(str(folder.__file__)).parent.glob("[!_]*.py"))
MOST = 100
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def lines_of_code(source: str) -> int:
    """Lines without docstrings, comments, blank lines, imports, and fields that are a name and a type alone."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {n for t in tokens if t.type not in BLANK for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        told = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        typed = isinstance(node, ast.AnnAssign) and node.value is None
        if told or typed or isinstance(node, ast.Import | ast.ImportFrom):
            code -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(code)


def test_what_counts() -> None:
    source = '"""What."""\nimport os\n\n# why\nclass A:\n    """Which."""\n\n    x: int\n    y: int = (\n 1\n)\n'
    assert lines_of_code(source) == 4


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_no_method_is_longer_than_a_page_or_two(path: Path) -> None:
    assert lines_of_code(path.read_text(encoding="utf-8")) <= MOST


def test_no_method_is_built_on_another() -> None:
    """What methods share is an abstract class in a family."""
    methods = set(interfuse.methods.built_in().values())
    assert not {kind.__name__ for kind in methods if methods & set(kind.__mro__[1:])}
