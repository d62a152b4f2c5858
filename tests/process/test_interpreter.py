"""Python is started again also where its path cannot be reached."""

import os
import subprocess
from pathlib import Path

import pytest

from sagewai_ops.process import interpreter

_PROGRAM = """
import encodings, json
sys.path.append({root!r})
import sagewai_ops.errors
print(json.dumps([encodings.__file__, sagewai_ops.errors.__file__, sys.path]))
"""


def _answer(directory: Path) -> str:
    found = interpreter.find_interpreter()
    (directory / "json.py").write_text("raise SystemExit('planted')")
    return subprocess.run(
        found.command(_PROGRAM.format(root=found.root)),
        cwd=directory,
        env=found.variables,
        pass_fds=found.descriptors,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_python_is_started_by_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below /root, another user reaches neither the executable nor the library by a path."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    monkeypatch.setattr(interpreter, "_descriptors", [])
    interpreter.keep_interpreter()
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)

    answer = _answer(tmp_path)

    assert answer.count("/proc/self/fd/") >= 3
    for descriptor in interpreter._descriptors:
        os.close(descriptor)


def test_python_is_started_by_its_path(tmp_path: Path) -> None:
    """Without descriptors, and nothing is imported from the current directory."""
    assert "/proc/self/fd/" not in _answer(tmp_path)
