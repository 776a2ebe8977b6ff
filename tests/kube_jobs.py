"""The Job controller of the tests: as many pods as are wanted, counted when they end, and a verdict.

Built: completions, parallelism, Indexed, backoffLimit, activeDeadlineSeconds, ttlSecondsAfterFinished, suspend,
podReplacementPolicy. What is not is refused when a Job asks for it.

A pod that ended is counted before it may go: until then it keeps a finalizer.
"""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import kube_refusals
from kube_events import tell
from kube_objects import Object, Objects, moment, now
from kube_owned import is_active, made_by, owner_of
from kube_resources import BY_KIND

BACKOFF_S = 1.0
"""Before a pod that failed is followed by another one; it doubles. A real controller begins with ten."""
_JOB, _POD = BY_KIND["Job"], BY_KIND["Pod"]
_UNKNOWN = ("podFailurePolicy", "backoffLimitPerIndex", "maxFailedIndexes", "successPolicy")
_INDEX = "batch.kubernetes.io/job-completion-index"
_TRACKING = "batch.kubernetes.io/job-tracking"


def refuse_unknown(job: Object) -> None:
    """Raise Refused (501) where a Job asks for what this controller does not do."""
    for name in _UNKNOWN:
        if name in job.get("spec", {}):
            raise kube_refusals.not_built(f"spec.{name} of a Job")


def look(objects: Objects) -> None:
    """Take every Job a step on."""
    for job in objects.each(_JOB):
        if "deletionTimestamp" not in job["metadata"]:
            _step(objects, _counted(objects, job))
    jobs = {each["metadata"]["uid"] for each in objects.each(_JOB) if "deletionTimestamp" not in each["metadata"]}
    for pod in objects.each(_POD):
        owners = {each["uid"] for each in pod["metadata"].get("ownerReferences", ())}
        if _is_tracked(pod) and not owners & jobs and "deletionTimestamp" in pod["metadata"]:
            objects.change(_POD, pod, _untrack)


def _step(objects: Objects, job: Object) -> None:
    refuse_unknown(job)
    spec, pods = job["spec"], made_by(objects, _POD, job)
    status = job.setdefault("status", {})
    if _condition(status, "Complete") or _condition(status, "Failed"):
        _forget(objects, job)
        return
    active = [each for each in pods if is_active(each)]
    succeeded = [each for each in pods if each["status"]["phase"] == "Succeeded"]
    failed = [each for each in pods if each["status"]["phase"] == "Failed"]
    leaving = [each for each in pods if not is_active(each) and _end_of(each) is None]
    if spec.get("podReplacementPolicy", "TerminatingOrFailed") == "Failed":
        active += leaving  # not replaced, nor counted, before they have ended
        leaving = []
    over = {_index(each) for each in succeeded}
    done = len(over) if spec["completionMode"] == "Indexed" else status.get("succeeded", 0)
    why = _failure(job, leaving, active)
    complete = done >= spec["completions"] if "completions" in spec else done > 0 and not active
    if why or spec["suspend"]:
        _end_pods(objects, active)
    elif not complete:
        _make(objects, job, active, over, failed, done=done)
    _say(objects, job, why, complete=complete)


def _counted(objects: Objects, job: Object) -> Object:
    """The Job, in whose status all pods stand that have ended; those may go now."""
    for pod in made_by(objects, _POD, job):
        kind = _end_of(pod)
        if kind and _is_tracked(pod):
            job = objects.change(_JOB, job, lambda found, kind=kind: _add(found, kind), status=True) or job  # type: ignore[misc]
            objects.change(_POD, pod, _untrack)
    return job


def _end_of(pod: Object) -> str | None:
    """As what a pod is counted; None: it has not ended."""
    phase = pod["status"]["phase"]
    if phase in {"Succeeded", "Failed"}:
        return str(phase).lower()
    return "failed" if "deletionTimestamp" in pod["metadata"] and not pod["spec"].get("nodeName") else None


def _add(job: Object, kind: str) -> None:
    status = job.setdefault("status", {})
    status[kind] = status.get(kind, 0) + 1


def _is_tracked(pod: Object) -> bool:
    return _TRACKING in pod["metadata"].get("finalizers", ())


def _untrack(pod: Object) -> None:
    pod["metadata"]["finalizers"] = [each for each in pod["metadata"]["finalizers"] if each != _TRACKING]


def _failure(job: Object, leaving: list[Object], active: list[Object]) -> tuple[str, str] | None:
    spec, began = job["spec"], job["status"].get("startTime")
    for each in job["status"].get("conditions", ()):
        if each["type"] == "FailureTarget":
            return each["reason"], each["message"]
    restarts = sum(
        each["restartCount"]
        for pod in active
        for each in pod["status"].get("containerStatuses", ())
        if spec["template"]["spec"]["restartPolicy"] == "OnFailure"
    )
    if job["status"].get("failed", 0) + len(leaving) + restarts > spec["backoffLimit"]:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    longest = spec.get("activeDeadlineSeconds")
    if longest is not None and began and datetime.now(UTC) > moment(began) + timedelta(seconds=longest):
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    return None


