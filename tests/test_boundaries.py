"""Who may import whom: read from the source, held against one table."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("schemas", "detectors", "pipeline", "dashboards", "gateway")


@dataclass(frozen=True)
class Rule:
    """What the modules under `layer` may import. The rule with the longest `layer` counts.

    A name covers what is below it: ``pipeline.core`` allows ``pipeline.core.step``.
    """

    layer: str
    #: Modules of ours.
    ours: tuple[str, ...]
    #: Third-party libraries; None allows all but the forbidden.
    libraries: tuple[str, ...] | None = None
    #: Never, whatever else is allowed; also attributes, as in ``datetime.datetime.now``.
    forbidden: tuple[str, ...] = ()


CLOCKS = (
    "time",
    "datetime.datetime.now",
    "datetime.datetime.utcnow",
    "datetime.datetime.today",
    "datetime.date.today",
)
INPUT_OUTPUT = (
    "asyncio",
    "concurrent",
    "http",
    "logging",
    "multiprocessing",
    "os",
    "random",
    "secrets",
    "selectors",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "threading",
    "urllib.request",
)
STREAMING = ("faust", "mode", "aiokafka")
#: Arrays in, arrays out; a msgspec.Struct is what our records are made of.
MATHS = ("numpy", "scipy", "msgspec")
PURE = (*CLOCKS, *INPUT_OUTPUT)
CONTRACTS = ("schemas", "pipeline.errors", "pipeline.config")
CORE = ("detectors", "pipeline.core", "pipeline.incidents")
#: What the gateway shares with the pipeline: contracts, prices, encoders, how Kafka is reached.
SHARED = (
    *CONTRACTS,
    "pipeline.core.pricing",
    "pipeline.core.redaction",
    "pipeline.encoders",
    "pipeline.gateway_settings",
    "pipeline.prices",
    "pipeline.producers",
    "pipeline.producing",
    "pipeline.receiving",
    "pipeline.topics",
)

RULES = (
    Rule("schemas", ours=("schemas",), libraries=("msgspec",), forbidden=PURE),
    # A chunk's times and bytes are looked at as arrays.
    Rule("schemas.codec", ours=("schemas",), libraries=("msgspec", "numpy"), forbidden=PURE),
    # Spans come as Protobuf too.
    Rule(
        "schemas.otlp",
        ours=("schemas",),
        libraries=("msgspec", "google", "opentelemetry"),
        forbidden=PURE,
    ),
    Rule("detectors", ours=("detectors", "schemas"), libraries=(*MATHS, "river"), forbidden=PURE),
    # What a panel says is plain data; only the three modules below know Grafana.
    Rule("dashboards", ours=("dashboards", "schemas"), libraries=("msgspec",), forbidden=PURE),
    Rule(
        "dashboards.build",
        ours=("dashboards", "schemas"),
        libraries=("grafana_foundation_sdk",),
        forbidden=PURE,
    ),
    Rule(
        "dashboards.alerts",
        ours=("dashboards", "schemas"),
        libraries=("grafana_foundation_sdk", "msgspec"),
        forbidden=PURE,
    ),
    Rule("dashboards.push", ours=("dashboards",), libraries=("grafana_api", "msgspec")),
    # What stands beside the shells. Only the two modules below stream, and nothing calls the CLI.
    Rule(
        "pipeline",
        ours=("schemas", "detectors", "pipeline"),
        forbidden=(*STREAMING, "pipeline.cli"),
    ),
    Rule("pipeline.app", ours=("schemas", "detectors", "pipeline")),
    Rule("pipeline.transport", ours=("pipeline",)),
    Rule("pipeline.cli", ours=PACKAGES, forbidden=STREAMING),
    Rule("pipeline.__main__", ours=("pipeline.cli",)),
    Rule("pipeline.demo", ours=("schemas", "detectors", "pipeline"), forbidden=STREAMING),
    Rule("pipeline.errors", ours=(), libraries=(), forbidden=PURE),
    Rule(
        "pipeline.config",
        ours=("schemas", "pipeline.errors", "pipeline.gateway_settings", "pipeline.section"),
        libraries=("pydantic", "pydantic_settings"),
        forbidden=STREAMING,
    ),
    Rule("pipeline.section", ours=(), libraries=("pydantic",), forbidden=PURE),
    Rule(
        "pipeline.gateway_settings",
        ours=("pipeline.section", "schemas.sensitive"),
        libraries=("pydantic",),
        forbidden=PURE,
    ),
    Rule("pipeline.topics", ours=CONTRACTS, forbidden=STREAMING),
    Rule("pipeline.broker", ours=(*CONTRACTS, "pipeline.topics"), forbidden=STREAMING),
    Rule("pipeline.core", ours=(*CONTRACTS, *CORE), libraries=MATHS, forbidden=PURE),
    # Measures bytes: compression says how much an answer repeats itself, an automaton finds
    # phrases.
    Rule(
        "pipeline.core.style",
        ours=(*CONTRACTS, *CORE),
        libraries=(*MATHS, "lz4", "pyarrow"),
        forbidden=PURE,
    ),
    # Columns of text and an automaton over them, in memory.
    Rule(
        "pipeline.core.refusal.screen",
        ours=("pipeline.core.refusal",),
        libraries=("numpy", "pyarrow"),
        forbidden=PURE,
    ),
    # Linear time is what keeps a hostile text from stopping the worker.
    Rule(
        "pipeline.core.redaction",
        ours=("pipeline.core.redaction", "schemas.sensitive"),
        libraries=("re2",),
        forbidden=PURE,
    ),
    Rule(
        "pipeline.encoders",
        ours=("pipeline.encoders", "pipeline.errors", "schemas"),
        forbidden=(*STREAMING, *CLOCKS),
    ),
    Rule("pipeline.incidents", ours=(*CONTRACTS, *CORE), libraries=MATHS, forbidden=PURE),
    Rule("pipeline.sinks", ours=(*CONTRACTS, *CORE, "pipeline.sinks"), forbidden=STREAMING),
    Rule("gateway", ours=("gateway", *SHARED), forbidden=STREAMING),
    # The whole circle: clients, the gateway, the pipeline behind it.
    Rule("gateway.demo", ours=("gateway", "pipeline", "schemas"), forbidden=STREAMING),
    # What the gateway decides, it decides without a clock and without a socket.
    *(
        Rule(f"gateway.{module}", ours=("gateway", *SHARED), libraries=("msgspec",), forbidden=PURE)
        for module in (
            "anthropic_api",
            "answer",
            "asked",
            "errors",
            "events",
            "likeness",
            "openai_api",
            "ratings",
            "relay",
            "routing",
            "sse",
            "stages",
        )
    ),
    Rule(
        "gateway.guardrails",
        ours=("gateway", *SHARED),
        libraries=("msgspec", "re2"),
        forbidden=PURE,
    ),
    *(
        Rule(f"gateway.{module}", ours=("gateway",), libraries=("re2",), forbidden=PURE)
        for module in ("disguise", "injection", "injection_patterns")
    ),
    Rule("gateway.cache", ours=("gateway", *SHARED), libraries=("msgspec",), forbidden=PURE),
    Rule("gateway.vectors", ours=(), libraries=("numpy", "usearch"), forbidden=PURE),
    # A tokenizer's file is read when the gateway is built.
    Rule("gateway.context", ours=("gateway", *SHARED), libraries=("msgspec", "tokenizers")),
    # Reads what is stored and nothing else; of the panels what they say, not Grafana's form.
    Rule(
        "pipeline.web",
        ours=(
            *CONTRACTS,
            "pipeline.sinks.endpoint",
            "pipeline.web",
            "dashboards.boards",
            "dashboards.filling",
            "dashboards.panels",
            "dashboards.sql",
        ),
        libraries=("aiohttp", "clickhouse_connect", "msgspec"),
        forbidden=(*STREAMING, *CLOCKS),
    ),
)


def covers(names: tuple[str, ...], name: str) -> bool:
    return any(name == n or name.startswith(f"{n}.") for n in names)


def rule_for(module: str) -> Rule:
    return max((r for r in RULES if covers((r.layer,), module)), key=lambda r: len(r.layer))


def imported(tree: ast.AST, module: str, modules: frozenset[str]) -> Iterator[str]:
    """The full name of everything imported, wherever in the module the import stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, modules)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and named_at_run_time(node):
            yield str(ast.literal_eval(node.args[0]))


