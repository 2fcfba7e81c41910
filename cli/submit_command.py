"""What ``wukong submit`` prints of a run that it submits: lines for people, or one JSON object for programs."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from cli import summary
from cli.kfp_api import Pipelines, Submitted
from cli.run_result import Outcome, Result, SubmitError
from cli.submit import Prepared, cluster_of, prepare, submit_prepared
from wukong import stages
from wukong.commands.output import Console, print_json
from wukong.errors import WukongError
from wukong.runtime.language import _

_WIDTH = 11  # cells of a line's title


def submit_run(
    pipeline: str,
    config: Path,
    overrides: Sequence[str],
    given: Sequence[str],
    host: str,
    token: str | None,
    namespace: str | None,
    group: str | None,
    name: str | None,
    every: str | None,
    timeout: float,
    *,
    pinned: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Submit a run, and print what becomes of it.

    Args:
        pipeline: see ``cli.submit.submit``.
        config: the experiment's file.
        overrides: ``key.path=value`` entries.
        given: ``name=value`` entries, the pipeline's parameters.
        host: address of KFP.
        token: a bearer token.
        namespace: the user's.
        group: KFP's experiment.
        name: the name of the run.
        every: when the run recurs.
        timeout: seconds to wait for the run's end; 0 not to wait.
        pinned: refuse what is not bound to a revision and to digests.
        dry_run: upload and start nothing; say whether KFP answers, and what does not fit on the cluster.
        as_json: print the result as JSON on standard output, and all else on standard error.

    Raises:
        SubmitError: KFP cannot be reached or refuses, or the run did not succeed; of a dry run, something does not fit.
        ConfigError: there is no such pipeline or parameter, or the experiment is not valid.
    """
    console = Console(stderr=as_json)

    def show(begun: Submitted) -> None:
        console.print_titled(_("Recurring") if every else _("Run"), begun.name, _WIDTH)
        console.print_titled(_("Page"), begun.url, _WIDTH)

    prepared: Prepared | None = None
    try:
        prepared = prepare(
            pipeline, config, overrides=overrides, given=given, name=name, recurs=every is not None, pinned=pinned
        )
        api = Pipelines(host, token, namespace)
        if dry_run:
            said = f"{prepared.file.stem} can be submitted to {host} as {prepared.run}; nothing was"
            console.print(said, soft_wrap=True, highlight=False)
            _look_for_room(console, prepared, cluster_of(namespace))
            result = _known(prepared, Outcome.CHECKED)
        else:
            result = submit_prepared(
                prepared,
                api,
                group=group,
                every=every,
                timeout=timeout,
                records=as_json,
                on_start=show,
                on_change=lambda line: console.out(f"  {line}", highlight=False),
            )
    except WukongError as error:
        if as_json:
            _print(_known(prepared, Outcome.REFUSED, str(error)))
        raise
    if as_json:
        _print(result)
    result.check()
    if result.outcome is Outcome.SUCCEEDED and prepared.measures:
        summary.print_tables(console, prepared.experiment, prepared.run)


def _print(result: Result) -> None:
    print_json(result.model_dump(mode="json"))


def _known(prepared: Prepared | None, outcome: Outcome, error: str | None = None) -> Result:
    """Return what is known of a run that was not begun."""
    if prepared is None:
        return Result(outcome=outcome, error=error)
    return Result(
        outcome=outcome,
        error=error,
        run=prepared.run,
        experiment=prepared.experiment.name,
        source=prepared.source,
        images=prepared.images,
    )


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
