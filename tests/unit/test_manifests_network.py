"""Who may talk to whom in a cluster that enforces the network policies: the whole table, and nothing beyond it."""

import itertools
from collections.abc import Mapping

import manifests
from manifests import Document, of_kind, overlays, workloads

from serving.api_keys import OPEN, OPEN_BELOW

NAME = "app.kubernetes.io/name"
STORE, PREFECT, SERVING, SCHEDULER, WORKER, ANY = 9000, 4200, 8080, 8786, 8789, 43210
"""Ports; the last stands for those that the system chooses."""
PEERS = (
    "store-init",
    "store-check",
    "prefect-server",
    "prefect-init",
    "prefect-worker",
    "object-store",
    "serving",
    "flow-run",
    "cli",
    "dask-scheduler",
    "dask-worker",
    "training",
    "stranger",
)
OF_DASK = {"dask-scheduler-reached-by", "dask-worker-reached-by"}
"""A cluster that computes for whoever reaches it has policies of its own, whatever else is closed."""
CONNECTIONS = {
    *(
        (who, "object-store", STORE)
        for who in ("store-init", "store-check", "serving", "flow-run", "dask-worker", "training", "cli")
    ),
    *((who, "prefect-server", PREFECT) for who in ("prefect-init", "prefect-worker", "flow-run", "dask-worker", "cli")),
    *((who, "serving", SERVING) for who in ("flow-run", "cli")),
    *((who, "dask-scheduler", SCHEDULER) for who in ("dask-worker", "flow-run")),
    *((who, "dask-worker", WORKER) for who in ("dask-scheduler", "dask-worker")),
    *(("training", "training", port) for port in (STORE, PREFECT, SERVING, SCHEDULER, WORKER, ANY)),
}
"""From whom, to whom, at which port. What peers agree on among themselves may be any port above 1023."""


def _policies(components: str) -> list[Document]:
    return list(of_kind(manifests.combined()[components], "NetworkPolicy").values())


def _selects(selector: Mapping[str, object] | None, name: str) -> bool:
    """Whether a selector of pods takes those of a component."""
    if selector is None:
        return False
    labels = selector.get("matchLabels", {})
    assert isinstance(labels, dict)
    expressions = selector.get("matchExpressions", [])
    assert isinstance(expressions, list)
    assert {*labels, *(each["key"] for each in expressions)} <= {NAME}
    assert all(each["operator"] == "In" for each in expressions)
    return labels.get(NAME, name) == name and all(name in each["values"] for each in expressions)


def _rule_allows(rule: Document, side: str, other: str, port: int) -> bool:
    """Whether a rule lets pods of this namespace through at a port."""
    there = any(_selects(peer.get("podSelector"), other) for peer in rule[side] if "namespaceSelector" not in peer)
    ports = rule["ports"]
    return there and any(
        each["port"] <= port <= each.get("endPort", each["port"]) for each in ports if each["protocol"] == "TCP"
    )


def _lets(policies: list[Document], way: tuple[str, str], own: str, other: str, port: int) -> bool:
    """Whether a component's own policies let a connection through; ``way``: a direction, and its word for the peer."""
    return any(
        _rule_allows(rule, way[1], other, port)
        for policy in policies
        if _selects(policy["spec"]["podSelector"], own)
        for rule in policy["spec"].get(way[0], [])
    )


def test_exactly_the_connections_of_the_table_are_allowed() -> None:
    """Of all pairs of components, and all ports that anybody listens at, those of the table are let out and let in."""
    policies = _policies("base + network-policies")
    asked = list(itertools.product(PEERS, PEERS, (STORE, PREFECT, SERVING, SCHEDULER, WORKER, ANY)))
    out = {each for each in asked if _lets(policies, ("egress", "to"), each[0], each[1], each[2])}
    arriving = {each for each in asked if _lets(policies, ("ingress", "from"), each[1], each[0], each[2])}
    assert out == CONNECTIONS
    assert arriving == CONNECTIONS


