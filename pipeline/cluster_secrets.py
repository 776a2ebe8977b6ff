"""``python -m pipeline.cluster_secrets FOLDER``: the secrets of a stack in Kubernetes, as files for kustomize.

Decisions:

- **The same secrets as of the stack in containers**, made, kept and replaced by the same code: a folder ``all`` with
  each value, and a folder for each reader with the files of its Secret.
- **Files, and not commands that create Secrets**: nothing secret is on a command line, and who has no cluster yet can
  make them. Only their owner reads them, and git ignores them.
- **The inference server asks for keys**: a Service is reached by everything in its cluster, and mostly beyond.
"""

import os
import sys
from pathlib import Path

from pipeline import stack_secrets
from pipeline.errors import InvalidInput, InvalidSettings, LocalServiceFailed, SafelightError
from pipeline.private_files import private_folder
from pipeline.secret_values import SECRETS, Stack, weak_ones

READERS = ("object-store", "store-init", "prefect-server", "prefect-init", "worker", "cli", "serving")
"""Each has a Secret of that name."""
DEPLOYMENTS = {"worker": "prefect-worker"}
"""What reads a Secret, where it is called otherwise. Flow runs read it at their start."""
NOT_HERE = frozenset({"grafana", "database", "uploads", "events"})
"""Secrets of what runs in containers alone."""
NOT_SHOWN = frozenset({"Grafana"})
COMMANDS = "write, show, or rotate SECRET"


def write(folder: Path, stack: Stack) -> None:
    """Make what is missing, and every reader's files; what is there stays as it is.

    Raises:
        InvalidSettings: a secret, put there by a person, is weak.
        LocalServiceFailed: the folder cannot be written.
    """
    _make_folders(folder)
    weak = weak_ones(stack_secrets.make_and_hand_out(folder, stack, give=False))
    if weak:
        name, why = next(iter(weak.items()))
        raise InvalidSettings(f"The secret {name} is weak ({why}): run `make k8s-rotate SECRET={name}`.")


def rotate(folder: Path, stack: Stack, name: str) -> str:
    """Replace a secret; returns the commands that make the cluster use it.

    Raises:
        InvalidInput: there is no such secret.
        LocalServiceFailed: the folder cannot be written.
    """
    known = [each for each in SECRETS if each not in NOT_HERE]
    if name not in known:
        raise InvalidInput(f"{name!r} is no secret: choose one of {', '.join(known)}.")
    _make_folders(folder)
    services = stack_secrets.rotate(folder, stack, name, give=False)
    lines = ["kubectl apply --kustomize k8s/overlays/local"]
    if SECRETS[name].file.endswith("_secret_key"):
        # Only the store's root tells the store of a new key.
        lines.insert(0, "kubectl --namespace safelight delete job store-init --ignore-not-found")
        lines.append("kubectl --namespace safelight wait --for=condition=complete job/store-init --timeout=10m")
    restarted = " ".join(f"deployment/{DEPLOYMENTS.get(each, each)}" for each in services if each in READERS)
    return "\n".join([*lines, *([f"kubectl --namespace safelight rollout restart {restarted}"] if restarted else [])])


def shown(folder: Path) -> str:
    """What people need, and where; nothing of what only programs use.

    Raises:
        InvalidInput: nothing was made yet.
        LocalServiceFailed: the folder is somebody else's.
    """
    try:
        return stack_secrets.shown(folder, without=NOT_SHOWN, made_by="make k8s-secrets")
    except OSError as error:
        raise LocalServiceFailed(f"{error.filename} cannot be read: {error.strerror}.") from error


def main() -> None:
    """Run a command; a person's mistake is one sentence and exit status 1."""
    try:
        _run(sys.argv[1:], Stack.from_environ(os.environ | {"STACK_API_KEYS": "on", "STACK_BIND": ""}))
    except SafelightError as error:
        sys.exit(f"safelight: {error}")


def _run(words: list[str], stack: Stack) -> None:
    match words:
        case [folder, "write"]:
            write(Path(folder), stack)
            print(f"safelight: the files of {len(READERS)} Secrets are in {folder}; `make k8s-secrets` shows them.")
        case [folder, "show"]:
            print(shown(Path(folder)))
        case [folder, "rotate", name]:
            commands = rotate(Path(folder), stack, name)
            print(f"safelight: {name} is another one in {folder} now; for the cluster to use it, run\n{commands}")
        case _:
            raise InvalidInput(f"Say a folder, and one of {COMMANDS}.")


def _make_folders(folder: Path) -> None:
    for name in (stack_secrets.ALL, *READERS):
        private_folder(folder / name)


if __name__ == "__main__":
    main()
