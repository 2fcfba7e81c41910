"""Read a RayJob's status and pods: whether it has ended, how, and what it waits for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ray_jobs.launch.kuberay.room import Node, Pod, places, roomiest
from wukong.runtime.language import message

NO_NODE = "NoNode"
"""The launcher's reason for a job that it has ended because no node can take its pods."""

INFRASTRUCTURE = (
    "AppFailed",
    "HeadLost",
    "JobDeploymentStatusTransitionGracePeriodExceeded",
    "JobStatusCheckTimeoutExceeded",
    "SubmissionFailed",
)
"""KubeRay's reasons for a failure that another Ray cluster may mend, unless the stage left a record of its own error:
the driver is gone with its node or its head (AppFailed), the head did not answer, the submitter was lost; and one of
this launcher, ``lost_head``. Not among them: the deadlines, ValidationFailed, and jobs that a person stopped or
deleted."""

_SUBMITTER_MAY_RUN = (
    "DeadlineExceeded",
    "JobDeploymentStatusTransitionGracePeriodExceeded",
    "JobStatusCheckTimeoutExceeded",
)
"""KubeRay's reasons for the end of a RayJob that did not wait for the end of its submitter."""

_OVERDUE = timedelta(seconds=30)
"""How long after its grace period a pod may still be there before its node counts as lost."""


@dataclass
class Verdict:
    """How a RayJob ended."""

    succeeded: bool
    reason: str = ""
    message: str = ""

    @property
    def is_infrastructure(self) -> bool:
        """Whether the job may succeed on another Ray cluster, unless its stage says that its own work failed."""
        return not self.succeeded and self.reason in INFRASTRUCTURE


def verdict(status: Mapping[str, Any]) -> Verdict | None:
    """Read from a RayJob's ``status`` how it ended; None while it has not ended.

    A failed ``jobStatus`` is not the end, since KubeRay may start the job again; ``jobDeploymentStatus``
    says whether it does.
    """
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if job == "SUCCEEDED":
        return Verdict(succeeded=True)
    if deployment in ("Failed", "ValidationFailed"):
        return Verdict(succeeded=False, reason=status.get("reason") or deployment, message=status.get("message", ""))
    if deployment == "Complete":
        return Verdict(succeeded=False, reason=status.get("reason") or job, message=status.get("message", ""))
    return None


def is_left_by_kuberay(status: Mapping[str, Any]) -> bool:
    """Whether the rules of a RayJob (``manifest``), which delete its Ray cluster and later itself, leave too much.

    No rule can name a job that was stopped, or one that KubeRay refused or has not ended. Where a submitter may still
    run, the rules do harm: with the Ray cluster goes the Secret that each further pod of the submitter would need, and
    Kubernetes starts one whenever the one before is gone, as with a lost node. It waits for the Secret for as long as
    the RayJob is kept.
    """
    if status.get("jobDeploymentStatus") not in ("Complete", "Failed") or status.get("jobStatus") == "STOPPED":
        return True
    return status.get("reason") in _SUBMITTER_MAY_RUN


def is_suspended(status: Mapping[str, Any]) -> bool:
    """Whether a job has no Ray cluster because its ``suspend`` is set, or is losing it.

    That is no end: Kueue sets ``suspend`` of a job that waits for quota or is preempted. Then KubeRay deletes the Ray
    cluster and the submitter, forgets what they said, and begins anew when the field is taken back, deadlines included.
    """
    return status.get("jobDeploymentStatus") in ("Suspending", "Suspended")


def no_head_answers(status: Mapping[str, Any]) -> bool:
    """Whether KubeRay gets no answer from a head that there should be: not yet, or no longer."""
    if is_suspended(status):
        return False
    return status.get("jobDeploymentStatus") == "Initializing" or bool(status.get("jobStatusCheckFailureStartTime"))


