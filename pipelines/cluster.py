"""What a pipeline on a cluster has besides its stages: parameters, a first and a last task, settings of pods.

A local run needs none of this: the command line has the experiment, and the environment the addresses.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp import dsl, kubernetes
from kfp.dsl import structures

from components.functions import configure, record_end
from components.parameters import IN_FORM
from wukong import stages
from wukong.runtime import forwarded
from wukong.stages import access

EXPERIMENT: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "experiment.yaml").read_text(encoding="utf-8"))
"""Default of every pipeline's ``experiment`` parameter. As a mapping, which KFP's page opens in an editor."""

_OF_ALL = ("experiment", "overrides", "run", "source")

STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
"""Annotations of components' pods: whoever saves nodes does not move them."""


@dataclass(frozen=True)
class Run:
    """Outputs of ``configure`` for the stages: the experiment's URI, the run's name, a pre-training to start from."""

    experiment: Any
    name: Any
    start: Any


def pipeline(
    name: str, summary: str, takes: Sequence[str] = (), **defaults: str
) -> Callable[[Callable[[Mapping[str, Any]], None]], Any]:
    """Make a KFP pipeline of a function that gets its parameters by name.

    The pipeline's description says how to fill in each: KFP's page shows no parameter's own.

    Args:
        name: its name in KFP.
        summary: what it does, in one line.
        takes: which of ``Parameters`` it has, besides those that every pipeline has.
        defaults: of parameters that have another one here.
    """
    has = {each: field for each, field in IN_FORM.items() if each in (*_OF_ALL, *takes)}
    defaults_of = {each: field.default for each, field in has.items()}
    defaults_of |= {"experiment": EXPERIMENT, "of_run": inspect.Parameter.empty, **defaults}
    signature = [
        inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=defaults_of[each], annotation=field.annotation)
        for each, field in has.items()
    ]

    def made(function: Callable[[Mapping[str, Any]], None]) -> Any:
        def of_channels(*channels: Any) -> None:
            function(dict(zip(has, channels, strict=True)))

        described = [f"    {each}: {field.description}" for each, field in has.items()]
        of_channels.__doc__ = "\n".join([f"{inspect.getdoc(function)}\n\nArgs:", *described])
        of_channels.__name__ = function.__name__
        vars(of_channels)["__signature__"] = inspect.Signature(signature, return_annotation=None)
        form = "".join(f"\n`{each}`: {field.description}\n" for each, field in has.items())
        return dsl.pipeline(name=name, description=f"{summary}\n{form}")(of_channels)

    return made


@contextmanager
def run(
    given: Mapping[str, Any], *, continue_last_run: bool = False, names: Sequence[str] = stages.WHOLE_RUN
) -> Iterator[Run]:
    """Check the experiment before the tasks of the block; afterwards record how the run ended, whatever happened.

    The check stands before the exit handler: a run that is refused there has written nothing that wants an end, and
    the stages' tasks get its outputs alone.

    Args:
        given: the pipeline's parameters, by name.
        continue_last_run: whether the experiment continues its own last run.
        names: names of the stages in the block; what they need must be there.
    """
    # The resource name: the other placeholder gives the name shown in the UI, "Run of training (8f1e9)", which neither
    # a label nor a folder can have.
    given = {**given, "job": dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER, "stages": list(names)}
    known = {name: value for name, value in given.items() if name in configure.component_spec.inputs}
    made = configure(continue_last_run=continue_last_run, **known)
    prepare(made, "configure", "Check the run", retries=0)
    ended = record_end(**{name: given[name] for name in ("experiment", "overrides", "run", "job", "stages")})
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
