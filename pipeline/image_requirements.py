"""What an image installs, said before any of the code is there.

Run by the Dockerfiles as a plain script: ``python image_requirements.py EXTRA FOLDER`` reads ``pyproject.toml`` and
``constraints.txt`` of the working folder, and writes ``requirements.txt`` and a narrower ``constraints.txt`` into
``FOLDER``. These change only when what is installed does: neither the code, nor a linter's new rule, nor a new test
tool is a reason to install torch again.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path


def main(extra: str, folder: Path) -> None:
    """Write what ``extra`` needs, and which versions may be taken."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    constraints = without(Path("constraints.txt").read_text(encoding="utf-8").splitlines(), extras["dev"])
    folder.mkdir(parents=True)
    (folder / "constraints.txt").write_text(lines(constraints), encoding="utf-8")
    (folder / "requirements.txt").write_text(lines(sorted(project["dependencies"] + extras[extra])), encoding="utf-8")


def without(constraints: Iterable[str], tools: Iterable[str]) -> list[str]:
    """The constraints but for those on ``tools`` themselves."""
    unwanted = {distribution(tool) for tool in tools}
    return [line for line in constraints if distribution(line) not in unwanted]


def distribution(requirement: str) -> str:
    """The normalised name of what ``requirement`` asks for (PEP 503); nothing for a comment."""
    name = re.match(r"[\w.-]*", requirement)
    return re.sub(r"[-_.]+", "-", name[0] if name else "").lower()


def lines(texts: Iterable[str]) -> str:
    """A file's text."""
    return "".join(f"{text}\n" for text in texts)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
