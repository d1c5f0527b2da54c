"""CONTRIBUTING.md: its diffs apply, its new files are new and compile; the public workflow runs what it says."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import yaml

from tests.runs.helpers import REPOSITORY

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
DIFFS = re.findall(r"^```diff\n(.+?)^```", TEXT, re.M | re.S)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("diff", DIFFS, ids=["network", "column", "option"])
def test_the_diffs_apply(diff: str) -> None:
    """Where one no longer does: make the change again, and put `git diff -U1` into CONTRIBUTING.md."""
    done = subprocess.run(
        ["git", "apply", "--check", "-"], cwd=REPOSITORY, input=diff, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_new_files_are_new_and_compile() -> None:
    files = re.findall(r"^`([\w/.]+)`, new:\n\n```python\n(.+?)^```", TEXT, re.M | re.S)
    assert len(files) == 4
    for path, code in files:
        assert not (REPOSITORY / path).exists(), path
        compile(code, path, "exec")


def test_the_workflow_runs_what_a_change_has_to_pass() -> None:
    file = REPOSITORY / ".github" / "workflows" / "ci.yml"
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert runs == {"ci": [".ci/run"], "floors": ["make test-floors"], "newest": [".ci/run"]}


def test_the_issue_templates_are_forms() -> None:
    found = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [path.stem for path in found] == ["accuracy", "bug"]
    for path in found:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert all({"type", "attributes"} <= part.keys() for part in form["body"])
