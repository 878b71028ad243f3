"""The files around the code: citation, hooks and workflow say what the project says elsewhere."""

import re
from pathlib import Path

import yaml

import zootools

ROOT = Path(__file__).parents[2]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == zootools.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)


def test_the_released_version_is_in_the_changelog() -> None:
    headings = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{1,2} [A-Z][a-z]+ \d{4}", heading) for heading in headings[1:])
    assert headings[1].startswith(f"{zootools.__version__} - ")


def test_hooks_need_no_network() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    assert all(hook["language"] == "system" for hook in hooks[0]["hooks"])


def test_the_workflow_runs_the_one_command() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
