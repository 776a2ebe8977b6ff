"""``safelight store verify`` on a real object store."""

import json
import subprocess
import sys
from pathlib import Path

import synthetic
import tiny_models
from environs import environ

from pipeline import aliases
from pipeline.artifacts import PrepareConfig
from pipeline.prepare import prepare
from pipeline.settings import Settings
from pipeline.zones import Zones

ROOT = Path(__file__).parents[2]


def verified(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    """What the command says."""
    command = [sys.executable, "-m", "pipeline", "store", "verify", *options]
    return subprocess.run(command, env=environ(settings), cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_lists_what_is_broken(zones: Zones, zone_settings: Settings) -> None:
    """It counts what it read; with something broken it names that, and ends with a sentence and status 1."""
    synthetic.put_classes(zones, "pets", 8)
    prepare(zones, "pets", PrepareConfig(size=12))
    version = tiny_models.register(zones.checkpoints, zones.models, "pets", 1)
    aliases.set_alias(zones.models, "pets", aliases.CHAMPION, version.version, reason="first")
    whole = verified(zone_settings, "--json")
    assert whole.returncode == 0, whole.stderr
    assert json.loads(whole.stdout)["counts"]["raw images"] == 24
    assert json.loads(whole.stdout)["broken"] == []

    key = f"pets/{version.version}/model.onnx"
    zones.models.put(key, zones.models.get(key)[:-1])
    broken = verified(zone_settings)
    assert broken.returncode == 1
    assert "1 shards" in broken.stdout
    assert f"{zones.models.url}/{key}: was altered" in broken.stdout
    assert broken.stderr.splitlines()[-1].startswith("safelight: 1 of ")
    assert "Traceback" not in broken.stderr
