import copy
from typing import Any

import pytest
from kube_patches import JSON, STRATEGIC, patched
from kube_resources import BY_KIND
from kube_schemas import schema_of

from pipeline import revisions
from pipeline.revisions import Former

OLD, NEW = "20260101T000000Z-00000000", "20260102T000000Z-11111111"
UID = "one"
Object = dict[str, Any]


def template(*env: tuple[str, str], image: str = "image:1") -> Object:
    """Of a pod with a container beside the inference server's."""
    variables = [{"name": name, "value": value} for name, value in env]
    ports = [{"name": "metrics", "containerPort": 9090}, {"name": "http", "containerPort": 8000}]
    containers = [
        {"name": "proxy", "image": "proxy:1"},
        {"name": "serving", "image": image, "env": variables, "ports": ports},
    ]
    return {"metadata": {"labels": {"app": "serving"}}, "spec": {"containers": containers}}


def deployment(of: Object, *, cause: str | None = None, **status: Any) -> Object:
    """With two replicas."""
    annotations = {"kept": "yes"} | ({revisions.CAUSE: cause} if cause else {})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "serving",
            "uid": UID,
            "generation": 3,
            "resourceVersion": "77",
            "annotations": annotations,
        },
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "serving"}}, "template": of},
        "status": status,
    }


def applied(live: Object, patch: Any) -> Object:
    """A Deployment after a patch, as the API applies it."""
    kind = JSON if isinstance(patch, list) else STRATEGIC
    return patched(kind, copy.deepcopy(live), patch, schema_of(BY_KIND["Deployment"]))


def pod(name: str, version: str | None, **status: Any) -> Object:
    """A pod of a version."""
    env = [(revisions.VERSION, version)] if version else []
    return {"metadata": {"name": name}, "spec": template(*env)["spec"], "status": {"phase": "Running", **status}}


@pytest.mark.parametrize("first", [[], [("X", "1"), (revisions.ALIAS, "champion")], [(revisions.VERSION, OLD)]])
def test_a_version_is_pinned_and_taken_back_to_the_letter(first: list[tuple[str, str]]) -> None:
    """Whether the pods followed an alias, named or not, or had another version: nothing tells the difference."""
    live = deployment(template(*first), cause="first")
    pinned = applied(live, revisions.pinning(live, NEW, "second"))
    assert revisions.pin(pinned["spec"]["template"]) == NEW
    assert revisions.variable(pinned["spec"]["template"], revisions.ALIAS) is None
    assert revisions.variable(pinned["spec"]["template"], "X") == dict(first).get("X")
    assert pinned["metadata"]["annotations"] == {"kept": "yes", revisions.CAUSE: "second"}
    assert applied(pinned, revisions.undoing(pinned, revisions.of_deployment(live))) == live


def test_a_pin_that_came_from_elsewhere_is_replaced() -> None:
    """A variable has a value or a source of one, never both."""
    live = deployment(template())
    source = {"configMapKeyRef": {"name": "x", "key": "y"}}
    live["spec"]["template"]["spec"]["containers"][1]["env"] = [{"name": revisions.VERSION, "valueFrom": source}]
    pinned = applied(live, revisions.pinning(live, NEW, "cause"))
    assert revisions.container(pinned["spec"]["template"]) == {
        **live["spec"]["template"]["spec"]["containers"][1],
        "env": [{"name": revisions.VERSION, "value": NEW}],
    }


def test_what_somebody_else_changed_meanwhile_is_not_undone() -> None:
    """An image that was set since stays; the pin alone goes back."""
    before = deployment(template((revisions.VERSION, OLD)), cause="first")
    now = deployment(template((revisions.VERSION, NEW), image="image:2"), cause="second")
    undone = applied(now, revisions.undoing(now, revisions.of_deployment(before)))
    assert undone["spec"]["template"] == template((revisions.VERSION, OLD), image="image:2")
    assert undone["metadata"]["annotations"][revisions.CAUSE] == "first"


def test_every_change_names_the_state_that_it_was_made_from() -> None:
    """So that of two deployments at once one is told that it lost."""
    live = deployment(template((revisions.VERSION, NEW)))
    assert revisions.pinning(live, OLD, None)["metadata"]["resourceVersion"] == "77"
    undoing = revisions.undoing(live, Former(template((revisions.VERSION, OLD)), None))
    assert {"op": "replace", "path": "/metadata/resourceVersion", "value": "77"} in undoing


def test_the_former_revision_is_the_newest_of_another_version() -> None:
    """Among the Deployment's own; without the mark by which Kubernetes tells the pods of revisions apart."""

    def replica_set(number: int, version: str, owner: str = UID) -> Object:
        made = template((revisions.VERSION, version))
        made["metadata"]["labels"][revisions.HASH] = f"{number}"
        annotations = {revisions.REVISION: str(number), revisions.CAUSE: f"cause {number}"}
        owners = [{"uid": owner}]
        return {"metadata": {"annotations": annotations, "ownerReferences": owners}, "spec": {"template": made}}

    sets = [replica_set(2, OLD), replica_set(10, NEW), replica_set(9, OLD), replica_set(11, OLD, owner="another")]
    live = deployment(template((revisions.VERSION, NEW)))
    assert revisions.before(live, sets, NEW) == Former(template((revisions.VERSION, OLD)), "cause 9")
    assert revisions.before(live, [replica_set(3, NEW)], NEW) is None


