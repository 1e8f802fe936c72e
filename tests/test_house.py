"""House style that no linter knows: docstrings, short functions, no clocks, no stray paths."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "detectors", "pipeline", "dashboards", "gateway")
MAX_BODY_LINES = 60
#: Where time is a parameter.
TIMELESS = ("schemas", "detectors", "pipeline/core", "pipeline/incidents")
CLOCKS = re.compile(
    r"^(datetime\.)*((datetime|date)\.(now|utcnow|today)"
    r"|time\.(time|monotonic|perf_counter|process_time)(_ns)?)$"
)

MODULES = sorted(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef

each_module = pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(ROOT)))


def read(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


# --- Modules ---------------------------------------------------------------------------------


def test_there_are_modules() -> None:
    assert len(MODULES) > 10


@each_module
def test_a_module_opens_with_its_purpose(file: Path) -> None:
    assert ast.get_docstring(read(file)), "say in one sentence what this module is for"


@each_module
def test_functions_are_short(file: Path) -> None:
    assert list(long_functions(read(file))) == []


@each_module
def test_no_error_is_swallowed(file: Path) -> None:
    assert list(swallowed_errors(read(file))) == []


@pytest.mark.parametrize(
    "file",
    [f for f in MODULES if str(f.relative_to(ROOT)).startswith(TIMELESS)],
    ids=lambda f: str(f.relative_to(ROOT)),
)
def test_the_core_reads_no_clock(file: Path) -> None:
    assert list(clock_reads(read(file))) == []


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, Function) and (lines := body_lines(node)) > MAX_BODY_LINES:
            yield f"{node.name}: {lines} lines, at most {MAX_BODY_LINES} (40 are better)"


def body_lines(function: Function) -> int:
    """Lines from the first statement after the docstring to the last."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def swallowed_errors(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"line {node.lineno}: name the error"
            elif all(is_nothing(statement) for statement in node.body):
                yield f"line {node.lineno}: an error is dropped"
        elif isinstance(node, ast.Call) and suppresses_everything(node):
            yield f"line {node.lineno}: every error is dropped"


def is_nothing(statement: ast.stmt) -> bool:
    constant = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return isinstance(statement, ast.Pass) or constant


def suppresses_everything(call: ast.Call) -> bool:
    names = {ast.unparse(argument) for argument in call.args}
    called = ast.unparse(call.func).rpartition(".")[2]
    return called == "suppress" and bool(names & {"Exception", "BaseException"})


def clock_reads(tree: ast.AST) -> Iterator[str]:
    """Calls that ask what time it is, under whatever name they were imported."""
    origin = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin |= {a.asname or a.name: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            if first in origin and CLOCKS.match(name := origin[first] + dot + rest):
                yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept:\n    raise",
        "try:\n    f()\nexcept ValueError:\n    pass",
        "try:\n    f()\nexcept ValueError:\n    ...",
        "with contextlib.suppress(Exception):\n    f()",
    ],
)
def test_a_swallowed_error_is_found(source: str) -> None:
    assert len(list(swallowed_errors(ast.parse(source)))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import datetime as dt\ndt.datetime.now(dt.UTC)",
        "from datetime import date\ndate.today()",
        "import datetime\ndatetime.datetime.utcnow()",
        "import time\ntime.time()",
        "from time import monotonic_ns as tick\ntick()",
    ],
)
def test_a_clock_is_found(source: str) -> None:
    assert len(list(clock_reads(ast.parse(source)))) == 1


@pytest.mark.parametrize("source", ["def f(time): time.time()", "clock.now()"])
def test_a_parameter_is_no_clock(source: str) -> None:
    assert list(clock_reads(ast.parse(source))) == []


@pytest.mark.parametrize(("lines", "found"), [(MAX_BODY_LINES, 0), (MAX_BODY_LINES + 1, 1)])
def test_a_long_function_is_found(lines: int, found: int) -> None:
    source = 'def f():\n    """One.\n\n    Two.\n    """\n' + "    g()\n" * lines
    assert len(list(long_functions(ast.parse(source)))) == found


# --- Every file ------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Take the tildes out. With them, this file does not itself hold what it looks for."""
    return text.replace("~", "")


UNFINISHED = re.compile(plain(r"\b(TO~DO|FIX~ME|X~XX)\b"))
REGISTRY_HOSTS = re.compile(
    r"\b(pypi|pythonhosted|registry\.npmjs|registry\.yarnpkg|crates|static\.rust-lang|proxy\.golang"
    r"|repo1?\.maven(\.apache)?|deb\.debian)\.(org|io|com)\b"
)
#: A home or work directory of the machine somebody happened to use.
MACHINE_PATHS = re.compile(r"(?<![\w.])/+(home|root|work|Users)/")
STRAYS = {"a registry's host": REGISTRY_HOSTS, "a path of one machine": MACHINE_PATHS}


def repository_files() -> list[Path]:
    """Everything that git knows or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def find(pattern: re.Pattern[str], files: list[Path]) -> list[str]:
    """Where the pattern stands, as ``file:line``; what is not text is passed over."""
    found = []
    for file in files:
        raw = file.read_bytes()
        if b"\0" not in raw:
            lines = raw.decode("utf-8", errors="replace").splitlines()
            name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
            found += [f"{name}:{n}" for n, text in enumerate(lines, 1) if pattern.search(text)]
    return found


def test_git_lists_this_file() -> None:
    assert Path(__file__) in repository_files()


def test_nothing_is_left_unfinished() -> None:
    assert find(UNFINISHED, [f for f in repository_files() if f.suffix == ".py"]) == []


@pytest.mark.parametrize("what", STRAYS)
def test_no_file_names(what: str) -> None:
    assert find(STRAYS[what], repository_files()) == []


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (UNFINISHED, "# TO~DO: later"),
        (REGISTRY_HOSTS, "https://files.pythonhosted~.org/x"),
        (REGISTRY_HOSTS, "index-url = https://pypi~.org/simple"),
        (REGISTRY_HOSTS, "https://repo.maven.apache~.org/maven2"),
        (MACHINE_PATHS, "file:///root~/x"),
        (MACHINE_PATHS, "cd /home~/ada/kizashi"),
    ],
)
def test_a_stray_is_found(pattern: re.Pattern[str], text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(f"one\n{plain(text)}\n", encoding="utf-8")
    assert find(pattern, [tmp_path / "a"]) == ["a:2"]


@pytest.mark.parametrize("text", ["https://example.org/home~/", "./root~/x", "a network/ path"])
def test_a_route_is_no_path_of_a_machine(text: str) -> None:
    assert not MACHINE_PATHS.search(plain(text))
