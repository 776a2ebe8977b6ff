"""Nodes of the tests: pods are bound to one that fits, and run there as processes of this machine.

What is for real: processes, variables, mounted files, addresses, probes, hooks, signals, restarts, logs. What is not:
images (an ``Image`` says what is started in place of one), users and capabilities, the read-only root, limits of memory
and CPU, network policies, names of Services in DNS (``hosts`` replaces them in variables and arguments).
"""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import kube_refusals
from kube_containers import Image
from kube_events import tell
from kube_objects import Object, Objects, now
from kube_pods import POD, PodRun
from kube_quantities import amount
from kube_resources import BY_KIND


@dataclass(frozen=True)
class Node:
    """A node.

    Attributes:
        images: that it has.
        labels: for node selectors.
        allocatable: resources beside which pods wait; what is not named here there is enough of, but for extended
            resources (``nvidia.com/gpu``), of which there is none.
        taints: that pods have to tolerate.
        hosts: names as ``prefect-server:4200``, and where that is on this machine.
    """

    name: str = "node-1"
    images: Mapping[str, Image] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    allocatable: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Object, ...] = ()
    hosts: Mapping[str, str] = field(default_factory=dict)

    def described(self) -> Object:
        """As an object."""
        labels = {"kubernetes.io/hostname": self.name, **self.labels}
        resources = {"cpu": "8", "memory": "16Gi", "pods": "110", **self.allocatable}
        spec = {"taints": list(self.taints)} if self.taints else {}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels},
            "spec": spec,
            "status": {
                "allocatable": resources,
                "capacity": resources,
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastTransitionTime": now()}
                ],
            },
        }


class Nodes:
    """All nodes, and the pods that run on them."""

    def __init__(
        self, objects: Objects, nodes: tuple[Node, ...], folder: Path, kubeconfig: Callable[[str], Path]
    ) -> None:
        """No pod runs yet."""
        self.runs: dict[str, PodRun] = {}
        self._objects = objects
        self._nodes = {each.name: each for each in nodes}
        self._folder = folder
        self._kubeconfig = kubeconfig
        # several clusters at once on one machine must not meet at an address
        self._addresses = (f"127.{random.randint(2, 250)}.{third}.{last}" for third, last in _numbers())

    def look(self) -> None:
        """Bind new pods, and start those that are bound."""
        for pod in self._objects.each(POD):
            if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
                self._bind(pod)
            elif pod["spec"].get("nodeName") in self._nodes and pod["metadata"]["uid"] not in self.runs:
                self._start(pod)

    def log(self, namespace: str, name: str, wanted: dict[str, str]) -> Iterator[bytes]:
        """The log of a pod, as a client asks for it.

        Raises:
            Refused: there is no such pod, or it has no log yet.
        """
        pod = self._objects.get(POD, namespace, name)
        run = self.runs.get(pod["metadata"]["uid"])
        if run is None:
            raise kube_refusals.bad_request(f'container in pod "{name}" is waiting to start')
        container = run.container(wanted.get("container", ""))
        number = container.restarts - (wanted.get("previous") == "true")
        if number < 0:
            raise kube_refusals.bad_request(
                f'previous terminated container "{container.name}" in pod "{name}" not found'
            )
        file = container.log(number)
        if not file.exists():
            reason = container.state.get("waiting", {}).get("reason", "ContainerCreating")
            raise kube_refusals.bad_request(
                f'container "{container.name}" in pod "{name}" is waiting to start: {reason}'
            )
        return _lines(file, wanted, lambda: container.ended.is_set() or not run.is_alive())

    def close(self) -> None:
        """Kill what still runs."""
        for each in self.runs.values():
            each.closing.set()
        for each in self.runs.values():
            each.join(30)

    def _start(self, pod: Object) -> None:
        node, uid = self._nodes[pod["spec"]["nodeName"]], pod["metadata"]["uid"]
        folder = self._folder / uid
        address = next(self._addresses)
        self.runs[uid] = PodRun(
            self._objects,
            pod,
            folder,
            address,
            images=node.images,
            hosts=node.hosts,
            kubeconfig=self._kubeconfig,
        )
        self.runs[uid].start()

    def _bind(self, pod: Object) -> None:
        hindrances = {node.name: self._hindrance(pod, node) for node in self._nodes.values()}
        fitting = [name for name, why in hindrances.items() if why is None]
        if fitting:
            loads = [each["spec"].get("nodeName") for each in self._objects.each(POD)]
            chosen = min(fitting, key=loads.count)

            def bind(found: Object) -> None:
                found["spec"]["nodeName"] = chosen

            self._objects.change(POD, pod, bind)
            return
        reasons = ", ".join(f"1 {why}" for why in hindrances.values())
        message = f"0/{len(hindrances)} nodes are available: {reasons}."

        def wait(found: Object) -> None:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            found["status"]["conditions"] = [condition]

        before = pod.get("status", {}).get("conditions")
        self._objects.change(POD, pod, wait, status=True)
        if not before:
            tell(self._objects, pod, "FailedScheduling", message, kind="Warning")

    def _hindrance(self, pod: Object, node: Node) -> str | None:
        described = self._objects.get(BY_KIND["Node"], "", node.name)
        labels = described["metadata"]["labels"]
        if described["spec"].get("unschedulable"):
            return "node(s) were unschedulable"
        if any(labels.get(key) != value for key, value in pod["spec"].get("nodeSelector", {}).items()):
            return "node(s) didn't match Pod's node affinity/selector"
        for taint in node.taints:
            if not any(_tolerates(each, taint) for each in pod["spec"].get("tolerations", ())):
                return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
        return self._lack(pod, node)

    def _lack(self, pod: Object, node: Node) -> str | None:
        others = [
            each
            for each in self._objects.each(POD)
            if each["spec"].get("nodeName") == node.name
            and each.get("status", {}).get("phase") in {"Pending", "Running"}
        ]
        for name, needed in _requests(pod).items():
            if name in node.allocatable or "/" in name:
                taken = sum(_requests(each).get(name, 0.0) for each in others)
                if taken + needed > amount(node.allocatable.get(name, "0")):
                    return f"Insufficient {name}"
        return None


def _requests(pod: Object) -> dict[str, float]:
    found: dict[str, float] = {}
    for container in pod["spec"]["containers"]:
        for name, quantity in container["resources"].get("requests", {}).items():
            found[name] = found.get(name, 0.0) + amount(quantity)
    return found


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in {None, taint["effect"]}:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in {None, taint["key"]}
    return bool((toleration.get("key"), toleration.get("value", "")) == (taint["key"], taint.get("value", "")))


def _numbers() -> Iterator[tuple[int, int]]:
    first = random.randint(1, 250)
    for last in itertools.count(2):
        yield (first + last // 250) % 250 + 1, last % 250 + 2


def _lines(file: Path, wanted: dict[str, str], is_over: Callable[[], bool]) -> Iterator[bytes]:
    follow, stamped = wanted.get("follow") == "true", wanted.get("timestamps") == "true"

    def shown(line: bytes) -> bytes:
        return line if stamped else line.partition(b" ")[2]

    with file.open("rb") as opened:
        lines = opened.readlines()
        if "tailLines" in wanted:
            lines = lines[len(lines) - min(len(lines), int(wanted["tailLines"])) :]
        yield b"".join(map(shown, lines))[: int(wanted.get("limitBytes", 1 << 30))]
        while follow:
            over = is_over()
            line = opened.readline()
            if line:
                yield shown(line)
            elif over:
                return
            else:
                time.sleep(0.05)
