"""Pipeline runs on the cluster: start one, wait for it, see what it left in Kubernetes, the object store and MLflow."""

import base64
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import kube
import yaml
from kfp import Client

from cli import kfp_api, submit
from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.runs import run as recorded
from wukong.runs.run_records import Record
from wukong.stages import run_paths
from wukong.store import manifest, storage

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"
EXPERIMENT = Path(__file__).with_name("experiment.yaml")
QUERIES = "s3://wukong/inputs/cluster-test/queries.txt"
ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
A_RUN = 3600.0
"""Seconds that a whole run may take on two cores."""


@dataclass
class Run:
    """One run of a pipeline.

    Attributes:
        identity: KFP's.
        name: under which its records lie; KFP's resource name where the parameter ``run`` was empty.
        submitted: seconds since the epoch.
    """

    identity: str
    name: str
    submitted: float


@dataclass
class Services:
    """The services of the cluster, through forwarded ports.

    Attributes:
        kfp: the address of KFP's API.
        mlflow: the address of MLflow.
        credentials: of MLflow.
        forwards: the ports.
    """

    kfp: str
    mlflow: str
    credentials: Mapping[str, str]
    forwards: Sequence[kube.Forward] = ()
    _api: list[kfp_api.Pipelines] = field(default_factory=list)
    _client: list[Client] = field(default_factory=list)

    @property
    def api(self) -> kfp_api.Pipelines:
        """What ``wukong submit`` uses."""
        if not self._api:
            self._api.append(kfp_api.Pipelines(self.kfp))
        return self._api[0]

    @property
    def client(self) -> Client:
        """KFP's own client."""
        if not self._client:
            self._client.append(Client(host=self.kfp, namespace="kubeflow"))
        return self._client[0]

    def ask_mlflow(self, path: str, body: Mapping[str, Any] | None = None, host: str = "mlflow.wukong.svc:5000") -> Any:
        """Ask MLflow's REST API; the answer as JSON.

        Raises:
            urllib.error.HTTPError: it refuses.
        """
        request = urllib.request.Request(f"{self.mlflow}/api/2.0/mlflow/{path}", headers={"Host": host})
        pair = ":".join(self.credentials[f"MLFLOW_TRACKING_{key}"] for key in ("USERNAME", "PASSWORD"))
        request.add_header("Authorization", "Basic " + base64.b64encode(pair.encode()).decode())
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


def experiment(name: str, *overrides: str) -> Experiment:
    """The test's experiment under a name."""
    return documents.loads(EXPERIMENT.read_text(encoding="utf-8"), [f"name={name}", *overrides])


def start(
    services: Services, made: Experiment, name: str, *given: str, pipeline: str = "training", shown: str = ""
) -> Run:
    """Upload a pipeline, if it has changed, and start a run.

    Args:
        services: of the cluster.
        made: the experiment.
        name: the parameter ``run``; may be empty.
        given: ``name=value`` entries, further parameters.
        pipeline: a name of ``pipelines/compiled``, or the path of another compiled pipeline without its ending.
        shown: KFP's display name, where it is not the run's name.
    """
    file = COMPILED / f"{pipeline}.yaml"
    version = services.api.upload(file)
    values = submit.parameters(file, made, name, list(given))
    submitted = time.time()
    begun = services.api.start("cluster-test", shown or name, version, values)
    run = Run(begun.identity, name or resource_name(begun.identity), submitted)
    print(f"run {run.name}: {begun.identity}", flush=True)
    return run


def workflow(identity: str) -> kube.Object | None:
    """The Argo workflow of a run, as long as it is kept."""
    found = kube.listed("workflows.argoproj.io", f"pipeline/runid={identity}", "kubeflow")
    return found[0] if found else None


def resource_name(identity: str) -> str:
    """KFP's resource name of a run."""
    made = kube.until("the run's workflow", lambda: workflow(identity), 120)
    return str(made["metadata"]["name"])


def state(services: Services, identity: str) -> str:
    """KFP's state of a run; empty while KFP does not answer."""
    try:
        return str(services.client.get_run(identity).state or "")
    except Exception as error:  # noqa: BLE001 - the client raises whatever its transport raises
        print(f"KFP does not answer: {type(error).__name__}", flush=True)
        return ""


def finish(services: Services, run: Run, seconds: float = A_RUN) -> str:
    """Wait for the end of a run; its state."""

    def ended() -> str | None:
        found = state(services, run.identity)
        return found if found in ENDED else None

    return kube.until(f"the end of run {run.name}", ended, seconds, 5)


