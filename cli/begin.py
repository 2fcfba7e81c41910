"""The checks of `wukong run` before the first stage, and the plan that `--dry-run` prints."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from infra import corpus
from infra.corpus import Corpus
from ray_jobs import plan
from ray_jobs.plan import Planned
from wukong import stages
from wukong.commands.output import Console, Table
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.model.cost import Size
from wukong.runs import run_records
from wukong.runtime import amounts
from wukong.runtime.language import _, translated
from wukong.stages import estimate, measured_rates, preflight, preflight_model
from wukong.stages.capacity import Machine


def check_experiment(experiment: Experiment, run: str, *, containers: bool = False) -> None:
    """Check what can be checked before anything is started or written.

    Raises:
        ConfigError: the run's name is not allowed, there is no hold-out, or containers cannot see the files.
    """
    preflight.check_name(experiment, run)
    preflight.check_stages(experiment)
    if experiment.storage.startswith("file://") and containers:
        raise ConfigError(
            f"storage: {experiment.storage} is a folder of this machine, which the containers of --runner docker do "
            "not see: name an s3:// bucket"
        )
    if containers and (seen := [f"{key}: {uri}" for key, uri in experiment.uris().items() if uri.startswith("file:")]):
        said = "the containers of --runner docker do not see files of this machine; put them into a bucket:"
        raise ConfigError("\n  ".join([said, *seen]))


def on_the_demo(experiment: Experiment, demo: Corpus, *, of_sample: bool) -> tuple[Experiment, list[str]]:
    """Return the experiment as it can be run on the demo corpus, and what its reader must know.

    The query list is written to storage.

    Args:
        experiment: the experiment, on the whole corpus.
        demo: the corpus, or a sample of it.
        of_sample: whether the experiment's crawl is of this corpus alone, with an address of its own.

    Raises:
        StorageError: the query list cannot be written.
    """
    if of_sample:
        experiment = corpus.of_sample(experiment, demo)
    experiment, left_out = corpus.without_missing(experiment, demo, corpus.HOST)
    corpus.upload_queries(demo, experiment.crawl.queries)
    return experiment, [*demo.problems, *left_out]


@contextmanager
def model_being_checked(experiment: Experiment) -> Iterator["Future[Size]"]:
    """Check the model in another process while the block does other work: importing torch takes time and memory.

    Yields:
        The model's size, or the ConfigError that says why it cannot be built.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.submit(_check_with_torch, experiment)


def _check_with_torch(experiment: Experiment) -> Size:
    """Run the checks whose libraries are slow to import."""
    from wukong.validate import suites

    suites.check_severities(experiment)
    preflight_model.check_sets(experiment)
    return preflight_model.check_model(experiment)


def check_and_plan(experiment: Experiment, home: Path, size: Size, urls: int | None = None) -> list[Planned]:
    """Check that the experiment's files exist and that this machine suffices; return the plan of the run.

    Args:
        experiment: the experiment.
        home: the home of the embedded stack, whose buckets lie there.
        size: the size of the model.
        urls: number of images that come in, if it is known.

    Raises:
        ConfigError: something is missing or too small; the message names the key.
        StorageError: the object store cannot be reached.
    """
    preflight.check_access(experiment)
    is_new = run_records.latest(experiment, "crawl") is None
    preflight.check_world(experiment, connect=is_new)
    if is_new:
        preflight.warn_of_hosts(experiment.crawl)
        preflight.warn_of_few(experiment, urls)
    preflight.check_lists(experiment)
    preflight_model.check_weights(experiment)  # not beside the model: now the embedded store answers
    low = preflight.expected_urls(experiment)[0] if urls is None else urls
    machine = Machine.here(_disk(experiment, home))
    planned = plan.of_run(experiment, low, size, machine.cores)
    filtered = next((entry.finished for entry in planned if entry.stage == "filter"), None)
    if filtered is not None:
        preflight.check_batches(experiment, filtered.counts["pairs"], "pairs that the filter has kept")
    elif urls is not None:
        preflight.check_batches(experiment, urls, "pictures of the corpus")
    trains = any(entry.finished is None for entry in planned if entry.stage in stages.TRAININGS)
    needed = sum(int(entry.estimate.bytes) for entry in planned)
    if "AWS_ENDPOINT_URL_S3" in os.environ and "127.0.0.1" not in os.environ["AWS_ENDPOINT_URL_S3"]:
        needed = 0  # another store does not tell how much it can hold
    preflight.check_machine(experiment, machine, needed, size if trains else None)
    return planned


def print_plan(
    console: Console, experiment: Experiment, planned: Sequence[Planned], free: int, known: int | None
) -> None:
    """Print what a run would do, stage by stage, and where the figures come from.

    Args:
        console: prints it.
        experiment: the experiment.
        planned: by ``check_and_plan``.
        free: bytes free where it writes.
        known: number of images that come in, if it is known.
    """
    title = _("What a run of {name} would do").format(name=experiment.name)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in (_("stage"), "", _("about"), _("about"), _("reads"), _("writes")):
        table.add_column(column, overflow="fold", justify="right" if column == "about" else "left")
    for entry in planned:
        state = translated(_("reused") if entry.finished else _("goes on") if entry.begun else _("to do"))
        about, mark = entry.estimate, "*" if entry.measured else ""
        size, time = ("", "") if entry.finished else (amounts.size(about.bytes), amounts.duration(about.seconds))
        reads = "\n".join(_short(uri, experiment) for uri in entry.reads) or "-"
        table.add_row(entry.stage, state, size, time + mark, reads, _short(entry.writes, experiment))
    console.print(table)
    to_do, rates = [entry for entry in planned if entry.finished is None], measured_rates.load()
    total = sum(entry.estimate.bytes for entry in to_do), sum(entry.estimate.seconds for entry in to_do)
    console.print(
        _(
            "In all about {total} and {time}; {free} are free. Places begin with {root}/. Figures with * come from "
            "an earlier run, the others from rates of {machine}."
        ).format(
            total=amounts.size(total[0]),
            time=amounts.duration(total[1]),
            free=amounts.size(free),
            root=experiment.root,
            machine=rates.machine,
        ),
        highlight=False,
    )
    if known is None and experiment.crawl.source.searched and planned[0].finished is None:
        most = preflight.expected_urls(experiment)[1]
        console.print(
            _(
                "How much a search finds is not known before: at most some {most:,} pictures, {float}, with "
                "crawl.max_queries and crawl.max_results_per_query."
            ).format(most=most, float=amounts.size(float(most * estimate.DATA_BYTES))),
            highlight=False,
        )
    console.print(_("Nothing was run (--dry-run), and no service was left running."), highlight=False)


def free_at(experiment: Experiment, home: Path) -> int:
    """Bytes free on the disk that the experiment writes to."""
    return Machine.here(_disk(experiment, home)).free


def _disk(experiment: Experiment, home: Path) -> Path:
    if experiment.storage.startswith("file://"):
        return Path(unquote(urlsplit(experiment.storage).path))
    return home


def _short(uri: str, experiment: Experiment) -> str:
    return uri.removeprefix(experiment.root + "/")
