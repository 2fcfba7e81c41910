"""What a pipeline on a cluster has besides its stages: parameters, a first and a last task, settings of pods.

A local run needs none of this: the command line has the experiment, and the environment the addresses.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl, kubernetes

from components.configure import configure
from components.record_end import record_end
from wukong import stages

EXPERIMENT = json.dumps(
    yaml.safe_load((Path(__file__).parent / "experiment.yaml").read_text(encoding="utf-8")), ensure_ascii=False
)
"""Default of every pipeline's ``experiment`` parameter; on one line, because KFP repeats it in a comment."""

SETTINGS = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI", "WUKONG_CLUSTER", "DO_NOT_TRACK")
"""Keys of the ConfigMap ``wukong-settings`` that components get."""

SECRETS = {
    "wukong-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "wukong-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}
"""Secrets that components get, with their keys."""


@dataclass(frozen=True)
class Run:
    """Outputs of ``configure`` for the stages: the experiment as JSON, the run's name, a pre-training to start from."""

    experiment: Any
    name: Any
    start: Any


@contextmanager
def run(
    experiment: Any,
    overrides: Any,
    name: Any,
    *,
    epochs: Any = -1,
    batch_size: Any = -1,
    learning_rate: Any = -1.0,
    workers: Any = -1,
    gpus_per_worker: Any = -1,
    continue_last_run: bool = False,
    names: Sequence[str] = stages.WHOLE_RUN,
) -> Iterator[Run]:
    """Check the experiment before the tasks of the block; afterwards record how the run ended, whatever happened.

    Args:
        experiment: the pipeline's parameter, YAML or JSON.
        overrides: the pipeline's parameter.
        name: the pipeline's parameter; empty for KFP's name of the run.
        epochs: see ``components.configure``, like the next four.
        batch_size: of pre-training.
        learning_rate: of pre-training.
        workers: of both trainings.
        gpus_per_worker: of both trainings.
        continue_last_run: see ``components.configure``.
        names: of the stages in the block; what they need must be there.
    """
    # The resource name: the other placeholder gives the name shown in the UI, "Run of training (8f1e9)", which neither
    # a label nor a folder can have.
    job = dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER
    ended = record_end(experiment=experiment, overrides=overrides, run=name, job=job)
    prepare(ended, "Record how the run ended", retries=1)
    with dsl.ExitHandler(ended, name="The run"):
        made = configure(
            experiment=experiment,
            overrides=overrides,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            run=name,
            job=job,
            continue_last_run=continue_last_run,
            stages=list(names),
        )
        prepare(made, "Check the experiment", retries=0)
        yield Run(made.outputs["experiment"], made.outputs["run"], made.outputs["start"])


def prepare_stages(tasks: Mapping[str, dsl.PipelineTask]) -> None:
    """Give the tasks of stages, by the stages' names, what their pods need, as the table of stages says."""
    for name, task in tasks.items():
        prepare(task, stages.of(name).title, memory=stages.of(name).memory)


def prepare(task: dsl.PipelineTask, title: str, *, retries: int = 2, memory: str = "2Gi") -> None:
    """Give a task what its pod needs: a title, settings, credentials, resources, retries.

    A stage does its work in a RayJob and finds finished work by its manifest. So KFP's own cache is off: it would hand
    on a manifest whose data may be gone.

    Args:
        task: the task.
        title: what the UI calls it.
        retries: how often it is started again when it has failed.
        memory: limit of its pod.
    """
    task.set_display_name(title)
    task.set_caching_options(enable_caching=False)
    task.set_cpu_request("250m").set_cpu_limit("2")
    task.set_memory_request("512Mi").set_memory_limit(memory)
    if retries:
        task.set_retry(retries, backoff_duration="30s", backoff_factor=2.0, backoff_max_duration="600s")
    kubernetes.set_image_pull_policy(task, "IfNotPresent")
    kubernetes.use_config_map_as_env(task, "wukong-settings", {key: key for key in SETTINGS})
    for secret, keys in SECRETS.items():
        kubernetes.use_secret_as_env(task, secret, {key: key for key in keys})


def cached(task: dsl.PipelineTask) -> None:
    """Let KFP reuse a task's artifacts: for pages that depend on manifests alone."""
    task.set_caching_options(enable_caching=True)