def test_nothing_is_allowed_by_default() -> None:
    """Both directions are closed for every pod, and no rule opens one to everything."""
    for name in manifests.everything():
        policies = of_kind(manifests.everything()[name], "NetworkPolicy")
        if not set(policies) - OF_DASK:
            continue
        assert policies["default-deny"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
        for policy in policies.values():
            for direction, side in (("ingress", "from"), ("egress", "to")):
                for rule in policy["spec"].get(direction, []):
                    assert rule[side], policy["metadata"]["name"]
                    assert rule["ports"], policy["metadata"]["name"]
                    assert {} not in rule[side]


def test_names_are_looked_up_at_the_clusters_own() -> None:
    """Every pod asks the name service of kube-system, by UDP and TCP, and no other."""
    dns = of_kind(overlays()["production"], "NetworkPolicy")["dns"]["spec"]
    assert dns["podSelector"] == {}
    assert {(port["protocol"], port["port"]) for port in dns["egress"][0]["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert dns["egress"][0]["to"][0] == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }


def test_the_metadata_of_a_cloud_is_out_of_reach() -> None:
    """Where any address is allowed, the one at which a node's credentials are is not, and only HTTPS is."""
    found = 0
    for documents in manifests.everything().values():
        for policy in of_kind(documents, "NetworkPolicy").values():
            for rule in policy["spec"].get("egress", []):
                for peer in rule["to"]:
                    if peer.get("ipBlock", {}).get("cidr") in {"0.0.0.0/0", "::/0"}:
                        found += 1
                        assert peer["ipBlock"]["except"] in (["169.254.0.0/16"], ["fd00:ec2::/32"])
                        assert {port["port"] for port in rule["ports"]} <= {443, 6443}
    assert found


def test_an_external_store_is_reached_by_https() -> None:
    """Who used the store of the cluster may reach one outside, and nobody else does."""
    inside = {policy["metadata"]["name"]: policy["spec"] for policy in _policies("base + network-policies")}
    outside = {
        policy["metadata"]["name"]: policy["spec"] for policy in _policies("base + network-policies + external-s3")
    }
    assert set(inside) - set(outside) == {"object-store"}
    assert outside["object-store-clients"]["podSelector"] == inside["object-store-clients"]["podSelector"]
    assert outside["object-store-clients"]["egress"][0]["ports"] == [{"protocol": "TCP", "port": 443}]


def test_only_an_ingress_lets_anybody_in_from_outside() -> None:
    """Pods of other namespaces reach the inference server alone: a Prometheus, and with an ingress its controller."""
    for name, documents in manifests.everything().items():
        outside = {}
        for policy in of_kind(documents, "NetworkPolicy").values():
            peers = [
                peer
                for rule in policy["spec"].get("ingress", [])
                for peer in rule["from"]
                if "namespaceSelector" in peer
            ]
            if peers:
                outside[policy["metadata"]["name"]] = str(peers)
        assert set(outside) <= {"serving"}, name
        if outside:
            assert ("traefik" in outside["serving"]) is bool(of_kind(documents, "Ingress")), name


def test_every_pod_is_in_the_table() -> None:
    """No workload was forgotten: each has a connection, or is one that everybody connects to."""
    known = {name for who, whom, _ in CONNECTIONS for name in (who, whom)}
    for documents in manifests.everything().values():
        assert {each["metadata"]["name"] for each in workloads(documents)} <= known


def test_the_ingress_has_all_paths_but_the_metrics() -> None:
    """From outside everything is reached that the server has, and its metrics are not."""
    ingress = of_kind(overlays()["production"], "Ingress")["serving"]
    paths = {(each["path"], each["pathType"]) for each in ingress["spec"]["rules"][0]["http"]["paths"]}
    wanted = {(path, "Exact") for path in {*OPEN, "/predict"} - {"/metrics"}}
    wanted |= {(path.rstrip("/"), "Prefix") for path in OPEN_BELOW if not path.startswith("/v2/")} | {("/v2", "Prefix")}
    assert paths == wanted
