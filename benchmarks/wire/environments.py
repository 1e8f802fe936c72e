"""The rivals' environments: one for each requirement file, made once under `.cache/rivals`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements" / "rivals"
ENVIRONMENTS = ROOT / ".cache" / "rivals"


def python_of(name: str | None) -> Path:
    """Return the Python of an environment; None is our own."""
    return Path(sys.executable) if name is None else ENVIRONMENTS / name / "bin" / "python"


def install(name: str) -> None:
    """Make an environment unless it stands and is newer than its requirement file."""
    requirements, made = REQUIREMENTS / f"{name}.txt", ENVIRONMENTS / name / ".installed"
    if made.is_file() and made.stat().st_mtime > requirements.stat().st_mtime:
        return
    print(f"installing {name} …", file=sys.stderr)
    uv = str(Path(sys.executable).parent / "uv")
    where = str(ENVIRONMENTS / name)
    _run(uv, "venv", "--quiet", "--clear", "--no-config", "--python", sys.executable, where)
    _run(
        uv, "pip", "install", "--quiet", "--no-config", "--require-hashes",
        "--python", str(python_of(name)), "--requirement", str(requirements),
    )  # fmt: skip
    made.touch()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603 - our own arguments
