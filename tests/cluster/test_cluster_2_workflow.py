"""The workflow on a cluster, from an image search to the report, and how long the machinery around it takes."""

import itertools

import kube
import pytest
import runs
from kubernetes.utils import parse_quantity
from session import State, experiment_of, first_run

from wukong import stages
from wukong.runs import run_costs
from wukong.stages import run_paths
from wukong.store import manifest, storage

SEEN_SECONDS = 30.0
"""Between the end of a RayJob and the last look at its pods, with the whole seconds of Kubernetes' times."""


@pytest.fixture(scope="module")
def workflow(services: runs.Services, search: None, session_state: State) -> runs.Run:
    """A run of an experiment that is new."""
    return first_run(services, session_state)


@pytest.mark.cluster(
    claim="A run goes from an image search to the report; each stage that is a job is one real RayJob, its pods are "
    "gone when it has succeeded",
    how="the training pipeline on 81 pictures of a search in the cluster, of which the filter drops one; submitted by "
    "KFP's API",
)
def test_from_the_search_to_the_report(
    workflow: runs.Run, services: runs.Services, session_state: State, found: list[str]
) -> None:
    made = experiment_of(session_state)
    records = runs.records(made, workflow)
    assert {name for name, record in records.items() if record.state == "succeeded"} >= set(stages.WHOLE_RUN)
    jobs = runs.ray_jobs(workflow)
    assert [job["metadata"]["labels"]["wukong/stage"] for job in jobs] == [
        name for name in stages.WHOLE_RUN if name in stages.JOBS
    ]
    assert {job["status"]["jobStatus"] for job in jobs} == {"SUCCEEDED"}
    digests = runs.digests(made, workflow)
    session_state.save(digests=digests)
    for stage, digest in digests.items():
        found.append(f"{stage} {digest[:16]}, {records[stage].seconds:.0f} s of work")
    assert runs.ended(made, workflow)["state"] == "succeeded"
    assert set(runs.mlflow_states(services, made, workflow).values()) == {"FINISHED"}
    left = [
        pod["metadata"]["name"]
        for pod in kube.listed("pods", "ray.io/node-type in (head,worker)")
        if any(pod["metadata"]["name"].startswith(job["metadata"]["name"][:20]) for job in jobs)
        and "deletionTimestamp" not in pod["metadata"]
    ]
    found.append(f"Ray pods that are left: {len(left)}")
    assert not left, left


@pytest.mark.cluster(
    claim="Each pod of a run holds the S3 key of its stage and no other; the component that registers models is the "
    "only one that may change them",
    how="the Secrets that the run's pods and RayJobs name",
)
def test_what_credentials_the_pods_of_a_run_hold(workflow: runs.Run, found: list[str]) -> None:
    held = {}
    for pod in runs.component_pods(workflow):
        (main,) = [container for container in pod["spec"]["containers"] if container["name"] == "main"]
        references = [entry.get("valueFrom", {}).get("secretKeyRef", {}) for entry in main.get("env", [])]
        names = {each["name"] for each in references if each and not each.get("optional")}
        held[f"component {runs.function_of(pod)}"] = names - {"mlpipeline-minio-artifact"}
    for job in runs.ray_jobs(workflow):
        cluster = job["spec"]["rayClusterSpec"]
        templates = [cluster["headGroupSpec"]["template"], *(each["template"] for each in cluster["workerGroupSpecs"])]
        sources = [source for each in templates for source in each["spec"]["containers"][0]["envFrom"]]
        names = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
        held[f"RayJob {job['metadata']['labels']['wukong/stage']}"] = names
    found.append(f"{len(held)} kinds of pods, {len(set().union(*held.values()))} Secrets")
    for name in stages.JOBS:
        assert held[f"RayJob {name}"] == {f"job-{name}-s3"} | ({"runs-mlflow"} if name in stages.TRAININGS else set())
    assert [pod for pod, names in held.items() if "wukong-mlflow" in names] == ["component register"]
    assert not [pod for pod, names in held.items() if "wukong-s3" in names]


@pytest.mark.cluster(
    claim="The object store refuses the keys of a run nothing that the run asks for",
    how="the logs of the run's components, with those of their jobs",
)
def test_no_pod_of_a_run_is_refused_what_it_asks_for(workflow: runs.Run, found: list[str]) -> None:
    refused, read = [], 0
    for pod in runs.component_pods(workflow):
        lines = kube.kubectl("-n", "kubeflow", "logs", pod["metadata"]["name"], "-c", "main").splitlines()
        read += len(lines)
        refused += [f"{runs.function_of(pod)}: {line}" for line in lines if "refuses that to the key" in line]
    found.append(f"{read} lines of logs")
    assert read and not refused, refused


