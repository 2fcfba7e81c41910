"""What an operator does with a cluster that holds data: recurring runs, backups, upgrades, removing and coming back."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import kube
import pytest
import runs
import yaml
from session import State, experiment_of

from cli import submit
from wukong.runs import run_records
from wukong.store import storage

T = TypeVar("T")
REMOVING = Path(__file__).parents[2] / "docs" / "removing.md"


@pytest.mark.cluster(
    claim="A recurring run starts by itself; its second run goes on from the first: what that has is not fetched "
    "again, its model is trained on",
    how="the recurring pipeline, every minute and one at a time, until two runs have succeeded",
)
def test_a_recurring_run(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    made = experiment_of(session_state)
    file = runs.COMPILED / "recurring.yaml"
    version = services.api.upload(file)
    values = submit.parameters(file, made, "", [])
    recurring = services.api.schedule("cluster-test", f"recurring-{stamp}", version, values, "1m")
    try:
        begun: list[runs.Run] = []
        for number in (1, 2):
            identity = kube.until(
                f"run {number} of the recurring run", partial(_nth, services, recurring.identity, number), 900, 10
            )
            run = runs.Run(identity, runs.resource_name(identity), time.time())
            if number == 2:
                services.client.disable_recurring_run(recurring.identity)
            runs.succeed(services, run)
            begun.append(run)
            found.append(f"{run.name}: {time.time() - run.submitted:.0f} s")
    finally:
        services.client.delete_recurring_run(recurring.identity)
    claims = [claim for run in begun if (claim := run_records.claimed(made, run.name))]
    assert len(claims) == len(begun)
    crawled, went_on = runs.records(made, begun[0])["crawl"].manifest, claims[1].experiment["crawl"]["previous"]
    assert went_on == crawled
    models = [runs.records(made, run)["pretrain"].manifest for run in begun]
    parents = {parent["stage"]: parent["uri"] for parent in storage.read_json(models[1])["parents"]}
    found.append(f"crawl.previous of the second: {went_on}")
    assert f"{parents.get('pretrain')}/manifest.json" == models[0]


def _nth(services: runs.Services, recurring: str, number: int) -> str | None:
    entries = services.client.list_runs(page_size=100, sort_by="created_at desc").runs or []
    ours = sorted((run.created_at, run.run_id) for run in entries if run.recurring_run_id == recurring)
    return ours[number - 1][1] if len(ours) >= number else None


def _back_up(name: str, stamp: str) -> str:
    job = f"{name}-{stamp}"
    kube.kubectl("-n", "wukong", "create", "job", f"--from=cronjob/{name}", job)
    return _job_output(job)


def _job_output(job: str) -> str:
    def ended() -> str | None:
        status = (kube.get("job", job) or {}).get("status", {})
        return "yes" if status.get("succeeded") else "no" if status.get("failed", 0) > 3 else None

    try:
        done = kube.until(f"job {job}", ended, 600, 2)
        output = kube.kubectl("-n", "wukong", "logs", f"job/{job}")
    finally:
        kube.kubectl("-n", "wukong", "delete", "job", job, "--ignore-not-found", "--wait=false")
    assert done == "yes", output
    return output


def _restore(cronjob: str, script: str, stamp: str) -> None:
    """What docs/cluster.md says: the backup's job with another script."""
    made = kube.kubectl(
        *("-n", "wukong", "create", "job", f"restore-{stamp}", f"--from=cronjob/{cronjob}"),
        *("--dry-run=client", "-o", "json"),
    )
    job = json.loads(made)
    job["spec"]["template"]["spec"]["containers"][0]["args"] = [script]
    kube.kubectl("apply", "-f", "-", given=json.dumps(job))
    _job_output(f"restore-{stamp}")


def _script(of: str) -> str:
    """The command of docs/cluster.md for restoring a database."""
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    joined = " ".join(text.split())
    pattern = r'args = \["(for d in mlflow.*?done)"\]' if of == "mlflow" else r"`(gunzip -c .*?\$MYSQL_USER)`"
    match = re.search(pattern, joined)
    assert match, f"docs/cluster.md has no command for restoring {of}"
    return match[1]


def _psql(command: str) -> str:
    return kube.kubectl(
        *("-n", "wukong", "exec", "postgres-0", "--"),
        *("psql", "--username=mlflow", "--dbname=mlflow", "--tuples-only", "--no-align", f"--command={command}"),
    ).strip()


