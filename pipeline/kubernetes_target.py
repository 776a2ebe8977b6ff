"""The serving Deployment of a Kubernetes cluster, by the official client: read, patched, and asked about its pods.

- **Least rights**: it gets and patches one Deployment, and lists the pods and the ReplicaSets of its namespace
  (``k8s/components/kubernetes-target``). It looks again and again instead of watching: a watch needs one right more,
  and a poll has nothing to go on from when the API was away.
- **Answers are read as JSON**, not as the client's classes, which refuse what another version of the API says.
- An API that is away, or has too much to do, is asked again for as long as the deployment's patience lasts.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from pipeline.errors import ClusterUnavailable, Conflict, InvalidSettings
from pipeline.revisions import Object
from pipeline.settings import PREFIX, Settings

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
"""Where a pod with a ServiceAccount's token reads which namespace is its own."""
COMPONENT = "k8s/components/kubernetes-target"
REQUEST_TIMEOUT = (5.0, 20.0)
"""To connect to the API, and for its answer, in seconds."""
PAUSE_S = 0.5
AWAY = frozenset({0, 429, 500, 502, 503, 504})
"""What an API answers, or a balancer in front of it, that is about to come back; 0: TLS was not agreed on."""
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Target:
    """One Deployment in a cluster.

    Attributes:
        patience_s: for how long an API that is away is asked again, in seconds.
    """

    apps: client.AppsV1Api
    pods_api: client.CoreV1Api
    namespace: str
    name: str
    patience_s: float

    @property
    def words(self) -> str:
        """What to call it in a sentence."""
        return f"Deployment {self.name!r} of namespace {self.namespace!r}"


@contextmanager
def opened(settings: Settings, patience_s: float) -> Iterator[Target]:
    """The Deployment that the settings name, in the cluster that this process is in, else in the kubeconfig's.

    Raises:
        InvalidSettings: no cluster is named.
    """
    configuration, namespace = _configured()
    configuration.retries = False
    api = client.ApiClient(configuration)
    try:
        yield Target(
            client.AppsV1Api(api),
            client.CoreV1Api(api),
            settings.kubernetes_namespace or namespace,
            settings.kubernetes_deployment,
            patience_s,
        )
    finally:
        api.rest_client.close()


def read(target: Target) -> Object:
    """The Deployment as it is now.

    Raises:
        InvalidSettings: there is none, or this process may not see it.
        ClusterUnavailable: the API did not answer.
    """
    return _asked(
        target, lambda options: target.apps.read_namespaced_deployment(target.name, target.namespace, **options)
    )


def pods(target: Target, deployment: Object) -> list[Object]:
    """All pods that the Deployment's selector finds."""
    return _selected(target, deployment, target.pods_api.list_namespaced_pod)


def replica_sets(target: Target, deployment: Object) -> list[Object]:
    """The Deployment's revisions, and what else its selector finds."""
    return _selected(target, deployment, target.apps.list_namespaced_replica_set)


def patch(target: Target, body: dict[str, Any] | list[dict[str, Any]]) -> Object:
    """Change the Deployment, which must still be the one that was read.

    Raises:
        Conflict: it is another one by now.
        InvalidSettings: this process may not, or the cluster's rules forbid what is wanted.
    """
    kind = JSON_PATCH if isinstance(body, list) else STRATEGIC
    return _asked(
        target,
        lambda options: target.apps.patch_namespaced_deployment(
            target.name, target.namespace, body, field_manager="safelight", _content_type=kind, **options
        ),
    )


def _selected(target: Target, deployment: Object, listed: Callable[..., Any]) -> list[Object]:
    """What a list of the API has that the Deployment's selector finds."""
    chosen = _selector(deployment)
    found = _asked(target, lambda options: listed(target.namespace, label_selector=chosen, **options))
    return list(found["items"])


def _selector(deployment: Object) -> str:
    chosen = deployment["spec"]["selector"]
    equal = [f"{name}={value}" for name, value in (chosen.get("matchLabels") or {}).items()]
    return ",".join([*equal, *map(_expression, chosen.get("matchExpressions") or ())])


def _expression(wanted: Object) -> str:
    key, values = wanted["key"], ",".join(wanted.get("values") or ())
    written = {
        "In": f"{key} in ({values})",
        "NotIn": f"{key} notin ({values})",
        "Exists": key,
        "DoesNotExist": f"!{key}",
    }
    return str(written[wanted["operator"]])


def _configured() -> tuple[client.Configuration, str]:
    """How to reach the API, and the namespace that is meant where none is named."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        return configuration, _of_kubeconfig(configuration)
    return configuration, OWN_NAMESPACE.read_text(encoding="utf-8").strip()


def _of_kubeconfig(configuration: client.Configuration) -> str:
    file = os.environ.get("KUBECONFIG") or None  # the library has read it when it was imported
    try:
        config.load_kube_config(file, client_configuration=configuration)  # type: ignore[no-untyped-call]
        _, current = config.list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidSettings(
            f"{PREFIX}DEPLOY_TARGET=kubernetes: no cluster is named: there is neither a ServiceAccount's token, as "
            f"{COMPONENT} gives one to flow runs, nor a usable file in $KUBECONFIG ({_first_line(error)})."
        ) from error
    return str(current["context"].get("namespace") or "default")


def _asked(target: Target, request: Callable[[dict[str, Any]], Any]) -> Object:
    """The API's answer, asked for again while the API is away."""
    deadline = time.monotonic() + target.patience_s
    while True:
        try:
            answer = request({"_preload_content": False, "_request_timeout": REQUEST_TIMEOUT})
            found: Object = json.loads(answer.data)
        except (ApiException, HTTPError, OSError, ValueError) as error:
            if getattr(error, "status", 0) not in AWAY:
                raise _refusal(target, error) from error
            if time.monotonic() > deadline:
                raise ClusterUnavailable(
                    f"The Kubernetes API at {target.apps.api_client.configuration.host} did not answer for "
                    f"{target.patience_s:.0f} s: {_first_line(error)}."
                ) from error
            time.sleep(PAUSE_S)
        else:
            return found


def _refusal(target: Target, error: Any) -> Exception:
    """What the API's refusal means, in one sentence."""
    said = _said(error)
    if error.status == 409:
        return Conflict(f"{target.words} was changed by somebody else at the same moment: {said}.")
    if error.status == 401:
        return InvalidSettings(f"The Kubernetes API does not know who asks ({said}): the token is not good any more.")
    if error.status == 403:
        return InvalidSettings(f"The Kubernetes API refuses: {said}; {COMPONENT} grants what a deployment needs.")
    if error.status == 404:
        return InvalidSettings(
            f"There is no {target.words}: {PREFIX}KUBERNETES_NAMESPACE and {PREFIX}KUBERNETES_DEPLOYMENT say which one "
            "serves the model."
        )
    return InvalidSettings(f"The Kubernetes API does not accept the change of {target.words}: {said}.")


def _said(error: Any) -> str:
    try:
        return str(json.loads(error.body)["message"]).rstrip(".")
    except (TypeError, ValueError, KeyError):
        return f"status {error.status}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300].rstrip(".")