def absolute(node: ast.ImportFrom, module: str, modules: frozenset[str]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(m.startswith(f"{module}.") for m in modules)
    parts = module.split(".") + ([""] if is_package else [])
    return ".".join([*parts[: -node.level], *([node.module] if node.module else [])])


def named_at_run_time(node: ast.Call) -> bool:
    """``importlib.import_module("x")`` and ``__import__("x")`` import as well."""
    called = ast.unparse(node.func).rpartition(".")[2]
    names_it = bool(node.args) and isinstance(node.args[0], ast.Constant)
    return called in {"import_module", "__import__"} and names_it


def used(tree: ast.AST) -> Iterator[str]:
    """Dotted names that go through an import: ``dt.datetime.now`` is ``datetime.datetime.now``."""
    origin = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            origin |= {a.asname or a.name.partition(".")[0]: a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            origin |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in origin:
                yield f"{origin[first]}.{rest}"


def violations(module: str, source: str, modules: frozenset[str]) -> list[str]:
    """Say what `module` imports or uses against its rule."""
    rule, tree = rule_for(module), ast.parse(source)
    names = set(imported(tree, module, modules))
    forbidden = {n for n in names | set(used(tree)) if covers(rule.forbidden, n)}
    strangers = {n for n in names - forbidden if not is_allowed(n, rule, modules)}
    return sorted(f"{module}: {name}" for name in forbidden | strangers)


def is_allowed(name: str, rule: Rule, modules: frozenset[str]) -> bool:
    top = name.partition(".")[0]
    if top == "tests":
        return False
    if top in PACKAGES:
        # What is imported from a package is a module of it, or a name that its __init__ defines.
        target = name if name in modules else name.rpartition(".")[0]
        return covers(rule.ours, target)
    if top in sys.stdlib_module_names:
        return True
    return rule.libraries is None or top in rule.libraries


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(f): f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))}
MODULES = frozenset(FILES)