def lost_head(heads: Sequence[Mapping[str, Any]]) -> Verdict | None:
    """Say that a job whose head does not answer is lost with the head's node; None where that is not so.

    Kubernetes deletes the pods of a node that does not answer (``Settings.lost_node_seconds``), and they stay until
    somebody deletes the node. KubeRay makes no other head as long as the old one is there, and waits 300 seconds for
    its answer. Another RayJob waits for neither.

    Args:
        heads: the head's pods.
    """
    ends = [pod["metadata"].get("deletionTimestamp") for pod in heads]  # of the grace period
    if not ends or not all(end and datetime.fromisoformat(end) + _OVERDUE < datetime.now(UTC) for end in ends):
        return None
    said = message(f"the head {heads[0]['metadata']['name']} was to be deleted and is still there: its node is lost")
    return Verdict(succeeded=False, reason="HeadLost", message=said)


def describe(status: Mapping[str, Any]) -> str:
    """State of a job that has not ended, for the log."""
    state = status.get("jobDeploymentStatus") or "New"
    return f"{state}, Ray job {job}" if (job := status.get("jobStatus")) else state


def without_node(pods: Iterable[Mapping[str, Any]], nodes: Sequence[Node]) -> tuple[list[str], list[str]]:
    """Say which pods of a Ray cluster find no node: those that never can, and those that can once others end.

    Args:
        pods: pods of the Kubernetes API; those of a group of KubeRay's are equal.
        nodes: the nodes as they are when nothing runs there.

    Returns:
        A line for each group of pods that the nodes cannot take together, and one for each other that waits.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        if not pod["metadata"].get("deletionTimestamp"):
            groups.setdefault(pod["metadata"]["labels"].get("ray.io/group", ""), []).append(pod)
    never, waiting = [], []
    for group, equal in groups.items():
        if not any(finds_no_node(pod) for pod in equal):
            continue
        like = Pod.of("", group, equal[0]["spec"])
        count, room = len(equal), places(like, nodes)
        if room >= count:
            waiting.append(
                message(
                    f"{count} pods of the group {group} find room once others end: each asks for {like.asks}, and "
                    f"there is room for {room} of them when nothing else runs"
                )
            )
        else:
            never.append(
                message(
                    f"no node can ever take all {count} pods of the group {group}: each asks for {like.asks}, there "
                    f"is room for {room} of them when nothing else runs, and {roomiest(like, nodes)}. Ask for less, in "
                    "the ConfigMap ray-job or by the experiment's workers, or add nodes"
                )
            )
    return never, waiting


def finds_no_node(pod: Mapping[str, Any]) -> bool:
    """Whether the scheduler has found no node for a pod of the Kubernetes API."""
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(each["type"] == "PodScheduled" and each.get("reason") == "Unschedulable" for each in conditions)


def pod_problems(pods: Iterable[Mapping[str, Any]]) -> list[str]:
    """Why pods do not run, a line each: not schedulable, image not found, killed for memory, and so on."""
    problems = []
    for pod in pods:
        name, status = pod["metadata"]["name"], pod["status"]
        for condition in status.get("conditions", []):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                problems.append(f"{name}: {condition.get('reason')}: {condition.get('message')}")
        for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
            at, state = f"{name}/{container['name']}", container.get("state", {})
            ended = state.get("terminated") or container.get("lastState", {}).get("terminated") or {}
            waiting, reason = state.get("waiting") or {}, ended.get("reason")
            if waiting and waiting.get("reason") not in ("PodInitializing", "ContainerCreating"):
                why = ": ".join(filter(None, (waiting.get("reason"), waiting.get("message"))))
                problems.append(f"{at}: {why}")
            if ended.get("exitCode"):
                advice = " (give the stage more memory)" if reason == "OOMKilled" else ""
                problems.append(message(f"{at}: {reason}, exit status {ended['exitCode']:d}{advice}"))
    return problems


def explain_failure(job: str, ended: Verdict, problems: Sequence[str], log_end: Sequence[str]) -> str:
    """The message for a failed RayJob: KubeRay's reason, the pods' problems, and the last lines of the log."""
    why = ": ".join(filter(None, (ended.reason, ended.message)))
    lines = [message(f"RayJob {job} failed: {why}")]
    if problems:
        lines += [message("Its pods say:"), *(f"  {line}" for line in problems)]
    if log_end:
        lines += [message("The end of its log:"), *(f"  {line}" for line in log_end)]
    return "\n".join(lines)
