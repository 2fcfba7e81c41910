"""``wukong submit``: lines for people of a run that it submits, or one JSON object for programs."""

from pathlib import Path
from typing import Annotated

import typer
import yaml

from cli import summary
from cli.kfp_api import Submitted
from cli.run_result import Outcome, Result, SubmitError
from cli.submit import Prepared, Submission, cluster_of, prepare, submit_prepared
from wukong import stages
from wukong.commands.output import Console, JsonOption, print_json, taking
from wukong.errors import WukongError
from wukong.runtime.language import _

_WIDTH = 11  # cells of a line's title


@taking(Submission)
def submit(
    asked: Submission,
    as_json: JsonOption = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Submit nothing; say what of the run does not fit on the cluster of the kubeconfig as it is now.",
        ),
    ] = False,
) -> None:
    """Start a pipeline on a cluster: upload it to Kubeflow Pipelines, start a run or a recurring one, wait for its end.

    What is uploaded is the file in pipelines/compiled. Stages whose inputs have not changed are reused. It ends with
    status 0 if the run has succeeded, 1 if it was refused before its first stage, 3 if it has failed, 4 if it was
    terminated, and 5 if its end was not seen: docs/ci.md. Example:

        wukong submit training --config my.yaml --param gpus_per_worker=1
    """
    console = Console(stderr=as_json)

    def show(begun: Submitted) -> None:
        console.print_titled(_("Recurring") if asked.every else _("Run"), begun.name, _WIDTH)
        console.print_titled(_("Page"), begun.url, _WIDTH)

    prepared: Prepared | None = None
    try:
        prepared = prepare(asked)
        api = prepared.connect()
        if dry_run:
            said = f"{prepared.file.stem} can be submitted to {api.host} as {prepared.run}; nothing was"
            console.print(said, soft_wrap=True, highlight=False)
            _look_for_room(console, prepared, cluster_of(api.namespace))
            result = prepared.result(Outcome.CHECKED)
        else:
            result = submit_prepared(
                prepared,
                api,
                records=as_json,
                on_start=show,
                on_change=lambda line: console.out(f"  {line}", highlight=False),
            )
    except WukongError as error:
        if as_json:
            refused, said = Outcome.REFUSED, str(error)
            _print(prepared.result(refused, said) if prepared else Result(outcome=refused, error=said))
        raise
    if as_json:
        _print(result)
    result.check()
    if result.outcome is Outcome.SUCCEEDED and prepared.measures:
        summary.print_tables(console, prepared.experiment, prepared.run)


def _print(result: Result) -> None:
    print_json(result.model_dump(mode="json"))


def _look_for_room(console: Console, prepared: Prepared, namespace: str) -> None:
    """Print what of a run's pods does not fit on the cluster of the kubeconfig, and what cannot be seen of it.

    Raises:
        SubmitError: something does not fit.
        RayJobError: there is no kubeconfig, or the cluster does not answer.
    """
    from cli import free_resources
    from infra.cluster_api import Cluster
    from ray_jobs.launch.kuberay.client import KubernetesApi, Timing
    from wukong.stages.ray_job import CONFIG_MAP, parse

    api = KubernetesApi(namespace, Timing(patience=10))
    template, settings = parse(api.read_config_map(CONFIG_MAP), namespace)
    jobs = {
        stage: free_resources.pods_of(prepared.experiment, template, settings, stage)
        for stage in _jobs_of(prepared.file)
    }
    lines, unseen = free_resources.unfit(Cluster(), namespace, jobs)
    for line in [*unseen, *lines]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if lines:
        raise SubmitError(
            f"pods of {len(lines)} groups do not fit on the cluster now: they wait until others end or nodes come; "
            f"give them less in the ConfigMap {namespace}/{CONFIG_MAP}, or add nodes"
        )
    if not unseen:
        pods = max(map(len, jobs.values()), default=0)
        console.print(f"All {len(jobs)} jobs fit on the cluster now; the largest has {pods} pods", highlight=False)


def _jobs_of(file: Path) -> list[str]:
    """Return the stages of a compiled pipeline that are Ray jobs, in the order in which they run."""
    specification = next(yaml.safe_load_all(file.read_text(encoding="utf-8")))
    graphs = [specification["root"], *specification["components"].values()]
    tasks = {name for graph in graphs for name in graph.get("dag", {}).get("tasks", {})}
    return [name for name in stages.JOBS if (stages.of(name).function or name).replace("_", "-") in tasks]
