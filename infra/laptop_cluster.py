"""A Kubernetes cluster on a laptop, with Wukong on it: ``python -m infra.laptop_cluster up|down``.

``up`` makes a cluster with kind, installs Kubeflow Pipelines and KubeRay from their own manifests, builds the images
that are missing, loads them, and applies ``k8s/overlays/kind``. Each step leaves alone what is there, so ``up`` can be
run again after a failure, or to bring new images. ``down`` deletes the cluster. The file that kubectl needs is
``build/cluster/kubeconfig``; the user's own is not changed.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.images import build
from wukong.commands.output import echo
from wukong.errors import StackError
from wukong.runtime.language import _, joined, translated

NAME = "wukong"
KUBECONFIG = Path("build/cluster/kubeconfig")
KFP = "github.com/kubeflow/pipelines/manifests/kustomize/{folder}?ref=2.17.0"
KUBERAY = "k8s/kuberay"
WORKFLOW_DEFAULTS = (
    *("--namespace=kubeflow", "patch", "configmap", "workflow-controller-configmap"),
    *("--type=merge", "--patch-file=k8s/kubeflow/workflow-defaults.yaml"),
)
"""Arguments of kubectl that let KFP try a component again whose pod was ended from outside."""
PAGE = 8080
"""Port of this machine on which the KFP UI is forwarded."""

PROGRAMS = {
    "docker": "https://docs.docker.com/engine/install/",
    "kind": "https://kind.sigs.k8s.io/docs/user/quick-start/#installation (one file; version 0.24 or newer)",
    "kubectl": "https://kubernetes.io/docs/tasks/tools/ (one file)",
    "git": "the package git; kubectl fetches manifests with it",
}
"""What is needed, and where to get it."""


@dataclass(frozen=True)
class Step:
    """One command of the installation, and what to say before it; a failure is tried again ``tries`` times at most."""

    says: str
    command: tuple[str, ...]
    tries: int = 1


def check_programs(found: Collection[str]) -> None:
    """Check that all programs are there.

    Raises:
        StackError: some are not; the message says how to get each.
    """
    if missing := [f"  {name}: {how}" for name, how in PROGRAMS.items() if name not in found]:
        said = "a cluster on this machine needs programs that are not installed:"
        raise StackError("\n".join([said, *missing]))


def steps(clusters: Collection[str], images: Collection[str], overlay: str = "k8s/overlays/kind") -> list[Step]:
    """Return what is to be done, in order.

    Args:
        clusters: the names of kind's clusters that exist.
        images: those of the needed images that Docker has.
        overlay: what is applied.
    """
    wanted = {build.tag(image): image for image in build.IMAGES}
    kubectl = ("kubectl", f"--kubeconfig={KUBECONFIG}")
    made = []
    if NAME not in clusters:
        create = ("kind", "create", "cluster", f"--name={NAME}", f"--kubeconfig={KUBECONFIG}", "--wait=180s")
        made.append(Step(_("Making the cluster"), create))
    else:
        made.append(
            Step(
                _("The cluster is there"),
                ("kind", "export", "kubeconfig", f"--name={NAME}", f"--kubeconfig={KUBECONFIG}"),
            )
        )
    if missing := [image for tag, image in wanted.items() if tag not in images]:
        builds = (sys.executable, "-m", "infra.images.build", *missing)
        made.append(Step(_("Building the images {missing}").format(missing=", ".join(missing)), builds))
    # kind leaves out an image that the node has already.
    made.append(Step(_("Loading the images"), ("kind", "load", "docker-image", f"--name={NAME}", *wanted)))
    # Large definitions do not fit the annotation of a client-side apply; a kind that was just defined needs a moment.
    apply = (*kubectl, "apply", "--server-side", "--force-conflicts")
    wait = (*kubectl, "wait", "--for=condition=established", "--timeout=120s", "crd/applications.app.k8s.io")
    made += [
        Step(_("Installing KubeRay"), (*apply, "-k", KUBERAY), 3),
        Step(_("Installing Kubeflow Pipelines"), (*apply, "-k", KFP.format(folder="cluster-scoped-resources")), 3),
        Step("", wait),
        Step("", (*apply, "-k", KFP.format(folder="env/platform-agnostic")), 3),
        Step("", (*kubectl, *WORKFLOW_DEFAULTS)),
        Step(_("Waiting for KubeRay"), _rollout(kubectl, "kuberay-system", "deployment/kuberay-operator")),
        Step(_("Waiting for Kubeflow Pipelines"), _rollout(kubectl, "kubeflow", "deployment/mysql")),
        Step("", _rollout(kubectl, "kubeflow", "deployment/ml-pipeline")),
        Step("", _rollout(kubectl, "kubeflow", "deployment/ml-pipeline-ui")),
        Step(_("Installing {overlay}").format(overlay=overlay), (*kubectl, "apply", "-k", overlay), 3),
    ]
    for name in ("statefulset/object-store", "statefulset/postgres", "deployment/mlflow"):
        made.append(
            Step(_("Waiting for {name}").format(name=name.partition("/")[2]), _rollout(kubectl, "wukong", name))
        )
    return made


def _rollout(kubectl: Sequence[str], namespace: str, name: str) -> tuple[str, ...]:
    return (*kubectl, "--namespace", namespace, "rollout", "status", name, "--timeout=900s")


def closing_words() -> str:
    """Return what to type next, and the address of the UI."""
    return joined(
        [
            "",
            f"export KUBECONFIG={KUBECONFIG.absolute()}",
            _(
                "kubectl -n kubeflow port-forward svc/ml-pipeline-ui {page}:80    # then open http://localhost:{page}"
            ).format(page=PAGE),
            _("kubectl -n wukong port-forward svc/mlflow 5000:5000         # then open http://localhost:5000"),
            _("wukong submit training --host http://localhost:{page}         # or the UI: docs/cluster.md").format(
                page=PAGE
            ),
            _("make cluster-down                                           # deletes the cluster and its data"),
        ],
        "\n",
    )


def run(todo: Sequence[Step]) -> None:
    """Do the steps.

    Raises:
        StackError: one failed as often as it may; its output is above.
    """
    for step in todo:
        if step.says:
            echo(step.says)
        for attempt in range(1, step.tries + 1):
            if not subprocess.run(step.command, check=False).returncode:  # noqa: S603
                break
            if attempt == step.tries:
                raise StackError(
                    f"{' '.join(step.command)}: it failed, its output is above. Mend it and run `make cluster` again: "
                    "it goes on with what is missing"
                )


def _answer(command: Sequence[str], environment: Mapping[str, str] | None = None) -> list[str]:
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise StackError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.split("\n")


def main(arguments: list[str] | None = None) -> int:
    """Make the cluster or delete it; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.laptop_cluster", description=__doc__.split("\n", 1)[0])
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument(
        "--overlay", default="k8s/overlays/kind", help=translated(_("what is applied (default: %(default)s)"))
    )
    options = parser.parse_args(arguments)
    try:
        check_programs([name for name in PROGRAMS if shutil.which(name)])
        if options.command == "down":
            run([Step(_("Deleting the cluster"), ("kind", "delete", "cluster", f"--name={NAME}"))])
            KUBECONFIG.unlink(missing_ok=True)
            return 0
        _answer(["docker", "info"])
        KUBECONFIG.parent.mkdir(parents=True, exist_ok=True)
        listed = _answer(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])
        run(steps(_answer(["kind", "get", "clusters"]), listed, options.overlay))
        echo(closing_words())
    except StackError as error:
        echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
