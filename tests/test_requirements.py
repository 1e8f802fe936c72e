"""The lock files: every file is pinned by hash, nothing says where from, and pyproject agrees."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Each lock file and the part of pyproject.toml that it pins.
LOCKS: dict[str, list[str]] = {
    "runtime": PROJECT["project"]["dependencies"],
    "gateway": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["gateway"],
    ],
    "dev": PROJECT["dependency-groups"]["dev"],
    "build": PROJECT["dependency-groups"]["build"],
    "transformers": [
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["transformers"],
    ],
}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}(?![0-9a-f])")
each_lock = pytest.mark.parametrize("name", LOCKS)


def read_lock(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")


def entries(lock: str) -> list[str]:
    """What a lock file asks for, each joined with its continuation lines, comments gone."""
    lines = [line for line in lock.splitlines() if not line.lstrip().startswith("#")]
    return re.sub(r" *\\\n *", " ", "\n".join(lines)).splitlines()


def parse(entry: str) -> Requirement:
    return Requirement(entry.split(" --hash", maxsplit=1)[0])


def pins(lock: str) -> dict[str, list[Requirement]]:
    """Name → its pins: one, or one for each Python when markers tell them apart."""
    found: dict[str, list[Requirement]] = {}
    for entry in entries(lock):
        requirement = parse(entry)
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def faults(lock: str) -> list[str]:
    """Say which entries are not one version with a hash, from wherever pip is told to look."""
    wrong = []
    for entry in entries(lock):
        if entry.startswith("-") or "://" in entry:
            wrong.append(f"origin: {entry}")
        elif not HASH.search(entry):
            wrong.append(f"no hash: {entry}")
        elif [s.operator for s in parse(entry).specifier] != ["=="]:
            wrong.append(f"not pinned: {entry}")
    return wrong


@each_lock
def test_every_requirement_is_pinned_by_hash_and_names_no_origin(name: str) -> None:
    assert len(entries(read_lock(name))) >= len(LOCKS[name])
    assert faults(read_lock(name)) == []


@each_lock
def test_the_header_tells_how_the_file_is_made(name: str) -> None:
    assert "#    make lock\n" in read_lock(name)
    assert "://" not in read_lock(name)


@pytest.mark.parametrize(
    ("lock", "fault"),
    [
        ("a==1", "no hash"),
        ("a==1 \\\n    # via b", "no hash"),
        ("a==1 \\\n    --hash=sha256:12", "no hash"),
        (f"a>=1 \\\n    --hash=sha256:{'0' * 64}", "not pinned"),
        (f"a \\\n    --hash=sha256:{'0' * 64}", "not pinned"),
        (f"-i https://example.org/\na==1 \\\n    --hash=sha256:{'0' * 64}", "origin"),
        (f"--find-links wheels\na==1 \\\n    --hash=sha256:{'0' * 64}", "origin"),
        (f"a @ https://example.org/a.whl \\\n    --hash=sha256:{'0' * 64}", "origin"),
    ],
)
def test_a_fault_is_found(lock: str, fault: str) -> None:
    assert [f.partition(":")[0] for f in faults(lock)] == [fault]


@each_lock
def test_every_dependency_of_pyproject_is_pinned(name: str) -> None:
    locked = pins(read_lock(name))
    for text in LOCKS[name]:
        wanted = Requirement(text)
        for pin in locked[canonicalize_name(wanted.name)]:
            [version] = [s.version for s in pin.specifier]
            assert wanted.specifier.contains(version), f"{text} is locked at {version}"


def test_the_build_backend_is_locked() -> None:
    locked = pins(read_lock("build"))
    for text in PROJECT["build-system"]["requires"]:
        assert canonicalize_name(Requirement(text).name) in locked


def test_the_locks_agree_with_each_other() -> None:
    """They are installed into one environment."""
    runtime = pins(read_lock("runtime"))
    for name in ("gateway", "dev", "build", "transformers"):
        for package, found in pins(read_lock(name)).items():
            if package in runtime:
                assert {str(p.specifier) for p in found} <= {
                    str(p.specifier) for p in runtime[package]
                }, f"{package} in {name}"
    locks = {name: pins(read_lock(name)) for name in ("gateway", "dev", "build")}
    for one, other in itertools.combinations(locks.values(), 2):
        for package in one.keys() & other.keys():
            assert {str(p.specifier) for p in one[package]} & {
                str(p.specifier) for p in other[package]
            }, package


def test_the_default_install_pulls_no_torch() -> None:
    assert "torch" in pins(read_lock("transformers"))
    for name in ("runtime", "gateway", "dev", "build"):
        assert "torch" not in pins(read_lock(name))
