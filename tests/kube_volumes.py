"""What a container finds around it: variables and mounted files, from the pod's own words, ConfigMaps and Secrets.

A process of this machine has the machine's file system. So a volume is a folder, and where a variable or an argument
speaks of a mount path, it gets the folder's path instead. Secrets and ConfigMaps are written again when they change, as
a kubelet does.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kube_refusals
from kube_objects import Object, Objects
from kube_refusals import Refused
from kube_resources import BY_KIND


class NotYet(Exception):
    """A container cannot be started as things are; ``reason`` is the kubelet's word for it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Mounts:
    """The folders of a pod's volumes."""

    objects: Objects
    folder: Path
    claims: Path

    def write(self, pod: Object) -> None:
        """Have every volume's folder, with what belongs into it.

        Raises:
            NotYet: something that is mounted is not there.
        """
        for volume in pod["spec"].get("volumes", ()):
            place = self.place(pod, volume["name"])
            place.mkdir(parents=True, exist_ok=True)
            for name, content in self._files(pod, volume).items():
                _write(place / name, content)

    def place(self, pod: Object, name: str) -> Path:
        """Where a volume is."""
        volume = next(each for each in pod["spec"]["volumes"] if each["name"] == name)
        claim = volume.get("persistentVolumeClaim")
        return self.claims / claim["claimName"] if claim else self.folder / "volumes" / name

    def paths(self, pod: Object, container: Object) -> dict[str, str]:
        """Mount paths of a container, and what is there instead."""
        return {
            each["mountPath"].rstrip("/"): str(self.place(pod, each["name"]) / each.get("subPath", "")).rstrip("/")
            for each in container.get("volumeMounts", ())
        }

    def _files(self, pod: Object, volume: Object) -> dict[str, bytes]:
        known = {"emptyDir", "persistentVolumeClaim", "secret", "configMap", "projected", "downwardAPI"}
        (kind,) = set(volume) - {"name"}
        if kind not in known:
            raise NotYet("ContainerCreating", f"volumes of kind {kind} are unknown to the tests' node")
        if kind == "persistentVolumeClaim":
            _existing(self.objects, pod, "PersistentVolumeClaim", volume[kind]["claimName"])
        sources = volume["projected"]["sources"] if kind == "projected" else [{kind: volume[kind]}]
        found: dict[str, bytes] = {}
        for each in sources:
            found |= self._source(pod, each)
        return found

    def _source(self, pod: Object, source: Object) -> dict[str, bytes]:
        if "downwardAPI" in source:
            items = source["downwardAPI"]["items"]
            return {each["path"]: str(field_of(pod, each["fieldRef"]["fieldPath"])).encode() for each in items}
        for kind, name in (("secret", "Secret"), ("configMap", "ConfigMap")):
            if kind in source:
                wanted = source[kind]
                held = contents(self.objects, pod, name, wanted.get("secretName") or wanted["name"])
                if held is None:
                    return _missing(wanted, kind)
                items = wanted.get("items")
                return {each["path"]: held[each["key"]] for each in items} if items else held
        return {}


def environment(objects: Objects, pod: Object, container: Object) -> dict[str, str]:
    """The variables that a container is given.

    Raises:
        NotYet: something that they come from is not there.
    """
    found: dict[str, str] = {}
    for each in container.get("envFrom", ()):
        (kind,) = set(each) & {"configMapRef", "secretRef"}
        held = contents(objects, pod, "Secret" if kind == "secretRef" else "ConfigMap", each[kind]["name"])
        if held is None and not each[kind].get("optional"):
            word = "secret" if kind == "secretRef" else "configmap"
            raise NotYet("CreateContainerConfigError", f'{word} "{each[kind]["name"]}" not found')
        found |= {each.get("prefix", "") + name: value.decode() for name, value in (held or {}).items()}
    for each in container.get("env", ()):
        value = _value(objects, pod, each)
        if value is not None:
            found[each["name"]] = value if "valueFrom" in each else expanded(value, found)
    return found


