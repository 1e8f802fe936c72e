"""What Kizashi is made of: a bill of materials, and whether an advisory speaks of any of it.

``python deploy/supply_chain.py sbom`` prints a CycloneDX 1.6 bill of what the lock files pin,
with the hashes; the same locks give the same bytes. ``… audit`` asks uv's service of advisories
about the same pins: 0 when none is known, 1 when there is one, and 75 (try later) with the
reason when the service cannot be reached.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
#: What runs in production; what tests and builds need is not shipped.
LOCKS = ("runtime", "gateway")
TRY_LATER = 75
_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)(?:\[[^\]]*\])?==(?P<version>[^ ;\\]+)"
    r"(?: ; (?P<marker>[^\\]*[^\\ ]))?(?P<hashes>(?: \\\n +--hash=sha256:[0-9a-f]{64})+)",
    re.MULTILINE,
)
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_UNREACHABLE = re.compile(r"(?i)error sending request|dns error|timed out|connect|offline")


class Pin(NamedTuple):
    """A package that a lock file pins."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")


def read_pins(*locks: str) -> list[Pin]:
    """Return what the lock files pin, each once, by name and version."""
    found = set()
    for lock in locks:
        text = (ROOT / "requirements" / f"{lock}.txt").read_text(encoding="utf-8")
        for match in _PIN.finditer(text):
            hashes = tuple(sorted(_HASH.findall(match["hashes"])))
            found.add(Pin(match["name"], match["version"], match["marker"] or "", hashes))
    return sorted(found)


def make_bill(pins: list[Pin], version: str) -> dict[str, Any]:
    """Return a CycloneDX 1.6 document. Its serial number is a function of what it lists."""
    components = [_describe(pin) for pin in pins]
    listed = json.dumps([version, components], sort_keys=True)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, listed)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": f"kizashi@{version}",
                "name": "kizashi",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
    }


def _describe(pin: Pin) -> dict[str, Any]:
    name = re.sub(r"[-_.]+", "-", pin.name).lower()
    reference = f"pkg:pypi/{name}@{pin.version.replace('!', '%21').replace('+', '%2B')}"
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": reference,
        "name": pin.name,
        "version": pin.version,
        "purl": reference,
        # A pin has a hash for each of its files; whichever is installed is one of them.
        "hashes": [{"alg": "SHA-256", "content": each} for each in pin.hashes],
    }
    if licence := _find_licence(pin.name):
        component["licenses"] = [{"license": {"name": licence}}]
    return component


def _find_licence(name: str) -> str | None:
    """What the package says of itself, where it is installed."""
    try:
        said = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classifiers = [c for c in said.get_all("Classifier") or () if c.startswith("License ::")]
    licence = said.get("License-Expression") or (classifiers or [""])[0].rpartition(" :: ")[2]
    return licence or None


def audit(pins: list[Pin]) -> int:
    """Ask the advisories; returns the exit status."""
    listed = "".join(f"    {json.dumps(pin.requirement)},\n" for pin in pins)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "pyproject.toml").write_text(
            '[project]\nname = "audited"\nversion = "0"\nrequires-python = ">=3.11,<3.13"\n'
            f"dependencies = [\n{listed}]\n",
            encoding="utf-8",
        )
        command = (str(Path(sys.executable).parent / "uv"), "audit", "--preview-features", "audit")
        done = subprocess.run(  # noqa: S603 - our own arguments
            command, cwd=directory, capture_output=True, text=True, check=False
        )
    sys.stdout.write(done.stdout)
    if done.returncode and _UNREACHABLE.search(done.stderr):
        print("not audited: the service of advisories cannot be reached from here", file=sys.stderr)
        return TRY_LATER
    sys.stderr.write(done.stderr)
    return done.returncode


def main(command: str) -> int:
    pins = read_pins(*LOCKS)
    if command == "audit":
        return audit(pins)
    version = re.search(
        r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE
    )
    print(json.dumps(make_bill(pins, version[1] if version else ""), indent=1, sort_keys=True))
    return 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["sbom"], ["audit"]):
        sys.exit("usage: supply_chain.py sbom | audit")
    sys.exit(main(sys.argv[1]))
