"""``wukong check``: whether experiments can be run on a cluster, before anything is submitted."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import yaml

from ray_jobs.launch.kuberay.manifest import make_ray_job
from wukong import stages
from wukong.commands.app import SetOption
from wukong.commands.output import echo
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError, DataError, WukongError
from wukong.evaluate import set_folders
from wukong.runtime import environment
from wukong.stages import estimate, fit, measured_rates, overlay, preflight, preflight_model, start
from wukong.stages.estimate import Work
from wukong.stages.ray_job import CONFIG_MAP, Settings, parse

K8S = Path(__file__).parents[1] / "k8s"
"""The manifests of an installation."""
T = TypeVar("T")


def check(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Experiments, YAML files.")],
    overlay: Annotated[
        str, typer.Option("--overlay", help="Whose resources the stages get: base, or a folder of k8s/overlays.")
    ] = "gpu",
    stand_in: Annotated[
        bool,
        typer.Option(
            "--stand-in",
            help="Ask neither a store nor a search engine: whatever the experiment names is taken to be there.",
        ),
    ] = False,
    overrides: SetOption = None,
) -> None:
    """Check that experiments can be run on a cluster: settings, files, search, model, and what each stage's pods have.

    The hub is not asked: what only it has is refused, because trainings on a cluster do not reach it. Example:

        wukong check configs/paper/*.yaml --stand-in
    """
    template, settings = resources_of(overlay)
    wrong = 0
    for path in configs:
        try:
            work = check_one(documents.load(path, overrides), template, settings, stand_in=stand_in)
        except WukongError as error:
            wrong += 1
            echo(f"{path}: {error}", err=True)
        else:
            size, planned = work.size, fit.estimates(work)
            echo(f"{path}: can be run on {overlay}; {size.weights:,} weights, {size.image:,} of the image tower")
            for fact in fit.facts(work, planned):
                echo(f"  {fact}")
            for note in fit.notes(work, planned):
                echo(f"  Slow: {note}.")
    if wrong:
        raise typer.Exit(1)


def resources_of(overlay: str) -> tuple[dict[str, Any], Settings]:
    """Return the RayJob template and the stages' resources that an installation of an overlay has.

    Raises:
        ConfigError: there is no such overlay.
    """
    files = [K8S / "base" / "ray.yaml"]
    if overlay != "base":
        files.append(K8S / "overlays" / overlay / "ray-job.yaml")
        if not files[-1].is_file():
            known = sorted(path.parent.name for path in K8S.glob("overlays/*/ray-job.yaml"))
            raise ConfigError(
                f"--overlay {overlay}: its resources are not in k8s/overlays; use base, {', '.join(known)}"
            )
    data: dict[str, str] = {}
    for path in files:
        for each in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if each["kind"] == "ConfigMap" and each["metadata"]["name"] == CONFIG_MAP:
                data |= each["data"]
    return parse(data, f"overlay {overlay}")


def check_one(experiment: Experiment, template: Mapping[str, Any], settings: Settings, *, stand_in: bool) -> Work:
    """Check one experiment, by the checks that a run makes before its first stage, and against the stages' pods.

    Args:
        experiment: the experiment.
        template: a RayJob manifest.
        settings: what stages may use.
        stand_in: whether neither a store nor an engine is asked.

    Returns:
        What it has to do, with the fewest pairs that may come in and pass the gate.

    Raises:
        ConfigError: it cannot be run; the message names every key that was found wrong.
        StorageError: the store cannot be reached.
    """
    problems = list(_out_of_reach(experiment))

    def collect(check: Callable[[], T]) -> T | None:
        try:
            return check()
        except (ConfigError, DataError) as error:
            problems.append(str(error).removeprefix("the experiment cannot be run:\n  "))
            return None

    collect(lambda: preflight.check_stages(experiment))
    urls = 0
    if stand_in:
        if experiment.crawl.source.searched:  # as many words as there may be; of another list no size is made up
            urls, most = estimate.urls(experiment, experiment.crawl.max_queries)
            preflight.warn_of_few(experiment, most)
    else:
        environment.use_for(experiment.storage)
        preflight.check_access(experiment)
        experiment = collect(lambda: start.as_it_begins(experiment)) or experiment
        collect(lambda: preflight.check_world(experiment, connect=True))
        collect(lambda: preflight.check_lists(experiment))
        if not problems:  # else the lists may be missing
            urls = preflight.expected_urls(experiment)[0]
            preflight.warn_of_few(experiment)
    on_hub = any(".weights: 'hub" in each for each in problems)
    size = None if on_hub else collect(lambda: preflight_model.check_model(experiment))
    if size is not None and not stand_in:
        collect(lambda: preflight_model.check_weights(experiment))
    for name in stages.JOBS:  # to make a job's manifest checks the template too
        make_ray_job(template, settings, experiment, "check", name, ["python", "-m", "ray_jobs", name], {})
    if size is not None:
        capacity = overlay.capacity_of(experiment, template, settings)
        pairs = max(urls, experiment.validation.min_pairs)  # with fewer the gate refuses it
        names = [] if stand_in or problems else experiment.published_sets
        there = set_folders.bytes_of(experiment.evaluate.sets, names) if names else {}
        work = Work(experiment, pairs, pairs, size, capacity, measured_rates.load(), sets=there)
        problems += fit.problems(work, fit.estimates(work))
    if problems or size is None:
        raise ConfigError("\n  ".join(["it cannot be run:", *problems]))
    return work


def _out_of_reach(experiment: Experiment) -> Iterator[str]:
    """Say what the pods of a cluster do not see: the internet, but for the crawl's, and files of this machine."""
    model = experiment.model
    weights = [("image", model.image.weights), ("text", model.text.weights)]
    for key, value in [] if experiment.pretrain.from_model else weights:
        if value.partition(":")[0] == "hub":
            name = model.image.name if key == "image" else value.removeprefix("hub:").rpartition("/")[2]
            yield (
                f"model.{key}.weights: {value!r}: only the crawl reaches the internet on a cluster; bring them to the "
                f"bucket by `wukong weights get {name} --to s3://BUCKET/PREFIX`, and name the URI that it prints"
            )
    named = {"storage": experiment.storage, **experiment.uris()}
    for key, uri in named.items():
        if uri.startswith("file:"):
            yield f"{key}: {uri} is on this machine, which pods do not see: name an s3:// address"