def contents(objects: Objects, pod: Object, kind: str, name: str) -> dict[str, bytes] | None:
    """What a Secret or a ConfigMap holds; None if there is none."""
    try:
        found = objects.get(BY_KIND[kind], pod["metadata"]["namespace"], name)
    except Refused:
        return None
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in found.get("data", {}).items()}
    more = {key: base64.b64decode(value) for key, value in found.get("binaryData", {}).items()}
    return {key: value.encode() for key, value in found.get("data", {}).items()} | more


def expanded(text: str, known: Mapping[str, str]) -> str:
    """A text with ``$(NAME)`` replaced where it is known; ``$$`` is one ``$``, so ``$$(NAME)`` is none of them."""
    return re.sub(r"\$\$|\$\(([^)]+)\)", lambda found: known.get(found[1], found[0]) if found[1] else "$", text)


def rewritten(text: str, paths: Mapping[str, str]) -> str:
    """A text that speaks of mount paths, with what is there instead."""
    if not paths:
        return text
    known = "|".join(map(re.escape, sorted(paths, key=len, reverse=True)))
    return re.sub(rf"(?<![\w/.-])({known})(?=/|$|[\s:,;\"'])", lambda found: paths[found[1]], text)


def field_of(pod: Object, path: str) -> Any:
    """A field of a pod, as ``metadata.labels['name']``."""
    named = re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path)
    if named:
        return pod["metadata"].get(named[1], {}).get(named[2], "")
    found: Any = pod
    for part in path.split("."):
        found = found.get(part, {})
    return found or ""


def _value(objects: Objects, pod: Object, variable: Object) -> str | None:
    source = variable.get("valueFrom")
    if not source:
        return str(variable.get("value", ""))
    if "fieldRef" in source:
        return str(field_of(pod, source["fieldRef"]["fieldPath"]))
    if "resourceFieldRef" in source:
        return _resource(pod, source["resourceFieldRef"])
    kind = "Secret" if "secretKeyRef" in source else "ConfigMap"
    wanted = source["secretKeyRef" if kind == "Secret" else "configMapKeyRef"]
    held = contents(objects, pod, kind, wanted["name"])
    if held is not None and wanted["key"] in held:
        return held[wanted["key"]].decode()
    if wanted.get("optional"):
        return None
    if held is None:
        raise NotYet("CreateContainerConfigError", f'{kind.lower()} "{wanted["name"]}" not found')
    place = f"{pod['metadata']['namespace']}/{wanted['name']}"
    raise NotYet("CreateContainerConfigError", f"couldn't find key {wanted['key']} in {kind} {place}")


def _resource(pod: Object, wanted: Object) -> str:
    name = wanted.get("containerName") or pod["spec"]["containers"][0]["name"]
    container = next(each for each in pod["spec"]["containers"] if each["name"] == name)
    kind, _, resource = wanted["resource"].partition(".")
    return str(container["resources"].get(kind, {}).get(resource, "0"))


def _existing(objects: Objects, pod: Object, kind: str, name: str) -> Object:
    try:
        return objects.get(BY_KIND[kind], pod["metadata"]["namespace"], name)
    except Refused as error:
        raise NotYet("ContainerCreating", str(error)) from error


def _missing(wanted: Object, kind: str) -> dict[str, bytes]:
    if wanted.get("optional"):
        return {}
    name = wanted.get("secretName") or wanted["name"]
    resource = BY_KIND["Secret" if kind == "secret" else "ConfigMap"]
    raise NotYet("ContainerCreating", f"MountVolume.SetUp failed: {kube_refusals.not_found(resource, name)}")


def _write(file: Path, content: bytes) -> None:
    """Replace a file at once, if it is another one by now."""
    if file.exists() and file.read_bytes() == content:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f".{file.name}.half")
    half.write_bytes(content)
    half.replace(file)
