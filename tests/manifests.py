"""``k8s/`` as kubectl renders it: overlays, and every combination of components. ``make k8s-check`` runs it by itself.

The overlay ``local`` needs files that git never sees, so all is rendered from a copy with secrets of its own.
"""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from pipeline import cluster_secrets
from pipeline.secret_values import Stack

Document = dict[str, Any]

ROOT = Path(__file__).parents[1]
NAMESPACE = "safelight"
KUBECTL = Path(sys.executable).with_name("kubectl")
FIRST = "network-policies"
"""Components after it change its policies."""
APART = frozenset({"external-s3", "seaweedfs"})
"""Of these one is chosen: each is another store."""
PLACEHOLDER = re.compile(r"\S*replace-me\S*|\S*sha256:0{64}")


def names(kind: str) -> list[str]:
    """The folders of ``k8s/overlays`` or ``k8s/components``."""
    return sorted(path.parent.name for path in (ROOT / "k8s" / kind).glob("*/kustomization.yaml"))


def combinations() -> Iterator[tuple[str, ...]]:
    """Every set of components that may stand in one kustomization, in the order in which they have to."""
    known = sorted(names("components"), key=lambda name: (name != FIRST, name))
    for size in range(len(known) + 1):
        for chosen in itertools.combinations(known, size):
            if not set(chosen) >= APART:
                yield chosen


def build(folder: Path) -> list[Document]:
    """What ``kubectl apply --kustomize`` would send."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    assert not done.stderr, f"{folder}: {done.stderr}"
    return [each for each in yaml.load_all(done.stdout, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if each]


def build_with(copy: Path, resource: str, components: tuple[str, ...]) -> list[Document]:
    """A base or an overlay of a copy, with components."""
    folder = copy / "overlays" / "-".join(["tried", *components])
    folder.mkdir(exist_ok=True)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": NAMESPACE,
        "labels": [{"pairs": {"app.kubernetes.io/part-of": "safelight"}, "includeTemplates": True}],
        "resources": [f"../../{resource}"],
        "components": [f"../../components/{each}" for each in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return build(folder)


def copied(to: Path) -> Path:
    """A copy of ``k8s`` with secrets of its own."""
    shutil.copytree(ROOT / "k8s", to, ignore=shutil.ignore_patterns("secrets"))
    cluster_secrets.write(to / "overlays" / "local" / "secrets", Stack(keys=True))
    return to


@cache
def overlays() -> dict[str, list[Document]]:
    """Each overlay as it stands."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder) / "k8s")
        return {name: build(copy / "overlays" / name) for name in names("overlays")}


@cache
def combined() -> dict[str, list[Document]]:
    """The base with every combination of components."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder) / "k8s")
        chosen = list(combinations())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            rendered = pool.map(lambda each: build_with(copy, "base", each), chosen)
            return {" + ".join(["base", *each]): found for each, found in zip(chosen, rendered, strict=True)}


def everything() -> dict[str, list[Document]]:
    """All that can be rendered, by what it is made of."""
    return combined() | {f"overlay {name}": documents for name, documents in overlays().items()}


@cache
def each() -> dict[str, Document]:
    """Every different document of all that can be rendered, by what it is and the first that it is part of."""
    found: dict[str, Document] = {}
    seen: set[str] = set()
    for source, documents in everything().items():
        for document in documents:
            if (text := json.dumps(document, sort_keys=True)) not in seen:
                seen.add(text)
                found[f"{document['kind']} {document['metadata']['name']} of {source}"] = document
    return found


def pod_template(document: Document) -> Document | None:
    """The pods of a Deployment or a Job, as ``metadata`` and ``spec``."""
    template: Document | None = document.get("spec", {}).get("template")
    return template if document["kind"] in {"Deployment", "Job", "StatefulSet", "DaemonSet"} else None


def workloads(documents: list[Document]) -> list[Document]:
    """What makes pods."""
    return [each for each in documents if pod_template(each)]


def of_kind(documents: list[Document], kind: str) -> dict[str, Document]:
    """Documents of a kind, by name."""
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


def one(documents: list[Document], kind: str, name: str) -> Document:
    """The document of that kind and name."""
    return of_kind(documents, kind)[name]


def placeholders(documents: list[Document]) -> set[str]:
    """What a person must have filled in before any of it is applied."""
    return {found for each in documents for found in PLACEHOLDER.findall(yaml.safe_dump(each, width=10_000))}


def to_fill_in(overlay: str) -> list[str]:
    """Where in the files of an overlay a person has something to fill in."""
    found = []
    for path in sorted((ROOT / "k8s" / "overlays" / overlay).glob("*.yaml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if PLACEHOLDER.search(line) and not line.startswith("#"):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    return found


def main(folder: Path) -> None:
    """Write each overlay, and all components with each store, into ``folder``; say what is to be filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    rendered = dict(overlays())
    for store in APART & set(names("components")):
        fullest = max((name for name in combined() if store in name), key=lambda name: name.count("+"))
        rendered[f"everything-{store}"] = combined()[fullest]
    for name, documents in rendered.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")
        sys.stdout.write(f"k8s: {name}: {len(documents)} objects\n")
    sys.stdout.write(f"k8s: {len(combined())} combinations of components render\n")
    for name in overlays():
        for found in to_fill_in(name):
            sys.stdout.write(f"k8s: before overlay {name} is applied, fill in {found}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
