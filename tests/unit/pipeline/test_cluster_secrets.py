import stat
from pathlib import Path

import pytest

from pipeline import api_keys, cluster_secrets
from pipeline.errors import InvalidInput, InvalidSettings
from pipeline.secret_values import Stack, files_of, generated

STACK = Stack(keys=True)


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


def test_each_reader_gets_the_files_of_its_secret(tmp_path: Path) -> None:
    """Each reader's folder holds what the reader would have in containers, for its owner's eyes only."""
    cluster_secrets.write(tmp_path, STACK)
    wanted = files_of(dict.fromkeys(generated(), "x"), STACK)
    for reader in cluster_secrets.READERS:
        assert {path.name for path in (tmp_path / reader).iterdir()} == set(wanted[reader])
    for path in tmp_path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_is_there_stays(tmp_path: Path) -> None:
    """Written again, no secret changes, and what was lost is made good."""
    cluster_secrets.write(tmp_path, STACK)
    before = _files(tmp_path)
    (tmp_path / "worker" / "store_secret_key").unlink()
    cluster_secrets.write(tmp_path, STACK)
    assert _files(tmp_path) == before


def test_the_inference_server_asks_for_keys(tmp_path: Path) -> None:
    """In a cluster, which is reached from beyond one machine, a key is asked for, and people have one that is good."""
    cluster_secrets.write(tmp_path, STACK)
    good = api_keys.read((tmp_path / "serving" / "api_keys").read_text("utf-8"), "api_keys")
    shown = cluster_secrets.shown(tmp_path).split()
    assert "Grafana" not in shown  # which no cluster has
    assert good is not None
    assert good["people"] == api_keys.digest_of_key(shown[shown.index("X-API-Key") + 1])


def test_a_rotation_says_what_the_cluster_needs(tmp_path: Path) -> None:
    """A new key of the store reaches the store by `store-init`, and its user by a start; others stay as they are."""
    cluster_secrets.write(tmp_path, STACK)
    before = _files(tmp_path)
    commands = cluster_secrets.rotate(tmp_path, STACK, "serving").splitlines()
    after = _files(tmp_path)
    changed = {name for name, text in after.items() if before[name] != text}
    assert changed == {"all/serving_secret_key", "store-init/serving_secret_key", "serving/store_secret_key"}
    assert "delete job store-init" in commands[0]
    assert commands[-1].endswith("rollout restart deployment/serving")
    said = cluster_secrets.rotate(tmp_path, STACK, "prefect")
    assert "upload-events" not in said
    assert said.endswith("rollout restart deployment/prefect-server deployment/prefect-worker")
    assert "restart" not in cluster_secrets.rotate(tmp_path, STACK, "people-key")


def test_a_persons_mistake_is_one_sentence(tmp_path: Path) -> None:
    """A secret that is none, one that is weak, and looking before anything was made are told as such."""
    with pytest.raises(InvalidInput, match="make k8s-secrets"):
        cluster_secrets.shown(tmp_path)
    with pytest.raises(InvalidInput, match="'grafana' is no secret"):
        cluster_secrets.rotate(tmp_path, STACK, "grafana")
    cluster_secrets.write(tmp_path, STACK)
    (tmp_path / "all" / "prefect_password").write_text("aaaaaaaaaaaaaaaaaaaa")
    with pytest.raises(InvalidSettings, match=r"prefect is weak .*make k8s-rotate SECRET=prefect"):
        cluster_secrets.write(tmp_path, STACK)
    cluster_secrets.rotate(tmp_path, STACK, "prefect")
    cluster_secrets.write(tmp_path, STACK)
