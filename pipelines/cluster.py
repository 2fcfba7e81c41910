"""What a pipeline on a cluster has besides its stages: parameters, a first and a last task, settings of pods.

A local run needs none of this: the command line has the experiment, and the environment the addresses.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from kfp import dsl, kubernetes
from kfp.dsl import structures

from components.functions import configure, record_end
from wukong import stages
from wukong.runtime import forwarded
from wukong.stages import access

EXPERIMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "experiment.yaml").read_text(encoding="utf-8"))
"""Default of every pipeline's ``experiment`` parameter. As a mapping, which KFP's page opens in an editor."""

FILL_IN = """
Press **Open Json Editor** at `experiment` and replace its queries and endpoint; `wukong config` prints all keys.

`overrides` changes single values, for instance `["crawl.max_queries=1000"]`.

`run` names the records, the MLflow run and the report; empty takes KFP's name of the run.

`source` stays empty: `wukong submit` says in it which revision of the experiment's file and of the code it submits.
"""
"""How to fill in the parameters that every pipeline has: KFP's page shows descriptions of pipelines alone."""

NUMBERS = """
`epochs`, `batch_size`, `learning_rate`: of pre-training. Empty takes the experiment's.

`workers`: Ray workers of both trainings. `gpus_per_worker`: 1 for a GPU each, 0 for none. Empty takes the experiment's.
"""
"""How to fill in the numbers. They are texts, because a number on KFP's page cannot be left empty."""

STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Annotations of components' pods: whoever saves nodes does not move them."""


@dataclass(frozen=True)
class Run:
    """Outputs of ``configure`` for the stages: the experiment's URI, the run's name, a pre-training to start from."""

    experiment: Any
    name: Any
    start: Any


@contextmanager
def run(
    experiment: Any,
    overrides: Any,
    name: Any,
    source: Any,
    *,
    numbers: Mapping[str, Any] = MappingProxyType({}),
    model: Any = "",
    continue_last_run: bool = False,
    names: Sequence[str] = stages.WHOLE_RUN,
) -> Iterator[Run]:
    """Check the experiment before the tasks of the block; afterwards record how the run ended, whatever happened.

    The check stands before the exit handler: a run that is refused there has written nothing that wants an end, and
    the stages' tasks get its outputs alone.

    Args:
        experiment: the pipeline's parameter.
        overrides: the pipeline's parameter.
        name: the pipeline's parameter; empty for KFP's name of the run.
        source: the pipeline's parameter.
        numbers: parameters of the pipeline that stand for numbers of the experiment, see ``configure``.
        model: see ``configure``, like the next one.
        continue_last_run: see ``configure``.
        names: names of the stages in the block; what they need must be there.
    """
    # The resource name: the other placeholder gives the name shown in the UI, "Run of training (8f1e9)", which neither
    # a label nor a folder can have.
    job = dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER
    made = configure(
        experiment=experiment,
        overrides=overrides,
        run=name,
        job=job,
        stages=list(names),
        model=model,
        continue_last_run=continue_last_run,
        source=source,
        **numbers,
    )
    prepare(made, "configure", "Check the run", retries=0)
    ended = record_end(experiment=experiment, overrides=overrides, run=name, job=job, stages=list(names))
    prepare(ended, "record_end", "Record the end", retries=1)
    with dsl.ExitHandler(ended, name="The run"):
        yield Run(made.outputs["experiment"], made.outputs["run"], made.outputs["start"])


def prepare_stages(tasks: Mapping[str, dsl.PipelineTask]) -> None:
    """Give the tasks of stages, by the stages' names, what their pods need, as the table of stages says."""
    for name, task in tasks.items():
        prepare(task, name, stages.of(name).title, memory=stages.of(name).memory)
        for secret, keys in forwarded.OPTIONAL_SECRETS.get(name, {}).items():
            kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=True)
        for secret, folder in forwarded.SECRET_FILES.get(name, {}).items():
            kubernetes.use_secret_as_volume(task, secret, folder, optional=True)


def prepare(task: dsl.PipelineTask, component: str, title: str, *, retries: int = 2, memory: str = "2Gi") -> None:
    """Give a task what its pod needs: a title, settings, credentials, resources, retries.

    A stage does its work in a RayJob and finds finished work by its manifest. So KFP's own cache is off, for pages too:
    it would hand on artifacts that may be gone, and it ends a run whose artifacts ML Metadata no longer knows.

    KFP starts a task again only when its pod was lost (``k8s/kubeflow/workflow-defaults.yaml``), not when the component
    has failed: what can be tried again there, the launcher tries. Argo counts ``backoff_max_duration`` from
    the start of the first attempt and starts none after it, so it is longer than any stage.

    Args:
        task: the task.
        component: its name, which says which credentials the pod gets (``wukong.stages.access``).
        title: what the UI calls it; the graph shows about 17 characters.
        retries: how often it is started again when its pod was lost.
        memory: limit of its pod.
    """
    task.set_display_name(title)
    task.set_caching_options(enable_caching=False)
    # Not by KFP's four methods: each inspects the whole call stack, which takes long in a process with many modules.
    task.container_spec.resources = structures.ResourceSpec(
        cpu_request="100m", cpu_limit="2", memory_request="256Mi", memory_limit=memory
    )
    if retries:
        task.set_retry(retries, backoff_duration="10s", backoff_factor=2.0, backoff_max_duration="365d")
    for annotation, value in STAY.items():
        kubernetes.add_pod_annotation(task, annotation, value)
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.use_config_map_as_env(task, "wukong-settings", {key: key for key in forwarded.TO_COMPONENTS})
    optional = {key: key for key in forwarded.OPTIONAL_TO_COMPONENTS}
    kubernetes.use_config_map_as_env(task, "wukong-settings", optional, optional=True)
    kubernetes.use_config_map_as_volume(task, *forwarded.STORE_CA, optional=True)
    for secret, keys in access.secrets_of_component(component).items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys})
