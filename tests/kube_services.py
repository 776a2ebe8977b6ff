"""EndpointSlices of the tests' cluster: at which addresses a Service's pods are, and which of them take requests."""

from kube_objects import Object, Objects
from kube_owned import made_by, owner_of
from kube_probes import port_of
from kube_resources import BY_KIND
from kube_selectors import selects

_SERVICE, _POD, _SLICE = BY_KIND["Service"], BY_KIND["Pod"], BY_KIND["EndpointSlice"]


def look(objects: Objects) -> None:
    """Make every Service's EndpointSlice true."""
    for service in objects.each(_SERVICE):
        if not service["spec"].get("selector"):
            continue
        wanted = _slice(objects, service)
        found = made_by(objects, _SLICE, service)
        if not found:
            objects.create(_SLICE, service["metadata"]["namespace"], wanted)
            continue

        def change(live: Object, wanted: Object = wanted) -> None:
            live |= {"endpoints": wanted["endpoints"], "ports": wanted["ports"]}

        objects.change(_SLICE, found[0], change)


def addresses(objects: Objects, namespace: str, service: str) -> list[str]:
    """What the name of a headless Service stands for; of any other one, where its requests go."""
    found = objects.get(_SERVICE, namespace, service)
    return sorted(
        address
        for each in made_by(objects, _SLICE, found)
        for endpoint in each.get("endpoints") or ()
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    )


def _slice(objects: Objects, service: Object) -> Object:
    metadata, spec = service["metadata"], service["spec"]
    pods = [
        each
        for each in objects.select(_POD, metadata["namespace"])
        if selects({"matchLabels": spec["selector"]}, each["metadata"].get("labels", {}))
        and each["status"].get("podIP")
        and each["status"]["phase"] not in {"Succeeded", "Failed"}
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{metadata['name']}-tests",
            "labels": {"kubernetes.io/service-name": metadata["name"]},
            "ownerReferences": [owner_of(service)],
        },
        "addressType": "IPv4",
        "endpoints": [_endpoint(each, all_of_them=spec.get("publishNotReadyAddresses", False)) for each in pods],
        "ports": [_port(each, pods) for each in spec.get("ports", ())],
    }


def _endpoint(pod: Object, *, all_of_them: bool) -> Object:
    conditions = {each["type"]: each["status"] == "True" for each in pod["status"].get("conditions", ())}
    serves, leaves = conditions.get("Ready", False), "deletionTimestamp" in pod["metadata"]
    reference = {"kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
    return {
        "addresses": [pod["status"]["podIP"]],
        "conditions": {"ready": all_of_them or (serves and not leaves), "serving": serves, "terminating": leaves},
        "targetRef": reference | {"namespace": pod["metadata"]["namespace"]},
        "nodeName": pod["spec"]["nodeName"],
    }


def _port(port: Object, pods: list[Object]) -> Object:
    ports = [each for pod in pods[:1] for container in pod["spec"]["containers"] for each in container.get("ports", ())]
    try:
        number = port_of(port["targetPort"], ports)
    except ValueError:
        number = port["port"]  # no pod has said yet what the port's name means
    return {"name": port.get("name", ""), "port": number, "protocol": port["protocol"]}