def test_the_modules_are_found() -> None:
    assert {"schemas.event", "detectors", "pipeline.core", "pipeline.config"} <= MODULES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_keeps_to_its_layer(module: str) -> None:
    assert violations(module, FILES[module].read_text(encoding="utf-8"), MODULES) == []


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("schemas.event", "import numpy", "numpy"),
        ("schemas.event", "from pipeline import errors", "pipeline.errors"),
        ("schemas.event", "from datetime import datetime\ndatetime.now()", "datetime.datetime.now"),
        ("detectors.rate", "import datetime as dt\ndt.date.today()", "datetime.date.today"),
        ("detectors.rate", "def f():\n    import logging", "logging"),
        ("detectors.rate", "from os import environ", "os.environ"),
        ("detectors.rate", "import clickhouse_connect", "clickhouse_connect"),
        ("detectors.rate", "from pipeline.config import Config", "pipeline.config.Config"),
        ("pipeline.core.step", "from ..sinks import clickhouse", "pipeline.sinks.clickhouse"),
        ("pipeline.core.step", "import httpx", "httpx"),
        ("pipeline.core.step", "from time import monotonic as now", "time.monotonic"),
        ("pipeline.incidents.group", "import urllib.request", "urllib.request"),
        ("pipeline.incidents.group", "from pipeline.cli import main", "pipeline.cli.main"),
        ("pipeline.sinks.webhook", "from pipeline import topics", "pipeline.topics"),
        ("pipeline.demo", "import faust", "faust"),
        ("pipeline.local", "from aiokafka import AIOKafkaConsumer", "aiokafka.AIOKafkaConsumer"),
        ("pipeline.local", "import importlib\nimportlib.import_module('mode')", "mode"),
        ("pipeline.local", "from pipeline.cli import main", "pipeline.cli.main"),
        ("pipeline.local", "from dashboards import panels", "dashboards.panels"),
        ("pipeline.cli", "import tests.support", "tests.support"),
        ("dashboards.panels", "from pipeline.core import step", "pipeline.core.step"),
        ("dashboards.boards.cost", "import grafana_foundation_sdk", "grafana_foundation_sdk"),
        ("dashboards.build", "from grafana_api import version", "grafana_api.version"),
        ("dashboards.push", "import requests", "requests"),
        (
            "pipeline.web.server",
            "from pipeline.sinks import clickhouse",
            "pipeline.sinks.clickhouse",
        ),
        ("pipeline.web.server", "from dashboards import push", "dashboards.push"),
        ("pipeline.web.server", "import time", "time"),
    ],
)
def test_a_breach_is_found(module: str, source: str, found: str) -> None:
    assert violations(module, source, MODULES | {module}) == [f"{module}: {found}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("schemas.event", "import datetime as dt\nfrom msgspec import Struct\ndt.datetime.max"),
        (
            "detectors.rate",
            "import numpy as np\nfrom scipy import stats\nimport schemas.signal",
        ),
        ("pipeline.core.step", "from . import chunk\nfrom detectors import rate"),
        ("pipeline.core.step", "def time(now): ...\ntime.now()"),
        ("pipeline.core", "from .step import f"),
        ("pipeline.app", "import faust\nfrom pipeline.transport import Transport"),
        ("pipeline.cli", "from dashboards import panels"),
        ("dashboards.panels", "from schemas.signal import Family\nimport json"),
        ("dashboards.push", "from grafana_api.grafana_face import GrafanaFace"),
    ],
)
def test_what_is_allowed_is_not_complained_of(module: str, source: str) -> None:
    assert violations(module, source, MODULES | {module, "pipeline.core.step"}) == []
