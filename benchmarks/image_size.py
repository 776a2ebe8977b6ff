"""What an image weighs above its base, by layer and by dependency: ``python -m benchmarks.image_size [IMAGE …]``.

Layers are told by the engine, as ``docker history`` does; the base's own are left out. A dependency weighs what the
files weigh that its wheel installed and that are still there, compiled modules included. A MB is 1,000,000 bytes, as
the engine counts. Without arguments the image is ``safelight/serving:dev``.
"""

import argparse
import json
import shutil
import subprocess
from collections.abc import Sequence

# Run inside the image, by its own Python, which has nothing but what the image has.
WEIGH = """
import glob, importlib.metadata as metadata, json
folders = glob.glob("/opt/venv/lib/python*/site-packages")
weigh = lambda path: path.stat().st_size if path.is_file() else 0
print(json.dumps([
    (found.name, found.version, sum(weigh(found.locate_file(file)) for file in found.files or ()))
    for found in metadata.distributions(path=folders)
]))
"""
MB = 1_000_000


def main() -> None:
    """Print both tables for each image."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", nargs="*", default=["safelight/serving:dev"], help="what to weigh")
    parser.add_argument("--base", default="python:3.11-slim-bookworm", help="the image that they stand on")
    parser.add_argument("--least", type=float, default=1.0, metavar="MB", help="smaller dependencies share one line")
    options = parser.parse_args()
    for image in options.images:
        layers = own_layers(image, options.base)
        total = sum(size for size, _ in layers)
        print(f"{image}: {total / MB:.1f} MB ({total / 2**20:.1f} MiB) above {options.base}")
        for size, step in layers:
            print(f"{size / MB:10.1f}  {step[:100]}")
        show_dependencies(dependencies(image), options.least)


def own_layers(image: str, base: str) -> list[tuple[int, str]]:
    """Bytes and instruction of each layer that ``image`` puts on ``base``, the last first, without empty ones.

    Raises:
        SystemExit: ``image`` does not stand on ``base``.
    """
    below, all_of_it = diff_ids(base), diff_ids(image)
    if all_of_it[: len(below)] != below:
        raise SystemExit(f"{image} does not stand on {base} as it is here: name its base with --base.")
    steps = history(image)[: -len(history(base))]
    return [(size, step) for size, step in steps if size]


def diff_ids(image: str) -> list[str]:
    """The digests of an image's layers, the lowest first."""
    found: list[str] = json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    return found


def history(image: str) -> list[tuple[int, str]]:
    """Bytes and instruction of each step of an image's making, the last first."""
    told = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}}\t{{.CreatedBy}}", image)
    lines = [line.partition("\t") for line in told.splitlines()]
    return [(int(size), " ".join(step.split())) for size, _, step in lines]


def dependencies(image: str) -> list[tuple[str, str, int]]:
    """Name, version and bytes of each distribution in an image's environment, the largest first."""
    found: list[tuple[str, str, int]] = json.loads(
        docker("run", "--rm", "--entrypoint", "python3", image, "-Ic", WEIGH)
    )
    return sorted(found, key=lambda each: -each[2])


def show_dependencies(found: Sequence[tuple[str, str, int]], least: float) -> None:
    """Print the large ones, and the sum of the small ones."""
    large = [each for each in found if each[2] >= least * MB]
    small = [size for _, _, size in found[len(large) :]]
    for name, version, size in large:
        print(f"{size / MB:10.1f}  {name} {version}")
    if small:
        print(f"{sum(small) / MB:10.1f}  {len(small)} smaller ones")


def docker(*arguments: str) -> str:
    """What a docker command prints."""
    engine = shutil.which("docker") or "docker"
    return subprocess.run([engine, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
