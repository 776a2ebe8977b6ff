"""One pod on a node of the tests: its volumes, its containers in order, its status, and its end."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

import kube_volumes
from kube_containers import ENDED, Image, Launch, Program, Running
from kube_events import tell
from kube_objects import Object, Objects, moment, now
from kube_refusals import Refused, bad_request
from kube_resources import BY_KIND
from kube_volumes import Mounts, NotYet

POD = BY_KIND["Pod"]
TICK_S = 0.1
REFRESH_S = 1.0
"""After which mounted Secrets and ConfigMaps are written again; a kubelet takes up to a minute."""
UNREADY = {"DeadlineExceeded": "Pod was active on the node longer than the specified deadline"}


class PodRun(threading.Thread):
    """Brings a pod to life, keeps its status true, and brings it to its end."""

    def __init__(
        self,
        objects: Objects,
        pod: Object,
        folder: Path,
        address: str,
        *,
        images: Mapping[str, Image],
        hosts: Mapping[str, str],
        kubeconfig: Callable[[str], Path],
    ) -> None:
        super().__init__(name=f"pod {pod['metadata']['name']}", daemon=True)
        self.pod = pod
        self.folder = folder
        self.address = address
        self._objects = objects
        self._images = images
        self._hosts = hosts
        self._kubeconfig = kubeconfig
        self._mounts = Mounts(objects, folder, folder.parent / "claims")
        self._changed = threading.Event()
        self._began = now()
        self._failed = ""
        self._refreshed = time.monotonic()
        self.closing = threading.Event()
        spec = pod["spec"]
        restart = spec["restartPolicy"]
        first = "OnFailure" if restart == "Always" else restart
        self.init = [
            Running(each, folder, first, self._changed.set, self._warn) for each in spec.get("initContainers", ())
        ]
        self.main = [Running(each, folder, restart, self._changed.set, self._warn) for each in spec["containers"]]
        for each in self.main if not self.init else self.init[:1]:
            each.state = {"waiting": {"reason": "ContainerCreating"}}

    def run(self) -> None:
        """Look after the pod until it is gone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            while not self.closing.is_set():
                pod = self._newest()
                if pod is None:
                    return
                self.pod = pod
                if "deletionTimestamp" in pod["metadata"]:
                    self._end(moment(pod["metadata"]["deletionTimestamp"]))
                    return
                self._look(pod)
                self._changed.wait(TICK_S)
                self._changed.clear()
        finally:
            for each in [*self.init, *self.main]:
                each.kill()

    def container(self, name: str) -> Running:
        """One of its containers.

        Raises:
            Refused: there is none of that name, or more than one and no name.
        """
        every = [*self.main, *self.init]
        if not name and len(self.main) == 1:
            return self.main[0]
        names = [each.name for each in every]
        if not name:
            raise bad_request(
                f"a container name must be specified for pod {self.pod['metadata']['name']}, choose one of: {names}"
            )
        if name not in names:
            raise bad_request(f"container {name} is not valid for pod {self.pod['metadata']['name']}")
        return every[names.index(name)]

    def _warn(self, reason: str, message: str) -> None:
        tell(self._objects, self.pod, reason, message, kind="Warning")

    def _newest(self) -> Object | None:
        metadata = self.pod["metadata"]
        try:
            found = self._objects.get(POD, metadata["namespace"], metadata["name"])
        except Refused:
            return None
        return found if found["metadata"]["uid"] == metadata["uid"] else None

    def _look(self, pod: Object) -> None:
        longest = pod["spec"].get("activeDeadlineSeconds")
        lived = (datetime.now(moment(self._began).tzinfo) - moment(self._began)).total_seconds()
        if longest is not None and lived > longest and not self._failed:
            self._failed = "DeadlineExceeded"
            self._stop_all(time.monotonic() + pod["spec"]["terminationGracePeriodSeconds"])
        if not self._failed:
            self._tend(pod)
        self._say()

    def _tend(self, pod: Object) -> None:
        turn = next((each for each in self.init if not self._succeeded(each)), None)
        due = self.main if turn is None else [turn]
        if turn is not None and turn.is_over:
            return  # it failed for good, and the pod with it
        for each in due:
            try:
                if ENDED in each.state or "waiting" in each.state:
                    self._mounts.write(pod)
                each.tend(lambda each=each: self._launch(pod, each))  # type: ignore[misc]
            except NotYet as error:
                if each.state.get("waiting", {}).get("reason") != error.reason:
                    self._warn(error.reason, str(error))
                each.wait(error.reason, str(error))
        if any("running" in each.state for each in due):
            self._refresh(pod)

    def _refresh(self, pod: Object) -> None:
        """Write again what is mounted and has changed; what was removed meanwhile stays as it was."""
        if time.monotonic() - self._refreshed < REFRESH_S:
            return
        self._refreshed = time.monotonic()
        try:
            self._mounts.write(pod)
        except NotYet:
            return

    def _succeeded(self, each: Running) -> bool:
        return ENDED in each.state and each.state[ENDED]["exitCode"] == 0

    def _launch(self, pod: Object, container: Running) -> tuple[Launch, Program]:
        wanted = container.wanted
        image = self._images.get(wanted["image"])
        if image is None:
            raise _no_image(wanted, again=container.state.get("waiting", {}).get("reason", ""))
        seen = {**pod, "status": {**pod.get("status", {}), "podIP": self.address, "hostIP": "127.0.0.1"}}
        paths = self._mounts.paths(pod, wanted)
        env = kube_volumes.environment(self._objects, seen, wanted)
        command = [kube_volumes.expanded(each, env) for each in wanted.get("command", ())]
        args = [kube_volumes.expanded(each, env) for each in wanted.get("args", ())]

        def here(text: str) -> str:
            for name, place in self._hosts.items():
                text = text.replace(name, place)
            return kube_volumes.rewritten(text, paths)

        work = self.folder / "work" / container.name
        work.mkdir(parents=True, exist_ok=True)
        given = {"PATH": os.environ["PATH"], "HOME": str(work), "TMPDIR": paths.get("/tmp", str(work))}  # noqa: S108
        given |= {"HOSTNAME": pod["spec"].get("hostname") or pod["metadata"]["name"]}
        given |= self._credentials(pod) | {name: here(value) for name, value in env.items()}
        launch = Launch(
            seen, container.name, [here(each) for each in command], [here(each) for each in args], given,
            self.address, work,
        )  # fmt: skip
        return launch, image(launch)

    def _credentials(self, pod: Object) -> dict[str, str]:
        """A file for clients where the pod has its ServiceAccount's token: the real path is one for a machine."""
        name = pod["spec"]["serviceAccountName"]
        wanted = pod["spec"].get("automountServiceAccountToken")
        if wanted is None:
            try:
                found = self._objects.get(BY_KIND["ServiceAccount"], pod["metadata"]["namespace"], name)
            except Refused:
                return {}
            wanted = found.get("automountServiceAccountToken", True)
        return {"KUBECONFIG": str(self._kubeconfig(name))} if wanted else {}

    def _end(self, until: datetime) -> None:
        """Let the containers end, then the pod go."""
        stopping = threading.Thread(
            target=self._stop_all,
            args=(time.monotonic() + max(0.0, (until - datetime.now(until.tzinfo)).total_seconds()),),
        )
        stopping.start()
        while stopping.is_alive():
            self._say()
            if self._newest() is None or self.closing.is_set():
                return  # it was removed by force; what still runs is killed
            stopping.join(TICK_S)
        self._say()
        metadata = self.pod["metadata"]
        wanted = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        try:
            self._objects.delete(POD, metadata["namespace"], metadata["name"], wanted)
        except Refused:
            return  # somebody else was quicker

    def _stop_all(self, deadline: float) -> None:
        """Stop all containers at the same time."""
        each = [threading.Thread(target=one.stop, args=(deadline,)) for one in [*self.init, *self.main]]
        for one in each:
            one.start()
        for one in each:
            one.join()

    def _phase(self) -> str:
        if self._failed or any(each.is_over and not self._succeeded(each) for each in self.init):
            return "Failed"
        if all(each.is_over for each in self.main):
            return "Succeeded" if all(map(self._succeeded, self.main)) else "Failed"
        begun = all("running" in each.state or ENDED in each.state or each.restarts for each in self.main)
        return "Running" if begun else "Pending"

    def _say(self) -> None:
        """Make the pod's status true, if it is not."""
        phase = self._phase()
        over = phase in {"Failed", "Succeeded"}
        ready = all(each.ready for each in self.main) and not over
        conditions = {
            "PodScheduled": True,
            "PodReadyToStartContainers": True,
            "Initialized": all(map(self._succeeded, self.init)),
            "ContainersReady": ready,
        }

        def change(pod: Object) -> None:
            status = pod.setdefault("status", {})
            gates = [each["conditionType"] for each in pod["spec"].get("readinessGates", ())]
            held = {each["type"]: each["status"] == "True" for each in status.get("conditions", ())}
            wanted = conditions | {"Ready": ready and all(held.get(each) for each in gates)}
            status |= {"phase": phase, "podIP": self.address, "podIPs": [{"ip": self.address}]}
            status |= {"hostIP": "127.0.0.1", "startTime": self._began, "qosClass": "Burstable"}
            status["conditions"] = list(_conditions(status.get("conditions", ()), wanted))
            status["containerStatuses"] = [each.status(each.wanted["image"]) for each in self.main]
            if self.init:
                status["initContainerStatuses"] = [each.status(each.wanted["image"]) for each in self.init]
            if self._failed:
                status |= {"reason": self._failed, "message": UNREADY[self._failed]}

        self._objects.change(POD, self.pod, change, status=True)


def _conditions(before: list[Object], wanted: dict[str, bool]) -> Iterator[Object]:
    known = {each["type"]: each for each in before}
    for name, holds in wanted.items():
        status = "True" if holds else "False"
        old = known.pop(name, None)
        if old and old["status"] == status:
            yield old
        else:
            yield {"type": name, "status": status, "lastTransitionTime": now(), "lastProbeTime": None}
    yield from known.values()


def _no_image(wanted: Object, *, again: str) -> NotYet:
    image = wanted["image"]
    if wanted["imagePullPolicy"] == "Never":
        return NotYet("ErrImageNeverPull", f'Container image "{image}" is not present with pull policy of Never')
    message = f'failed to pull and unpack image "{image}": failed to resolve reference: not found'
    if again in {"ErrImagePull", "ImagePullBackOff"}:
        return NotYet("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {message}')
    return NotYet("ErrImagePull", message)