def succeed(services: Services, run: Run, seconds: float = A_RUN) -> None:
    """Wait for the end of a run, which must have succeeded."""
    ended = finish(services, run, seconds)
    assert ended == "SUCCEEDED", f"run {run.name} ended as {ended}\n{why(run)}"


def complete(services: Services, made: Experiment, name: str, *given: str, shown: str = "") -> Run:
    """Start a run of the training pipeline and wait for its end; it must succeed. Arguments as of ``start``."""
    run = start(services, made, name, *given, shown=shown)
    succeed(services, run)
    return run


def why(run: Run) -> str:
    """What the components of a run that failed said last."""
    lines = []
    for pod in component_pods(run):
        if pod["status"].get("phase") == "Failed":
            name = pod["metadata"]["name"]
            lines.append(f"--- {name}")
            lines += kube.kubectl("-n", "kubeflow", "logs", name, "-c", "main", "--tail=25").splitlines()
    return "\n".join(lines)[-6000:]


def ray_jobs(run: Run, stage: str = "") -> list[kube.Object]:
    """The RayJobs of a run, oldest first."""
    selector = f"wukong/run={run.name}" + (f",wukong/stage={stage}" if stage else "")
    return kube.listed("rayjobs.ray.io", selector)


def component_pods(run: Run) -> list[kube.Object]:
    """The pods of a run's components, oldest first, without KFP's own."""
    found = workflow(run.identity)
    name = found["metadata"]["name"] if found else run.name
    pods = kube.listed("pods", f"workflows.argoproj.io/workflow={name}", "kubeflow")
    return [
        pod for pod in pods if any(each["name"] == "kfp-launcher" for each in pod["spec"].get("initContainers", []))
    ]


def function_of(pod: kube.Object) -> str:
    """The function of the component that a pod runs; empty for KFP's own pods."""
    found = re.search(r'function_to_execute[\\", ]+([a-z_]+)', json.dumps(pod["spec"]))
    return found[1] if found else ""


def component_pod(run: Run, stage: str) -> kube.Object | None:
    """The newest pod of a stage's component."""
    wanted = stages.of(stage).function or stage
    pods = [pod for pod in component_pods(run) if function_of(pod) == wanted]
    return pods[-1] if pods else None


def moment(text: str) -> float:
    """Seconds since the epoch of a time of Kubernetes."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def started(pod: kube.Object) -> float | None:
    """When the component's container started."""
    for status in pod["status"].get("containerStatuses", []):
        if status["name"] == "main":
            entry = status["state"].get("running") or status["state"].get("terminated") or {}
            return moment(entry["startedAt"]) if entry.get("startedAt") else None
    return None


def said(run: Run, stage: str, words: str, seconds: float = 300) -> float:
    """Wait until a stage's component has said something; when that was, in seconds since the epoch."""

    def look() -> float | None:
        pod = component_pod(run, stage)
        if pod is None:
            return None
        text = kube.kubectl("-n", "kubeflow", "logs", pod["metadata"]["name"], "-c", "main", "--timestamps")
        for line in text.splitlines():
            if words in line:
                return moment(re.sub(r"(\.\d{6})\d*", r"\1", line.partition(" ")[0]))
        return None

    return kube.until(f"{words!r} in the component's log", look, seconds, 2)


def launcher_settings() -> str:
    """The text of the launcher's ``settings.yaml``."""
    found = kube.get("configmap", "ray-job")
    assert found is not None
    return str(found["data"]["settings.yaml"])


def set_launcher(settings: str) -> None:
    """Replace the launcher's ``settings.yaml``; RayJobs that are made later follow it."""
    patch = json.dumps({"data": {"settings.yaml": settings}})
    kube.kubectl("-n", "wukong", "patch", "configmap", "ray-job", "--type=merge", "-p", patch)


def first_line_of_job(job: str) -> float | None:
    """When a RayJob's own program wrote its first line: after what Ray's submitter says for itself."""
    pods = kube.listed("pods", f"batch.kubernetes.io/job-name={job}")
    if not pods:
        return None
    text = kube.kubectl("-n", "wukong", "logs", pods[0]["metadata"]["name"], "--timestamps")
    for line in text.splitlines():
        when, _, said = line.partition(" ")
        if re.match(r"\d\d:\d\d:\d\d \| ", re.sub(r"\x1b\[[0-9;]*m", "", said)):
            return moment(re.sub(r"(\.\d{6})\d*", r"\1", when))
    return None


def records(made: Experiment, run: Run) -> dict[str, Record]:
    """What the stages of a run recorded."""
    return recorded.Run.of(made, run.name).records


def records_or_none(made: Experiment, run: Run) -> dict[str, Record]:
    """The same; empty while the store is away."""
    try:
        return records(made, run)
    except Exception as error:  # noqa: BLE001 - the store may be away: that is what is tried
        print(f"the store does not answer: {type(error).__name__}", flush=True)
        return {}