def _make(
    objects: Objects, job: Object, active: list[Object], over: set[int], failed: list[Object], *, done: int
) -> None:
    """Create the pods that are missing."""
    spec = job["spec"]
    if "completions" not in spec and done:
        return  # the first that succeeds says that there is no more work; the others may end theirs
    wanted = min(spec["parallelism"], spec["completions"] - done) if "completions" in spec else spec["parallelism"]
    if failed and not active and _pausing(failed):
        return
    taken = over | {_index(each) for each in active}
    free = (number for number in range(spec.get("completions", 1 << 30)) if number not in taken)
    for number in free:
        if len(active) >= wanted:
            return
        active.append(_pod(objects, job, number if spec["completionMode"] == "Indexed" else None))


def _pausing(failed: list[Object]) -> bool:
    ends = [
        each["state"]["terminated"]["finishedAt"]
        for pod in failed
        for each in pod["status"].get("containerStatuses", ())
        if "terminated" in each["state"]
    ]
    pause = timedelta(seconds=min(BACKOFF_S * 2 ** (len(failed) - 1), 30.0))
    return bool(ends) and datetime.now(UTC) < moment(max(ends)) + pause


def _pod(objects: Objects, job: Object, index: int | None) -> Object:
    name, template = job["metadata"]["name"], job["spec"]["template"]
    metadata = dict(template["metadata"])
    spec = {**template["spec"]}
    if index is not None:
        marks = {_INDEX: str(index)}
        metadata["labels"] = metadata.get("labels", {}) | marks
        metadata["annotations"] = metadata.get("annotations", {}) | marks
        spec["hostname"] = f"{name}-{index}"
        source = {"valueFrom": {"fieldRef": {"fieldPath": f"metadata.annotations['{_INDEX}']"}}}
        told = {"name": "JOB_COMPLETION_INDEX", **source}
        spec["containers"] = [{**each, "env": [*each.get("env", ()), told]} for each in spec["containers"]]
    metadata["name"] = f"{name}-{'' if index is None else f'{index}-'}{secrets.token_hex(3)[:5]}"
    metadata["ownerReferences"] = [owner_of(job)]
    metadata["finalizers"] = [_TRACKING]
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    pod = objects.create(_POD, job["metadata"]["namespace"], made)
    tell(objects, job, "SuccessfulCreate", f"Created pod: {metadata['name']}")
    return pod


def _say(objects: Objects, job: Object, why: tuple[str, str] | None, *, complete: bool) -> None:
    """Make the Job's status true."""
    pods = made_by(objects, _POD, job)
    active = [each for each in pods if is_active(each)]
    succeeded = [each for each in pods if each["status"]["phase"] == "Succeeded"]

    def change(found: Object) -> None:
        status = found.setdefault("status", {})
        if not found["spec"]["suspend"]:
            status.setdefault("startTime", now())
        status |= {
            "active": len(active),
            "ready": sum(_ready(each) for each in active),
            "uncountedTerminatedPods": {},
            "terminating": sum("deletionTimestamp" in each["metadata"] and not _end_of(each) for each in pods),
        }
        if found["spec"]["completionMode"] == "Indexed":
            status["completedIndexes"] = ",".join(_ranges(sorted({_index(each) for each in succeeded})))
        conditions = {each["type"]: each for each in status.get("conditions", ())}
        for each in _verdict(why, complete=complete, over=all(map(_end_of, pods))):
            conditions.setdefault(each["type"], each)
        if conditions:
            status["conditions"] = list(conditions.values())
        if "Complete" in conditions:
            status.setdefault("completionTime", now())

    before = job["status"].get("conditions")
    after = objects.change(_JOB, job, change, status=True)
    if after and after["status"].get("conditions") != before:
        last = after["status"]["conditions"][-1]
        tell(objects, job, last.get("reason", last["type"]), last.get("message", "Job completed"))


def _verdict(why: tuple[str, str] | None, *, complete: bool, over: bool) -> Iterator[Object]:
    if not why and not complete:
        return
    first, last = ("FailureTarget", "Failed") if why else ("SuccessCriteriaMet", "Complete")
    reason, message = why or ("CompletionsReached", "Reached expected number of succeeded pods")
    for kind in (first, last) if over else (first,):
        yield {
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastProbeTime": now(), "lastTransitionTime": now(),
        }  # fmt: skip


def _forget(objects: Objects, job: Object) -> None:
    """Remove a Job that ended long enough ago."""
    lasting = job["spec"].get("ttlSecondsAfterFinished")
    ended = max(each["lastTransitionTime"] for each in job["status"]["conditions"])
    if lasting is not None and datetime.now(UTC) >= moment(ended) + timedelta(seconds=lasting):
        metadata = job["metadata"]
        objects.delete(_JOB, metadata["namespace"], metadata["name"], {"propagationPolicy": "Foreground"})


def _end_pods(objects: Objects, pods: list[Object]) -> None:
    for each in pods:
        if "deletionTimestamp" not in each["metadata"]:
            objects.delete(_POD, each["metadata"]["namespace"], each["metadata"]["name"], {})


def _index(pod: Object) -> int:
    return int(pod["metadata"].get("annotations", {}).get(_INDEX, -1))


def _ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))


def _condition(status: Object, kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", ()))


def _ranges(numbers: list[int]) -> Iterator[str]:
    while numbers:
        length = next((at for at, each in enumerate(numbers) if each != numbers[0] + at), len(numbers))
        yield str(numbers[0]) if length == 1 else f"{numbers[0]}-{numbers[length - 1]}"
        numbers = numbers[length:]
