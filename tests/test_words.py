"""The words of the program: what people read is written in the words of the field.

Run as a program, it lists every place: `python tests/test_words.py [PATH]...`.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Words that are not used, each with what is written in its place.
WORDS = {
    r"folders?": "directory",
    r"mend(s|ed|ing)?": "repair, fix",
    r"anew": "again; seal anew: re-encrypt",
    r"for ever": "permanently",
    r"beside": "next to",
    r"at hand": "available",
    r"meanwhile": "during ...",
    r"all the same": "still, anyway",
    r"nobody|somebody|whoever": "no user, another user, the process that ...",
    r"told|tells?|say(s|ing)?|said": "report, name, state",
    r"gives?|gave|giving|spell(s|ed|t|ing)?": "return, write",
    r"stands?|stood|standing|lies|lay|rested|rests": "is, exists, remains",
    r"carr(y|ies|ied|ying)": "copy, include, contain",
    r"is none|are none": "is not a ...",
    r"what (comes|goes|came|went|was there)": "name the thing",
    r"makes? sure|see to it": "check, ensure",
    r"holds? still": "does not change",
    r"takes? back|taken back|took back": "roll back, undo",
    r"judged?|judges|judging|judgement": "check, evaluate",
    r"under way": "in progress, pending",
}
# Words that are not names in code: metaphors and participles.
_NAMES = """
told tell say said give gives spell spelled spelt look looked way gate gates half halves hands
flight taking standing stand lie room rooms mend mends mended anew somebody nobody whoever folder
folders one judge judged carried carry
"""
NAMES = frozenset(_NAMES.split())
CONTRACT = frozenset(
    ("folder", "folders", "mend", "mended")
)  # JSON keys of version 0.1: fields of results
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
_VERBS = re.compile(r"(Give|Tell|Say|Let|Spell|Name|Hold|Look|Take|Make sure)s?\b")
# Where a word is what another program, a file format or a JSON field calls a thing.
_QUOTED = re.compile(
    r"`[^`\n]*`|is None\b|"
    r"\"(?:folders?|nobody|mend(?:ed)?)\"|'(?:folders?|nobody|mended)'|\.mended\b"
    r"|\bnobody:|user nobody|\w\.folders?\b"
)
PROSE = ("docs/**/*.md", "man/**/*.md", "man/*.1", "*.md", "fixtures/*.md")
CODE = ("sagewai_ops/**/*.py", "commands/*.py", "migrations/**/*.py", "fixtures/**/*.py", ".ci/*")
TESTS = ("tests/**/*.py",)
OTHER = ("Makefile", "tests/**/*.mk", "sagewai_ops/**/*.sql", "sagewai_ops/**/*.template")


def _lines_of_prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text, without blocks of code."""
    is_code = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            is_code = not is_code
        elif not is_code:
            yield number, line


def _lines_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield every comment and every line of a string, docstrings included."""
    source = path.read_text(encoding="utf-8")
    strings = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.type in strings:
            for offset, line in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, line


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield every name that a module defines."""
    fields = {
        id(line.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and line.target.id in CONTRACT
    }
    for node in ast.walk(tree):
        if id(node) in fields:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.alias):
            yield node.lineno, (node.asname or node.name).rpartition(".")[2]


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "lineno", 1), text


def findings(path: Path) -> Iterator[str]:
    """Yield the words in a file that are not used, one `path:line: word` each."""
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    is_code = path.suffix == ".py"
    for number, line in _lines_of_code(path) if is_code else _lines_of_prose(path):
        for match in _WORD.finditer(_QUOTED.sub("", line)):
            yield f"{name}:{number}: {match[0]}"
    if is_code:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for number, identifier in _names(tree):
            words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", identifier).lower().strip("_").split("_")
            if identifier.startswith("test_"):  # a sentence, in which `one` is a number
                words = [word for word in words if word != "one"]
            if NAMES.intersection(words):
                yield f"{name}:{number}: the name {identifier}"
        for number, text in _docstrings(tree):
            if _VERBS.match(text):
                yield f"{name}:{number}: a docstring that begins with {text.split()[0]}"


def _files() -> list[Path]:
    patterns = (*PROSE, *CODE, *TESTS, *OTHER)
    found = {path for pattern in patterns for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(found - {Path(__file__)})


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_those_of_the_field(path: Path) -> None:
    """What people read has no words of our own invention: style guide, section 0."""
    assert list(findings(path)) == []


if __name__ == "__main__":
    for argument in sys.argv[1:] or [str(path) for path in _files()]:
        place = Path(argument).resolve()
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            for finding in findings(path):
                sys.stdout.write(finding + "\n")