@pytest.mark.cluster(
    claim="What each stage of a run has held is what its pods requested, as long as its RayJob lasted; each pod says "
    "what it used of its cores; MLflow has the same numbers",
    how="`cost.json` of the run beside requests and times in the RayJobs: between the time of the Ray job and that of "
    "the RayJob, both with all pods",
)
def test_what_the_run_has_held(
    workflow: runs.Run, services: runs.Services, session_state: State, found: list[str]
) -> None:
    made = experiment_of(session_state)
    cost = storage.read_json(run_paths.uri_of(made, workflow.name, run_costs.FILE))
    assert cost["not_known"] == [] and not cost["run"]["at_least"]
    for job in runs.ray_jobs(workflow):
        stage, spec = job["metadata"]["labels"]["wukong/stage"], job["spec"]
        cluster = spec["rayClusterSpec"]
        pods = [cluster["headGroupSpec"]["template"]]
        for workers in cluster["workerGroupSpecs"]:
            pods += [workers["template"]] * workers["replicas"]
        requests = [pod["spec"]["containers"][0]["resources"]["requests"] for pod in pods]
        submitter = spec["submitterPodTemplate"]["spec"]["containers"][0]["resources"]["requests"]
        ended = runs.moment(job["status"]["endTime"])
        worked = ended - runs.moment(job["status"]["rayJobInfo"]["startTime"])
        lived = ended - runs.moment(job["metadata"]["creationTimestamp"]) + SEEN_SECONDS
        held = cost["stages"][stage]
        for name, resource, unit in (("core_hours", "cpu", 1), ("gib_hours", "memory", 2**30)):
            least = sum(float(parse_quantity(each[resource])) for each in requests) / unit
            most = least + float(parse_quantity(submitter[resource])) / unit
            assert least * worked <= 3600 * held[name] <= most * lived, (stage, name)
        assert held["gpu_hours"] == 0
        assert held["idle_share"] is not None and 0 <= held["idle_share"] < 1, stage
        output = manifest.load(runs.records(made, workflow)[stage].manifest)
        assert held["bytes_written"] >= output.parts.bytes, "with what its job made for others, as features"
        told = runs.mlflow_metrics(services, made, workflow, stage)
        assert told[f"{stage}/cost/core_hours"] == pytest.approx(held["core_hours"], rel=0.01)
        found.append(f"{stage} {held['core_hours']:.3f} core-hours, {100 * held['idle_share']:.0f} % idle")
    told = runs.mlflow_metrics(services, made, workflow, workflow.name)
    assert told["cost/core_hours"] == pytest.approx(cost["run"]["core_hours"], rel=0.01)


@pytest.mark.cluster(
    claim="Between the start of a component's container and its RayJob pass at most 5 seconds",
    how="`startedAt` of the container and `creationTimestamp` of the RayJob, both in whole seconds",
)
def test_the_seconds_of_ours_before_a_ray_job(workflow: runs.Run, found: list[str]) -> None:
    taken = {}
    for job in runs.ray_jobs(workflow):
        stage = job["metadata"]["labels"]["wukong/stage"]
        pod = runs.component_pod(workflow, stage)
        assert pod is not None, stage
        began = runs.started(pod)
        assert began is not None, stage
        taken[stage] = runs.moment(job["metadata"]["creationTimestamp"]) - began
    found.append(", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in taken.items()))
    assert max(taken.values()) <= 5


@pytest.mark.cluster(
    claim="Time from submitting to the crawl's first log line, and between stages",
    how="times of the RayJobs, and of the first line of the crawl's own log",
)
def test_the_time_around_the_stages(workflow: runs.Run, found: list[str]) -> None:
    jobs = runs.ray_jobs(workflow)
    lines = {job["metadata"]["labels"]["wukong/stage"]: runs.first_line_of_job(job["metadata"]["name"]) for job in jobs}
    first = lines["crawl"]
    assert first is not None, "the crawl's log has no line of the crawl's"
    found.append(f"to the crawl's first line {first - workflow.submitted:.0f} s")
    for before, after in itertools.pairwise(jobs):
        name = after["metadata"]["labels"]["wukong/stage"]
        ended = runs.moment(before["status"]["endTime"])
        made = runs.moment(after["metadata"]["creationTimestamp"]) - ended
        line = lines[name]
        shown = f", {line - ended:.0f} s to its first line" if line is not None else ""
        found.append(f"from the end of the stage before {name} {made:.0f} s to its RayJob{shown}")
    assert len(jobs) == len(lines)
