"""The processes of the benchmark: the upstream, ours, LiteLLM's proxy; each alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.wire.environments import ROOT, install, python_of
from gateway.server import listen

KEY = "sk-benchmark-0123456789"
START_TIMEOUT_S = 180.0
_POLL_S = 0.2

OURS = """
[kafka]
bootstrap_servers = "127.0.0.1:{kafka}"
[[gateway.upstreams]]
name = "fake"
provider = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
[[gateway.models]]
name = "gpt-4o"
targets = [{{upstream = "fake", model = "gpt-4o"}}]
[[gateway.keys]]
name = "benchmark"
key_env = "BENCHMARK_KEY"
tenant = "acme"
requests_per_min = 100000000
tokens_per_min = 1000000000
[gateway.events]
spool = "{spool}"
"""
#: As its own documentation advises for production, and without its database.
LITELLM = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_base: http://127.0.0.1:{upstream}/v1
      api_key: none
litellm_settings:
  telemetry: false
  drop_params: true
general_settings:
  master_key: {key}
"""


@dataclass(frozen=True)
class Server:
    """A process that listens."""

    name: str
    url: str
    pid: int

    def cpu_s(self) -> float:
        """Seconds of processor time that it has used, all threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2]
        user, system = fields.split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with listen("127.0.0.1", 0) as listening:
        return int(listening.getsockname()[1])


@contextlib.contextmanager
def started(
    name: str, command: list[str], port: int, health: str, environment: Mapping[str, str], log: Path
) -> Iterator[Server]:
    """Give a server that answers; it is killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            command, cwd=ROOT, stdout=output, stderr=output, env={**os.environ, **environment}
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _await(process, url + health, log)
        yield Server(name, url, process.pid)
    finally:
        process.kill()
        process.wait()


def _await(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()  # noqa: S310 - our own address
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline_s:
                tail = log.read_text(encoding="utf-8", errors="replace")[-2_000:]
                raise RuntimeError(f"{url} does not answer:\n{tail}") from None
            time.sleep(_POLL_S)
        else:
            return


@contextlib.contextmanager
def three(directory: Path) -> Iterator[tuple[Server, Server, Server]]:
    """Give the upstream, ours and LiteLLM's proxy, all running."""
    install("litellm")
    upstream, ours, rival = free_port(), free_port(), free_port()
    config = directory / "kizashi.toml"
    # Nothing listens for events: they go to the spool, which is the dearer way.
    text = OURS.format(kafka=free_port(), upstream=upstream, spool=directory / "spool")
    config.write_text(text, encoding="utf-8")
    proxy = directory / "litellm.yaml"
    proxy.write_text(LITELLM.format(upstream=upstream, key=KEY), encoding="utf-8")
    # Compiled modules are kept: what it imports late, it would compile with every request.
    lone = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    binary = str(python_of("litellm").parent / "litellm")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        module = [sys.executable, "-m", "benchmarks.gateway.upstream", str(upstream)]
        direct = enter(started("direct", module, upstream, "/", {}, directory / "upstream.log"))
        command = [sys.executable, "-m", "pipeline", "--config", str(config), "gateway"]
        kizashi = enter(
            started(
                "kizashi",
                [*command, "--port", str(ours)],
                ours,
                "/health",
                {"BENCHMARK_KEY": KEY},
                directory / "ours.log",
            )
        )
        arguments = ["--config", str(proxy), "--port", str(rival), "--num_workers", "1"]
        litellm = enter(
            started(
                "litellm",
                [binary, *arguments, "--host", "127.0.0.1"],
                rival,
                "/health/liveliness",
                {**lone, "LITELLM_LOG": "ERROR"},
                directory / "litellm.log",
            )
        )
        yield direct, kizashi, litellm
