"""A method is read in one sitting: 100 lines of code at most, however much is said about it."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

import interfuse.methods

FILES = sorted(Path(interfuse.methods.__file__).parent.glob("[!_]*.py"))
MOST = 100
BLANK = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER
}  # fmt: skip


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
