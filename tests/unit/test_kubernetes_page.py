"""docs/kubernetes.md: every command is one, and what it names exists."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import manifests
import pytest
from manifests import KUBECTL, ROOT, of_kind, one

from pipeline.cluster_secrets import NOT_HERE
from pipeline.flows import FLOWS
from pipeline.secret_values import SECRETS

PAGE = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NOBODY = "http://127.0.0.1:9"
NOT_ANSWERED = ("connection refused", "was refused")
OTHERS = {"curl", "docker", "export", "git", "kind", "mkdir", ".venv/bin/safelight"}
"""Programs that are neither kubectl nor make."""


def commands(block: str) -> list[list[str]]:
    """The words of each command."""
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line.removesuffix(" &")) for line in lines]


EVERY = [words for block in BLOCKS for words in commands(block)]


def of(program: str) -> Iterator[list[str]]:
    """The commands of a program."""
    return (words for words in EVERY if words[0] == program)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's manifests, after `make k8s-secrets`."""
    folder = tmp_path_factory.mktemp("checkout")
    manifests.copied(folder / "k8s")
    return folder


def test_ten_commands_lead_to_a_prediction() -> None:
    """The first block has no more, begins with images and ends with a question."""
    first = commands(BLOCKS[0])
    assert len(first) <= 10
    assert first[0] == ["make", "images"]
    assert first[-1][0] == "curl"


def test_every_program_is_known() -> None:
    """Nothing is run that no test here looks at."""
    assert {words[0] for words in EVERY} <= OTHERS | {"kubectl", "make"}


def test_what_make_is_told_to_make_exists() -> None:
    """Targets, and the names of secrets."""
    targets = set(re.findall(r"^([a-z0-9-]+)(?: [a-z0-9-]+)*:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for _, target, *variables in of("make"):
        assert target in targets
        for each in variables:
            assert each.removeprefix("SECRET=") in SECRETS.keys() - NOT_HERE
    said = PAGE.split("The names are ")[1].split("; the last two")[0]
    assert set(re.findall(r"`([a-z-]+)`", said)) == SECRETS.keys() - NOT_HERE


@pytest.mark.parametrize("words", [pytest.param(words, id=" ".join(words)[:100]) for words in of("kubectl")])
def test_kubectl_understands_it(words: list[str], checkout: Path) -> None:
    """Every command and option is known: where nobody answers, that is all that kubectl has to say."""
    own = words[: words.index("--")] if "--" in words else words
    own = own[: next((number for number, word in enumerate(own) if word in {">", "<"}), len(own))]
    there = ["--server", NOBODY, "--validate=false"] if "apply" in own else ["--server", NOBODY]
    told = ["--", "true"] if "exec" in own else []
    done = subprocess.run(
        [KUBECTL, *own[1:], *there, *told], cwd=checkout, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert any(each in done.stderr for each in NOT_ANSWERED), done.stderr


def test_what_kubectl_is_told_of_is_in_the_overlay() -> None:
    """Deployments, Jobs and Services by name; folders of manifests; containers that have the program."""
    local = manifests.overlays()["local"]
    kinds = {"deployment": "Deployment", "job": "Job", "service": "Service"}
    for words in of("kubectl"):
        for kind, name in re.findall(r"\b(deployment|job|service)/([a-z-]+)", " ".join(words)):
            assert name in of_kind(local, kinds[kind]), words
        if "delete" in words:
            named = [word for word in words[words.index("job") + 1 :] if not word.startswith("--")]
            assert set(named) <= of_kind(local, "Job").keys()
        if "apply" in words:
            assert (ROOT / words[-1] / "kustomization.yaml").is_file()
        if "top" not in words and "drain" not in words and "apply" not in words:
            assert words[1:3] == ["--namespace", manifests.NAMESPACE], words


def test_flows_that_are_started_exist() -> None:
    """By their deployment's name, which is the flow's own, twice."""
    started = re.findall(r"prefect deployment run (\S+)", PAGE)
    assert len(started) >= 3
    for each in started:
        flow, name = each.split("/")
        assert flow == name
        assert flow in {known.name for known in FLOWS}


def test_files_that_are_named_exist(checkout: Path) -> None:
    """In the repository, or where `make k8s-secrets` writes them; and so does every link."""
    named = set(re.findall(r"\b((?:k8s|serving|docs|pipeline)/[\w./-]+)", PAGE.replace("docs/kubernetes.md", "")))
    images = {"pipeline/pipeline"}
    for each in named - images:
        path = each.rstrip("/.").removesuffix(":dev")
        assert (ROOT / path).exists() or (checkout / path).exists(), each
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists(), link


def test_headings_that_are_linked_to_exist() -> None:
    """Anchors of this page, and of the pages that it names."""
    for page, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", PAGE):
        text = (ROOT / "docs" / page).read_text("utf-8") if page else PAGE
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w\s-]", "", each.lower()).replace(" ", "-") for each in headings}
        assert anchor in anchors, (page, anchor)


@pytest.mark.parametrize(("column", "overlay"), [(2, "local"), (3, "production")])
def test_the_table_of_sizes_says_what_the_manifests_ask_for(column: int, overlay: str) -> None:
    """Requests and limits, of servers and of the Jobs of flows, in the columns that are overlays as they stand."""
    documents = manifests.overlays()[overlay]

    def said(row: str) -> str:
        (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
        return line.split("|")[column]

    (container,) = one(documents, "Deployment", "serving")["spec"]["template"]["spec"]["containers"]
    asked, most = (container["resources"][each] for each in ("requests", "limits"))
    assert f"({asked['cpu']}, {asked['memory']} → {most['cpu']}, {most['memory']})" in said("`serving`: replicas")
    flows = one(documents, "ConfigMap", "flow-resources")["data"]
    for row, flow in (("preparation", "prepare.json"), ("training", "train.json")):
        wanted = json.loads(flows[flow])
        assert f"({wanted['cpu']}, {wanted['memory']})" in said(row)
    (server,) = one(documents, "Deployment", "prefect-server")["spec"]["template"]["spec"]["containers"]
    assert f"{server['resources']['requests']['cpu']}, {server['resources']['requests']['memory']}" in said(
        "`prefect-server`"
    )
