"""The processor seconds of the phases of a build: what `zootools build --profile` prints."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import yaml
from click.testing import CliRunner
from crash import tree
from samples import TINY_ZOO

from zootools.cli import main

HERE = {"start", "checks", "backend", "images", "engine", "tables"}
IN_WORKERS = {"workers", "training", "evaluation", "storage"}


def processor_seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_a_profile_names_all_phases_and_changes_no_byte(tmp_path: Path) -> None:
    """Of the process that is started, everything but its end belongs to a phase."""
    spec = tmp_path / "tiny.yaml"
    spec.write_text(yaml.safe_dump(TINY_ZOO))
    arguments = ["build", str(spec), "--workers", "1", "--quiet"]
    before = processor_seconds_of_children()
    command = [sys.executable, "-m", "zootools", *arguments, "-o", str(tmp_path / "json"), "--profile", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    used = processor_seconds_of_children() - before
    result = json.loads(done.stdout)
    phases = result["processor_seconds"]
    assert set(phases) == HERE | IN_WORKERS
    assert all(
        phases[name] > 0 for name in ("start", "backend", "images", "workers", "training", "evaluation", "tables")
    )
    assert 0.5 * used < sum(phases[name] for name in HERE) < used
    assert result["seconds"] > 0

    shown = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "text"), "--profile"], catch_exceptions=False)
    lines = shown.stdout.splitlines()
    (start,) = (index for index, line in enumerate(lines) if "processor seconds in" in line)
    rows = {name: float(seconds) for name, seconds, _ in map(str.split, lines[start + 2 :])}
    assert set(rows) == HERE | IN_WORKERS
    assert abs(sum(rows.values()) - float(lines[start].split()[0])) < 0.05 * (len(rows) + 1)
    assert tree(tmp_path / "text") == tree(tmp_path / "json")