@pytest.mark.cluster(
    claim="MLflow's database comes back from a backup",
    how="a backup job, all metrics and tags dropped, the restore of docs/cluster.md",
)
def test_mlflow_comes_back(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    made = experiment_of(session_state)
    before = (_psql("select count(*) from metrics"), runs.mlflow_states(services, made, first))
    assert int(before[0]) > 0
    found.append(_back_up("backup-mlflow", stamp).strip().splitlines()[-1])
    _psql("drop table metrics, tags cascade")
    with pytest.raises(kube.KubectlError):
        _psql("select count(*) from metrics")
    kube.kubectl("-n", "wukong", "scale", "deployment/mlflow", "--replicas=0")
    _restore("backup-mlflow", _script("mlflow"), stamp)
    kube.kubectl("-n", "wukong", "scale", "deployment/mlflow", "--replicas=1")
    kube.rollout("deployment/mlflow")
    assert _psql("select count(*) from metrics") == before[0]
    states = kube.until("MLflow", lambda: _or_none(lambda: runs.mlflow_states(services, made, first)), 120)
    assert states == before[1]
    found.append(f"{before[0]} metrics, {len(states)} runs")


def _or_none(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except OSError:
        return None


def _mysql(command: str) -> str:
    name = kube.listed("pods", "app=mysql", "kubeflow")[0]["metadata"]["name"]
    keys = kube.secret("mysql-secret", "kubeflow")
    given = [f"--user={keys.get('username', 'root')}", "--host=127.0.0.1", "--skip-column-names", "--batch"]
    password = [f"--password={keys['password']}"] if keys.get("password") else []
    return kube.kubectl(
        *("-n", "kubeflow", "exec", name, "-c", "mysql", "--", "mysql", *given, *password, "--execute", command)
    ).strip()


@pytest.mark.cluster(
    claim="KFP's database comes back from a backup",
    how="a backup job, the table of runs dropped, the restore of docs/cluster.md",
)
def test_kfp_comes_back(first: runs.Run, services: runs.Services, found: list[str], stamp: str) -> None:
    before = int(_mysql("select count(*) from mlpipeline.run_details"))
    assert before > 0
    found.append(_back_up("backup-kfp", stamp).strip().splitlines()[-1])
    _mysql("set foreign_key_checks=0; drop table mlpipeline.run_details")
    with pytest.raises(kube.KubectlError):
        _mysql("select count(*) from mlpipeline.run_details")
    kube.kubectl("-n", "kubeflow", "scale", "deployment/ml-pipeline", "--replicas=0")
    _restore("backup-kfp", _script("kfp"), stamp)
    kube.kubectl("-n", "kubeflow", "scale", "deployment/ml-pipeline", "--replicas=1")
    kube.rollout("deployment/ml-pipeline", namespace="kubeflow")
    assert int(_mysql("select count(*) from mlpipeline.run_details")) == before
    state = kube.until("KFP", lambda: runs.state(services, first.identity), 180)
    assert state == "SUCCEEDED"
    found.append(f"{before} runs")


@pytest.mark.cluster(
    claim="Manifests and records come back from a backup",
    how="a backup job, a run's records deleted, `python -m infra.cluster restore`",
)
def test_records_come_back(
    first: runs.Run, services: runs.Services, session_state: State, found: list[str], stamp: str
) -> None:
    made = experiment_of(session_state)
    before = runs.records(made, first)
    said = _back_up("backup-manifests", stamp)
    archive = re.findall(r"\S*manifests-\d{8}T\d{6}Z[.]tar", said)
    assert archive, said
    storage.delete(storage.join(made.root, "runs", first.name))
    assert not runs.records(made, first)
    job = json.loads(
        kube.kubectl(
            *("-n", "wukong", "create", "job", f"restore-{stamp}", "--from=cronjob/backup-manifests"),
            *("--dry-run=client", "-o", "json"),
        )
    )
    place = f"file:///backups/manifests/{archive[-1].rpartition('/')[2]}"
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["command"] = ["python", "-m", "infra.cluster", "restore", place, "s3://wukong"]
    container.pop("args", None)
    container["envFrom"][1]["secretRef"]["name"] = "wukong-s3"
    kube.kubectl("apply", "-f", "-", given=json.dumps(job))
    found.append(_job_output(f"restore-{stamp}").strip().splitlines()[-1])
    assert runs.records(made, first) == before


@pytest.mark.cluster(
    claim="An upgrade keeps the data: a new version's setup runs, servers restart, earlier runs and models are there",
    how="the overlay with another setup job, a changed setting and other labels of servers; then the overlay again",
)
def test_an_upgrade(
    first: runs.Run,
    services: runs.Services,
    session_state: State,
    overlay: str,
    found: list[str],
    tmp_path: Path,
    stamp: str,
) -> None:
    made = experiment_of(session_state)
    # Servers that a test before this one has started anew may still close the first connection.
    before_states = kube.until("MLflow", lambda: _or_none(lambda: runs.mlflow_states(services, made, first)), 120)
    before = (runs.digests(made, first), kube.secret("wukong-s3"), before_states)
    objects = list(yaml.safe_load_all(kube.kubectl("kustomize", overlay)))
    for one in objects:
        if one["kind"] == "Job":
            one["metadata"]["name"] += f"-{stamp}"
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "wukong-settings":
            one["data"]["WUKONG_TEST_UPGRADE"] = stamp
        if one["kind"] in ("StatefulSet", "Deployment"):
            one["spec"]["template"]["metadata"].setdefault("annotations", {})["wukong/test-upgrade"] = stamp
    changed = tmp_path / "upgrade.yaml"
    changed.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    kube.kubectl("apply", "-f", str(changed))
    name = next(one["metadata"]["name"] for one in objects if one["kind"] == "Job")
    try:
        kube.kubectl(
            *("-n", "wukong", "wait", "--for=condition=complete", "--timeout=600s", f"job/{name}"), timeout=630
        )
        kube.rollout("statefulset/object-store", "statefulset/postgres", "deployment/mlflow")
        copied = (kube.get("configmap", "wukong-settings", "kubeflow") or {}).get("data", {})
        assert copied.get("WUKONG_TEST_UPGRADE") == stamp, "the components' settings are the old ones"
        assert kube.secret("wukong-s3") == before[1]
        assert kube.until("the store", lambda: _or_none(lambda: runs.digests(made, first)), 300) == before[0]
        states = kube.until("MLflow", lambda: _or_none(lambda: runs.mlflow_states(services, made, first)), 300)
        assert states == before[2]
        found.append(f"{len(before[0])} manifests, {len(states)} runs in MLflow, the same S3 key")
    finally:
        kube.kubectl("-n", "wukong", "delete", "job", name, "--ignore-not-found")
        kube.kubectl("apply", "-k", overlay)
        kube.rollout("statefulset/object-store", "statefulset/postgres", "deployment/mlflow")


def _blocks(heading: str) -> list[str]:
    """The shell blocks below a heading of docs/removing.md."""
    text = REMOVING.read_text(encoding="utf-8")
    _, _, section = text.partition(f"## {heading}\n")
    return re.findall(r"```sh\n(.*?)```", section.partition("\n## ")[0], re.DOTALL)


@pytest.mark.cluster(
    claim="The platform can be removed and installed again, and all data is there",
    how="the commands of docs/removing.md, then the overlay again",
)
def test_removing_and_coming_back(
    first: runs.Run, services: runs.Services, session_state: State, overlay: str, found: list[str]
) -> None:
    if not REMOVING.exists():
        pytest.skip("docs/removing.md does not say how")
    made = experiment_of(session_state)
    # Servers that a test before this one has started anew may still close the first connection.
    before_states = kube.until("MLflow", lambda: _or_none(lambda: runs.mlflow_states(services, made, first)), 120)
    before = (runs.digests(made, first), kube.secret("wukong-s3"), before_states)
    for heading in ("Remove the platform, keep the data", "Install again on the kept volumes"):
        blocks = _blocks(heading)
        assert blocks, f"docs/removing.md has no commands below {heading!r}"
        for block in blocks:
            done = subprocess.run(
                ["bash", "-euxo", "pipefail", "-c", block],
                env={**os.environ, "OVERLAY": overlay},
                capture_output=True,
                text=True,
                timeout=1200,
                check=False,
            )
            assert done.returncode == 0, f"{block}\n{done.stderr[-3000:]}"
        if heading.startswith("Remove"):
            left = kube.listed("pods", "app.kubernetes.io/name=wukong")
            kube.until("the end of the pods", lambda: not kube.listed("pods", "app.kubernetes.io/name=wukong"), 300)
            found.append(f"{len(left)} pods were left to end")
    kube.rollout("statefulset/object-store", "statefulset/postgres", "deployment/mlflow")
    assert kube.secret("wukong-s3") == before[1]
    assert kube.until("the store", lambda: _or_none(lambda: runs.digests(made, first)), 300) == before[0]
    states = kube.until("MLflow", lambda: _or_none(lambda: runs.mlflow_states(services, made, first)), 300)
    assert states == before[2]
    found.append(f"{len(before[0])} manifests, {len(states)} runs in MLflow, the same S3 key")