def digests(made: Experiment, run: Run) -> dict[str, str]:
    """Digests of the manifests that a run's stages recorded."""
    found = records(made, run)
    return {stage: manifest.load(record.manifest).digest for stage, record in found.items() if record.manifest}


def ended(made: Experiment, run: Run) -> dict[str, Any]:
    """The record of how a run ended."""
    found: dict[str, Any] = storage.read_json(run_paths.uri_of(made, run.name, "run.json"))
    return found


def _mlflow_runs(services: Services, made: Experiment, run: Run) -> list[dict[str, Any]]:
    """A run and its stages, as MLflow tells them."""
    known = services.ask_mlflow(f"experiments/get-by-name?experiment_name={made.name}")["experiment"]["experiment_id"]
    found = services.ask_mlflow(
        "runs/search", {"experiment_ids": [known], "filter": f"tags.`wukong.run` = '{run.name}'", "max_results": 100}
    ).get("runs", [])
    parents = [entry["info"]["run_id"] for entry in found]
    nested = [
        entry
        for parent in parents
        for entry in services.ask_mlflow(
            "runs/search",
            {"experiment_ids": [known], "filter": f"tags.`mlflow.parentRunId` = '{parent}'", "max_results": 100},
        ).get("runs", [])
    ]
    return [*found, *nested]


def mlflow_states(services: Services, made: Experiment, run: Run) -> dict[str, str]:
    """The state of a run and its stages in MLflow, by name."""
    return {entry["info"]["run_name"]: entry["info"]["status"] for entry in _mlflow_runs(services, made, run)}


def mlflow_tags(services: Services, made: Experiment, run: Run) -> dict[str, str]:
    """The tags of a pipeline's run in MLflow."""
    (entry,) = (each for each in _mlflow_runs(services, made, run) if each["info"]["run_name"] == run.name)
    return {tag["key"]: tag["value"] for tag in entry["data"].get("tags", [])}


def mlflow_metrics(services: Services, made: Experiment, run: Run, stage: str) -> dict[str, float]:
    """The last value of each metric of a run's stage in MLflow."""
    (entry,) = (each for each in _mlflow_runs(services, made, run) if each["info"]["run_name"] == stage)
    return {metric["key"]: float(metric["value"]) for metric in entry["data"].get("metrics", [])}


def checkpoints(made: Experiment, stage: str = "pretrain") -> set[str] | None:
    """The complete checkpoints of all trainings of a stage, each as attempt and folder; None while the store is away.

    A training that was ended leaves its own, so a new one is one that was not there before, not one of a later step.
    """
    try:
        files = storage.list_files(storage.join(made.root, stage), "checkpoint.json")
    except Exception as error:  # noqa: BLE001 - the store may be away: that is what is tried
        print(f"the store does not answer: {type(error).__name__}", flush=True)
        return None
    return set(re.findall(r"[^/]+/checkpoint_[^/]+", "\n".join(files)))


class NewCheckpoints:
    """The checkpoints of a stage that were not there when the store was first asked."""

    def __init__(self, made: Experiment, stage: str = "pretrain") -> None:
        self._made, self._stage = made, stage
        self._before = checkpoints(made, stage)
        self._new: set[str] = set()

    def seen(self) -> set[str]:
        """Ask the store; all that were seen so far, also those that the training has deleted since."""
        now = checkpoints(self._made, self._stage)
        if now is not None:
            self._before = now if self._before is None else self._before
            self._new |= now - self._before
        return self._new


def goes_on(services: Services, made: Experiment, run: Run, seconds: float, least: int = 2) -> None:
    """Wait until the pre-training of a run has written some more checkpoints than now."""
    # Deleting takes effect within a moment: a checkpoint that was under way is not one that came after it.
    time.sleep(3)
    new = NewCheckpoints(made)

    def more() -> bool:
        found = state(services, run.identity)
        assert found not in ENDED, f"run {run.name} ended as {found}\n{why(run)}"
        record = records_or_none(made, run).get("pretrain")
        assert record is None or record.state == "succeeded", f"pretrain failed: {record.error}"
        assert record is None, "the training ended before everything was lost: raise TRAINING_SECONDS in session.py"
        return len(new.seen()) >= least

    kube.until("new checkpoints", more, seconds, 2)


def parameters_of(pipeline: Path) -> Sequence[str]:
    """The parameters of a compiled pipeline."""
    specification = next(yaml.safe_load_all(pipeline.read_text(encoding="utf-8")))
    return list(specification["root"]["inputDefinitions"]["parameters"])
