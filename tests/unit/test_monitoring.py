"""What Prometheus and Grafana are told: it parses, and it names metrics that the server has."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from live_server import Registry, ReplicaByHand
from prometheus_client.parser import text_string_to_metric_families
from scraping import DASHBOARD, PANELS, ROOT, query_of
from scraping import MONITORING as FOLDER

from pipeline.settings import Settings
from pipeline.store import open_store
from serving.metrics import exposition

GRAFANA = FOLDER / "grafana"
OWN = re.compile(r"(?:[a-z_]+:)?safelight_\w+(?::\w+)?")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}


def written(path: Path) -> Any:
    """A YAML or JSON file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


RULES = [rule for group in written(FOLDER / "rules.yml")["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]


def queries() -> Iterator[str]:
    """Every query of the dashboard, as Grafana would send it."""
    written = [target["expr"] for panel in PANELS for target in panel["targets"]]
    yield from map(query_of, [*written, *(each["expr"] for each in DASHBOARD["annotations"]["list"])])


def exposed() -> set[str]:
    """The names of all series that a server has, whether they have a value yet or not."""
    store = open_store("memory:///", Settings(store_patience_s=0))
    registry = Registry(store, store)
    text = exposition(ReplicaByHand(registry.models).participants[0], "shapes")("")[0].decode()
    families = list(text_string_to_metric_families(text))
    return {family.name + suffix for family in families for suffix in SUFFIXES[family.type]}


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    """Each name in a query is a series of the server or a recorded rule, and each recorded rule is used."""
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    asked = [rule["expr"] for rule in RULES] + [*queries(), DASHBOARD["templating"]["list"][0]["definition"]]
    named = {name for query in asked for name in OWN.findall(query)}
    assert len(named) > 20
    assert named - recorded - exposed() == set()


def test_every_alert_says_what_to_do() -> None:
    """It has a severity, what is wrong and what that means; operations.md and a test name it."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    tested = (FOLDER / "rules_test.yml").read_text(encoding="utf-8")
    for alert in ALERTS:
        assert alert["labels"]["severity"] in {"warning", "critical"}
        assert set(alert["annotations"]) == {"summary", "description"}
        assert f"`{alert['alert']}`" in operations
        assert alert["alert"] in tested


def test_the_dashboard_is_laid_out() -> None:
    """No panel overlaps another or has its number, each says what it shows, and all ask the one data source."""
    source = written(GRAFANA / "datasources" / "prometheus.yml")["datasources"][0]
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["description"].endswith(".")
        assert {panel["datasource"]["uid"], *(each["datasource"]["uid"] for each in panel["targets"])} == {
            source["uid"]
        }
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_containers_find_their_files() -> None:
    """What the configurations and the compose file call each other by is where the files are mounted."""
    services = written(ROOT / "docker-compose.yml")["services"]
    mounts = {name: services[name]["volumes"][0] for name in ("prometheus", "grafana")}
    assert [ROOT / mount["source"] for mount in mounts.values()] == [FOLDER, GRAFANA]
    assert f"--config.file={mounts['prometheus']['target']}/prometheus.yml" in services["prometheus"]["command"]
    home = mounts["grafana"]["target"]
    assert services["grafana"]["environment"]["GF_PATHS_PROVISIONING"] == home
    provider = written(GRAFANA / "dashboards" / "safelight.yml")["providers"][0]
    assert provider["options"]["path"] == f"{home}/dashboards"
    (scraped,) = written(FOLDER / "prometheus.yml")["scrape_configs"]
    (found,) = scraped["dns_sd_configs"]
    assert (found["names"], found["port"]) == (["serving"], 8080)


def promtool(*words: str) -> None:
    """Run Prometheus's own checks."""
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_its_files() -> None:
    """The configuration with the rules in it, without anything that its linter minds."""
    promtool("check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")


def test_alerts_come_when_they_should() -> None:
    """Each in a time line of its own, and none while all is well."""
    promtool("test", "rules", "rules_test.yml")


def test_prometheus_can_parse_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """As the rules that they could be."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries())]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", str(file))
