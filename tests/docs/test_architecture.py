"""docs/architecture.md names the packages and modules that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "sagewai_ops"


def test_every_package_has_a_line() -> None:
    """The table lists each package below sagewai_ops/, and no other."""
    listed = set(re.findall(r"^\| `([a-z/]+)/` \|", PAGE, re.MULTILINE))

    packages = {
        path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("**/__init__.py")
    }
    assert listed - {"commands"} == packages - {"."}


def test_every_module_at_the_root_has_a_line() -> None:
    """The last row lists the modules outside any package."""
    modules = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}

    (row,) = re.findall(r"^\| (`errors`.*?) \|", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == modules


def test_every_module_that_is_named_exists() -> None:
    """Paths on the page are below the root of the repository or of the library."""
    named = set(re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE)) - {"commands/X.py"}

    assert len(named) > 30
    assert {
        path for path in named if not (ROOT / path).exists() and not (PACKAGE / path).exists()
    } == set()


def test_the_glossary_is_sorted_and_defines_each_term_once() -> None:
    """A reader finds a term by its first letter."""
    glossary = PAGE[PAGE.index("## Glossary") : PAGE.index("## A home through")]
    terms = re.findall(r"^\| ([\w() -]+) \|", glossary, re.MULTILINE)[1:]

    assert len(terms) >= 30
    assert terms == sorted(set(terms), key=str.lower)
