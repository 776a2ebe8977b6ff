"""A Kubernetes cluster for tests: a faithful API server, the controllers that matter, and pods as real processes.

No API server's binary can be installed by the package managers that the tests use, so this is one of our own, as
faithful as Safelight, its worker and ``kubectl`` touch it, and loud about the rest: what it does not know it answers
with 501 and the request. PyPI's ``kmock`` was looked at: it stores objects, but neither validates them nor refuses a
stale write, knows no RBAC and no controllers, and answers what it does not know as if it did.

- ``kube_server``, ``kube_requests``, ``kube_access``: HTTPS, who asks and may, paths and verbs.
- ``kube_objects``, ``kube_validation``, ``kube_schemas``, ``kube_defaults``, ``kube_patches``: what is stored.
- ``kube_deployments``, ``kube_replicas``, ``kube_jobs``, ``kube_services``, ``kube_owned``: controllers.
- ``kube_node``, ``kube_pods``, ``kube_containers``, ``kube_probes``, ``kube_volumes``: pods.
"""

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kube_certificates
import kube_deployments
import kube_jobs
import kube_owned
import kube_replicas
import kube_services
import yaml
from kube_access import ADMIN, Access, account
from kube_node import Node, Nodes
from kube_objects import Object, Objects
from kube_refusals import Refused, not_built
from kube_resources import BY_KIND, of
from kube_server import Api

ROUND_S = 0.2
"""How often controllers look at everything, though nothing has happened."""
Controller = Callable[[Objects], None]
CONTROLLERS: tuple[Controller, ...] = (
    kube_deployments.look,
    kube_replicas.look,
    kube_jobs.look,
    kube_services.look,
    kube_owned.collect_garbage,
)


@dataclass
class Cluster:
    """A cluster that runs.

    Attributes:
        namespace: that is there from the beginning.
        api: its server; ``api.stop()`` and ``api.start()`` are an API that is away for a while.
        nodes: and what runs on them.
    """

    namespace: str
    folder: Path
    objects_: Objects
    access: Access
    api: Api
    nodes: Nodes
    authority: Path
    faults: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Of the API."""
        return f"https://127.0.0.1:{self.api.port}"

    @property
    def events(self) -> list[Object]:
        """What controllers and nodes have told."""
        return self.objects("Event")

    @property
    def requests(self) -> list[tuple[str, str, str, int]]:
        """Every request so far: user, method, path and status."""
        return self.api.requests

    def kubeconfig(self, service_account: str | None = None) -> Path:
        """A file with which clients are the administrator, or a ServiceAccount with what its Roles grant."""
        user = ADMIN if service_account is None else account(self.namespace, service_account)
        file = self.folder / f"{service_account or 'admin'}.kubeconfig"
        described = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [
                {"name": "tests", "cluster": {"server": self.url, "certificate-authority": str(self.authority)}}
            ],
            "users": [{"name": "user", "user": {"token": self.access.token(user)}}],
            "contexts": [
                {"name": "tests", "context": {"cluster": "tests", "user": "user", "namespace": self.namespace}}
            ],
        }
        file.write_text(yaml.safe_dump(described))
        file.chmod(0o600)
        return file

    def apply(self, manifests: Sequence[Object]) -> None:
        """Create objects, or make them what is wanted now.

        Raises:
            Refused: one of them is not valid.
        """
        for manifest in manifests:
            resource = of(manifest)
            if resource is None:
                raise not_built(f"kind {manifest.get('kind')} of {manifest.get('apiVersion')}")
            namespace = manifest["metadata"].get("namespace", self.namespace) if resource.namespaced else ""
            self.api.registry.apply(resource, namespace, manifest, "tests")

    def get(self, kind: str, name: str) -> Object:
        """An object.

        Raises:
            Refused: there is none.
        """
        resource = BY_KIND[kind]
        return self.objects_.get(resource, self.namespace if resource.namespaced else "", name)

    def objects(self, kind: str, labels: str = "") -> list[Object]:
        """All objects of a kind, in the namespace; those with some labels."""
        resource = BY_KIND[kind]
        return self.objects_.select(resource, self.namespace if resource.namespaced else "", labels)

    def addresses(self, service: str) -> list[str]:
        """What the name of a headless Service stands for; of any other one, where its requests go."""
        return kube_services.addresses(self.objects_, self.namespace, service)

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Have an object go."""
        resource = BY_KIND[kind]
        self.objects_.delete(resource, self.namespace if resource.namespaced else "", name, options)


@contextmanager
def started(tmp_path: Path, namespace: str = "safelight", nodes: Sequence[Node] = (Node(),)) -> Iterator[Cluster]:
    """A cluster, until the context ends; no process that it started outlives it."""
    folder = tmp_path / "cluster"
    folder.mkdir(parents=True)
    objects = Objects()
    access = Access(objects)
    authority, tls = kube_certificates.made(folder)

    def kubeconfig(service_account: str) -> Path:
        return cluster.kubeconfig(service_account)

    bound = Nodes(objects, tuple(nodes), folder / "pods", kubeconfig)
    api = Api(objects, access, bound.log, tls)
    cluster = Cluster(namespace, folder, objects, access, api, bound, authority)
    _furnish(cluster, nodes)
    stop = threading.Event()
    controllers = threading.Thread(target=_control, args=(cluster, stop), name="kube controllers", daemon=True)
    api.start()
    controllers.start()
    try:
        yield cluster
    finally:
        stop.set()
        with objects.changed:
            objects.changed.notify_all()
        controllers.join()
        bound.close()
        api.stop()
    if cluster.faults:
        raise AssertionError(f"a controller of the tests' cluster failed:\n{cluster.faults[0]}")


def _furnish(cluster: Cluster, nodes: Sequence[Node]) -> None:
    """What is there before anybody has asked for it."""
    for name in {"default", "kube-system", cluster.namespace}:
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        cluster.objects_.create(BY_KIND["Namespace"], "", space)
        cluster.objects_.create(
            BY_KIND["ServiceAccount"],
            name,
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}},
        )
    for each in nodes:
        described = each.described()
        cluster.objects_.create(BY_KIND["Node"], "", described)
        cluster.objects_.update(BY_KIND["Node"], "", each.name, described, status=True)


def _control(cluster: Cluster, stop: threading.Event) -> None:
    """Let all controllers look whenever something has changed."""
    objects = cluster.objects_
    while not stop.is_set():
        with objects.changed:
            seen = objects.version
            for look in (*CONTROLLERS, lambda _: cluster.nodes.look()):
                try:
                    look(objects)
                except Refused as refused:
                    if refused.code not in {404, 409}:  # somebody else was quicker
                        cluster.faults.append(str(refused))
                except Exception:  # noqa: BLE001 - told when the cluster ends
                    cluster.faults.append(traceback.format_exc())
            if objects.version == seen:
                objects.changed.wait(ROUND_S)
        stop.wait(0.01)  # others write as well