@pytest.mark.parametrize(
    ("seen", "counts", "over"),
    [
        (3, "2222", True),
        (2, "2222", False),
        (3, "3233", False),
        (3, "2221", False),
        (3, "2122", False),
        (0, "0000", False),
    ],
)
def test_a_rollout_is_over_when_kubernetes_has_seen_it_and_nothing_old_is_left(
    seen: int, counts: str, *, over: bool
) -> None:
    """A status of the state before says nothing; ``counts``: all replicas, updated, ready and available ones."""
    names = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
    status = dict(zip(names, map(int, counts), strict=True))
    assert revisions.is_rolled_out(deployment(template(), observedGeneration=seen, **status)) is over


def test_a_deadline_counts_only_for_the_state_that_was_seen() -> None:
    """The failure of the revision before is not this one's."""
    condition = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    assert revisions.timed_out(deployment(template(), observedGeneration=3, conditions=[condition]))
    assert not revisions.timed_out(deployment(template(), observedGeneration=2, conditions=[condition]))
    assert not revisions.timed_out(deployment(template(), observedGeneration=3))


def test_pods_of_a_version_are_those_that_will_answer_with_it() -> None:
    """Not those that are going, have ended, or have nothing of ours in them."""
    going = pod("going", NEW)
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    other = {"metadata": {"name": "other"}, "spec": {"containers": [{"name": "web"}]}, "status": {}}
    evicted = pod("evicted", NEW, phase="Failed")
    assert revisions.of_version([going, other, evicted, pod("old", OLD), pod("new", NEW)], NEW) == [pod("new", NEW)]
    assert revisions.of_version([pod("follows", None), pod("new", NEW)], None) == [pod("follows", None)]


def test_only_pods_that_run_are_asked() -> None:
    """At their addresses, at the port that is named http."""
    running = [{"name": "serving", "state": {"running": {}}}]
    waiting = [{"name": "serving", "state": {"waiting": {"reason": "ContainerCreating"}}}]
    pods = [
        pod("one", NEW, podIP="10.0.0.2", containerStatuses=running),
        pod("two", NEW, podIP="10.0.0.1", containerStatuses=running),
        pod("three", NEW, podIP="10.0.0.3", containerStatuses=waiting),
        pod("four", NEW, containerStatuses=running),
    ]
    assert revisions.addresses(pods) == ["10.0.0.1", "10.0.0.2"]
    assert revisions.port(template()) == 8000
    bare = {"spec": {"containers": [{"name": "serving"}]}}
    assert revisions.port(bare) == 8080


def waiting(reason: str, told: str = "", /, *, restarts: int = 0, **ended: Any) -> Object:
    """The status of a pod whose container does not run."""
    state = {"waiting": {"reason": reason, "message": told}}
    last = {"terminated": ended} if ended else {}
    return {"containerStatuses": [{"name": "serving", "restartCount": restarts, "state": state, "lastState": last}]}


UNPLACED = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available."}]}
CRASHES = "container serving of pod p ends again and again"


@pytest.mark.parametrize(
    ("status", "words", "patience_s"),
    [
        (UNPLACED, "no node takes pod p: 0/3 nodes are available", None),
        (
            waiting("ImagePullBackOff", "no such image"),
            "pod p does not start, ImagePullBackOff: no such image",
            revisions.PATIENCE_S,
        ),
        (
            waiting("CreateContainerConfigError", 'secret "x" not found'),
            'pod p does not start, CreateContainerConfigError: secret "x" not found',
            revisions.PATIENCE_S,
        ),
        (
            waiting("CrashLoopBackOff", restarts=1, exitCode=137, reason="OOMKilled"),
            f"{CRASHES} (OOMKilled, status 137, 1 times)",
            None,
        ),
        (
            waiting("CrashLoopBackOff", restarts=2, exitCode=2, reason="Error", message="first\nlast words.\n"),
            f"{CRASHES} (Error, status 2, 2 times); the last that it said: last words",
            0.0,
        ),
    ],
)
def test_why_a_pod_does_not_come_up_is_said_in_kubernetes_words(
    status: Object, words: str, patience_s: float | None
) -> None:
    """With how long it is worth waiting: for a node as long as the deadline allows."""
    (found,) = revisions.troubles([pod("p", NEW, **status)])
    assert (found.what, found.patience_s) == (words, patience_s)


def test_a_pod_that_is_fine_has_no_trouble_and_a_rollout_says_what_it_waits_for() -> None:
    """How many are ready, and how many old ones are left; or that nothing will happen, since it is paused."""
    ready = [{"type": "Ready", "status": "True"}]
    running = [{"name": "serving", "state": {"running": {}}}]
    pods = [pod("one", NEW, conditions=ready, containerStatuses=running), pod("two", NEW, containerStatuses=running)]
    assert list(revisions.troubles(pods)) == []
    under_way = deployment(template(), replicas=3, updatedReplicas=2)
    said = revisions.hindrance(under_way, pods)
    assert said == "1 of 2 replicas of the version are ready, 1 of the former revision are left"
    under_way["spec"]["paused"] = True
    assert "it is paused" in revisions.hindrance(under_way, pods)
