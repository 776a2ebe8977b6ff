"""What a server's ``/metrics`` says, read as Prometheus reads it; and a Prometheus that reads it."""

import json
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from live_server import wait_until
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "serving" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "safelight.json").read_text(encoding="utf-8"))
PANELS: Sequence[Mapping[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SCRAPE = "200ms"
"""Between two scrapes in a test."""

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    """Each sample's value by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that carry these labels."""
    return sum(value for (each, own), value in samples(text).items() if each == name and labels.items() <= own)


def query_of(expression: str, rate_interval: str = "1m") -> str:
    """A query of the dashboard as Grafana sends it, for all replicas."""
    return expression.replace("$replica", ".*").replace("$__rate_interval", rate_interval)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def asked(self, query: str) -> Sequence[Mapping[str, Any]]:
        """What it answers at this moment, one record per series."""
        said = self._client.get("/api/v1/query", params={"query": query}).json()
        assert said["status"] == "success", said
        found: Sequence[Mapping[str, Any]] = said["data"]["result"]
        return found


@contextmanager
def prometheus(folder: Path, addresses: Sequence[str]) -> Iterator[Prometheus]:
    """A Prometheus with the stack's own configuration, but that it knows its targets and asks them often."""
    configuration = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))
    configuration["global"] = {"scrape_interval": SCRAPE, "evaluation_interval": SCRAPE}
    configuration["rule_files"] = [str(MONITORING / name) for name in configuration["rule_files"]]
    (scraped,) = configuration["scrape_configs"]
    del scraped["dns_sd_configs"]
    scraped["static_configs"] = [{"targets": list(addresses)}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(configuration), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *words], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://{address}", trust_env=False, timeout=10) as client:
            wait_until(lambda: _is_ready(client) or process.poll() is not None, 30)
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            yield Prometheus(client)
    finally:
        process.kill()
        process.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False
