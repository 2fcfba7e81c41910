"""The examples for CI: their jobs' own lines are executed, against a Kubeflow Pipelines API on loopback.

No runner of GitHub was there, so this file plays one, as far as the example needs it. GitLab's jobs are run by
gitlab-ci-local, which also checks the file by GitLab's schema, where it is installed (docs/ci.md).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import played_kfp
import pytest
import yaml
from played_kfp import Kfp

from wukong.store import storage

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "ci"
GITLAB = shutil.which("gitlab-ci-local")


def needs_gitlab(test: Any) -> Any:
    """A test that runs gitlab-ci-local, whose first job builds the encoders."""
    missing = GITLAB is None or not shutil.which("rsync")
    reason = "gitlab-ci-local or rsync is not on PATH; docs/ci.md says how to install them"
    return pytest.mark.slow(pytest.mark.skipif(missing, reason=reason)(test))


@pytest.fixture
def kfp() -> Iterator[Kfp]:
    with played_kfp.running() as server:
        yield server


@dataclass
class Checkout:
    """A team's repository, as a job finds it.

    Attributes:
        folder: where it lies.
        revision: what is checked out.
        environment: of the job, in which ``wukong`` is this one.
    """

    folder: Path
    revision: str
    environment: dict[str, str]

    def result(self) -> dict[str, Any]:
        """What the job has stored of the run."""
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
        return found


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder, programs = tmp_path / "team", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, line in {"wukong": f'"{sys.executable}" -m cli.main', "python3": f'"{sys.executable}"'}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
        (programs / name).chmod(0o755)
    (folder / "experiment.yaml").write_text(
        f"name: demo\nstorage: {storage.from_path(tmp_path / 'data')}\n"
        "crawl: {queries: 'file:///q.txt', endpoint: 'http://site.invalid'}\n"
        "filter: {split: {held_out_captions: 0.1, holdouts: [{name: h, source: '*', captions: unseen}]}}\n"
    )
    shutil.copy(EXAMPLES / "gitlab-ci.yml", folder / ".gitlab-ci.yml")
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    environment = {
        **kept,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
    }
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.invalid")
    for words in (
        ("init", "--quiet", "--initial-branch=main"),
        ("remote", "add", "origin", "https://git.example/team/runs.git"),
        ("add", "."),
        ("commit", "--quiet", "-m", "first"),
    ):
        subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, env=environment)
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True, env=environment
    )
    return Checkout(folder, done.stdout.strip(), environment)


def evaluated(text: str, context: Mapping[str, str]) -> str:
    """What GitHub makes of a text: an expression that names nothing is empty."""
    return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda match: context.get(match[1], ""), text)


def run_workflow(checkout: Checkout, context: Mapping[str, str]) -> tuple[bool, str]:
    """Do the job's steps as a runner does; return whether all succeeded, and what the summary says."""
    (job,) = yaml.safe_load((EXAMPLES / "github-workflow.yml").read_text(encoding="utf-8"))["jobs"].values()
    summary = checkout.folder.parent / "summary.md"
    summary.touch()
    environment = {
        **checkout.environment,
        **{name: evaluated(str(value), context) for name, value in job["env"].items()},
        "GITHUB_RUN_ID": "4711",
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    is_well = True
    for step in job["steps"]:
        if "run" not in step or not (is_well or step.get("if") == "always()"):
            continue
        # The shell that GitHub takes where a step names none.
        done = subprocess.run(
            ["bash", "-e", "-c", step["run"]],
            cwd=checkout.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        print(done.stdout, done.stderr)
        is_well = is_well and done.returncode == 0
    return is_well, summary.read_text(encoding="utf-8")


@pytest.mark.parametrize(("state", "outcome"), [("SUCCEEDED", "succeeded"), ("FAILED", "failed")])
def test_the_lines_of_the_github_workflow(state: str, outcome: str, kfp: Kfp, checkout: Checkout) -> None:
    kfp.script = [state]
    is_well, summary = run_workflow(checkout, {"vars.WUKONG_KFP_HOST": kfp.url})
    assert is_well == (state == "SUCCEEDED")
    result = checkout.result()
    assert (result["outcome"], result["run"], result["source"]["revision"]) == (
        outcome,
        "ci-4711",
        checkout.revision,
    )
    assert result["source"]["repository"] == "https://git.example/team/runs.git"
    assert summary == f"{outcome} {kfp.url}/#/runs/details/runs-0\n"
    (run,) = kfp.runs
    assert run["display_name"] == "ci-4711"
    assert json.loads(run["runtime_config"]["parameters"]["source"])["revision"] == checkout.revision


def test_an_experiment_that_is_not_valid_is_not_submitted(kfp: Kfp, checkout: Checkout) -> None:
    with (checkout.folder / "experiment.yaml").open("a") as file:
        file.write("pretrain: {epochs: 0}\n")
    is_well, summary = run_workflow(checkout, {"vars.WUKONG_KFP_HOST": kfp.url})
    assert (is_well, checkout.result()["outcome"], kfp.runs) == (False, "refused", [])
    assert summary.startswith("refused ") and "pretrain.epochs" in summary


@needs_gitlab
@pytest.mark.parametrize(
    ("state", "ended", "outcome"),
    [("SUCCEEDED", "", "succeeded"), ("FAILED", "FAIL 3", "failed"), ("CANCELED", "FAIL 4", "terminated")],
)
def test_the_jobs_of_gitlab(state: str, ended: str, outcome: str, kfp: Kfp, checkout: Checkout) -> None:
    kfp.script = [state]
    said = run_gitlab(checkout, kfp)
    assert re.search(rf"^train finished in .* s *{ended} *$", said, re.MULTILINE)
    result = checkout.result()
    assert (result["outcome"], result["source"]["revision"]) == (outcome, checkout.revision)
    assert re.fullmatch(r"ci-\d+", result["run"])
    assert f"{outcome} {kfp.url}/#/runs/details/runs-0" in said, "what `after_script` says"


@needs_gitlab
def test_a_run_that_is_lost_sight_of_is_a_warning_in_gitlab(kfp: Kfp, checkout: Checkout) -> None:
    kfp.refuse_runs = 401  # as when a token has expired
    said = run_gitlab(checkout, kfp)
    assert re.search(r"^train finished in .* WARN 5 *$", said, re.MULTILINE)
    assert checkout.result()["outcome"] == "lost"


def run_gitlab(checkout: Checkout, kfp: Kfp) -> str:
    """Run all jobs of the checkout's pipeline, and return what the program says of them.

    Its own status is 0 whatever a job's is where ``allow_failure`` has ``exit_codes`` (4.75.1).
    """
    words = ["--force-shell-executor", "--no-evaluate-rule-changes", "--variable", f"WUKONG_KFP_HOST={kfp.url}"]
    done = subprocess.run(
        [str(GITLAB), *words],
        cwd=checkout.folder,
        env=checkout.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, done.stderr)
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
