"""Checks before the first stage, so that a run does not fail after an hour for a reason that can be known now.

``wukong.config.experiment`` refuses values that are wrong in themselves. The checks here need the world: whether the
files that the experiment names exist, whether the engine answers, whether disk, memory and GPUs suffice. Those that
need torch are in ``wukong.stages.preflight_model``. The command line checks before it starts a run, the first component
of a pipeline before it hands the experiment on. Every message names the key, the value, and what is allowed.
"""

import logging
import os
import socket
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from urllib.parse import urlsplit

from wukong import stages
from wukong.config.crawl import Crawl
from wukong.config.experiment import Experiment
from wukong.config.model import TEXT_FILES
from wukong.crawl.source import Listed
from wukong.curate import rules
from wukong.errors import ConfigError, WukongError
from wukong.evaluate import set_folders
from wukong.model.cost import Size
from wukong.runtime.environment import CONNECT_TO
from wukong.stages import estimate, fit, overlay, run_paths, start
from wukong.stages.capacity import Machine
from wukong.store import address, fence, manifest, s3_requests, storage

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_HOSTS, _LOOKUP_SECONDS = 8, 4.0
"""Hosts of a list that are looked up, and how long for all of them."""
_GIB = 2**30


def check_name(experiment: Experiment, run: str) -> None:
    """Check that a run's name can be the name of a folder.

    Raises:
        ConfigError: it cannot.
    """
    try:
        run_paths.uri_of(experiment, run, "")
    except ConfigError as error:
        raise ConfigError(f"--name: {error}") from error


def check_stages(experiment: Experiment, names: Collection[str] = stages.RECORDED) -> None:
    """Check that the experiment has all settings that the stages need; this reads no file.

    Args:
        experiment: the experiment.
        names: names of the stages that will run.

    Raises:
        ConfigError: a setting is missing or cannot be; the message names every key.
    """
    problems = []
    if "evaluate" in names and not (experiment.filter.split.holdouts or experiment.evaluate.tasks):
        problems.append(
            "filter.split.holdouts: there is none, so that nothing could be measured after training; hold out "
            "captions, for instance held_out_captions: 0.1 and holdouts: "
            '[{name: held-out, source: "*", captions: unseen}], or name published sets in evaluate.tasks'
        )
    for training in stages.TRAININGS:
        settings = stages.training_of(experiment, training)
        if training in names and settings.gpus_per_worker > 1:
            workers = settings.workers * settings.gpus_per_worker
            problems.append(
                f"{training}.gpus_per_worker: {settings.gpus_per_worker}: a worker trains on one device; write 1, "
                f"and {training}.workers: {workers} for as many GPUs. How many of them share a pod, the cluster's "
                "gpus_per_pod says"
            )
    problems += fit.unknown_sets(experiment, names)
    if "evaluate" in names:
        problems += [
            f"evaluate.tasks: {name!r} is the name of a published set, so a hold-out needs another one"
            for name in experiment.held_out_tasks
            if name in set_folders.NAMES
        ]
    refuse(problems)


def check_shared_storage(experiment: Experiment) -> None:
    """Check that all machines of a Ray cluster see what the stages write; call it where there are several.

    Raises:
        ConfigError: the storage is a folder, which each of them has for itself.
    """
    if experiment.storage.startswith("file://"):
        raise ConfigError(
            f"storage: {experiment.storage} is a folder of one machine, and the Ray cluster has several, which would "
            "not see each other's files: name a bucket that all of them reach, s3://BUCKET, or use one machine"
        )


def check_world(experiment: Experiment, names: Collection[str] = stages.RECORDED, *, connect: bool = False) -> None:
    """Check that the files and addresses exist that the experiment names and the stages read.

    Args:
        experiment: the experiment.
        names: names of the stages that will run.
        connect: also check that the search engine's address answers.

    Raises:
        ConfigError: something is missing or of another kind; the message names every key.
        StorageError: the object store cannot be reached.
    """
    checks, sections = _checks(experiment), stages.sections_of(names)
    problems = []
    for key, uri in experiment.uris().items():
        if key.partition(".")[0] not in sections:
            continue
        if why := checks[key.partition("[")[0]](uri):
            problems.append(f"{key}: {why}")
    if experiment.crawl.engine == "urls" and "crawl" in sections and not experiment.crawl.politeness.is_signed:
        log.warning("crawl.politeness.contact is empty: owners of the listed sites cannot know whom to write to")
    if experiment.crawl.source.searched and "crawl" in sections:
        problems += _unsigned(experiment.crawl)
        problems += _unanswered(experiment.crawl.endpoint) if connect else ()
    refuse(problems)


def warn_of_hosts(crawl: Crawl) -> None:
    """Warn of the first hosts of a list of URLs that the crawl will refuse, or does not find; DNS is asked.

    Raises:
        DataError: the list cannot be read.
    """
    from wukong.crawl.addresses import ConnectTo, is_public, looked_up

    opened = ConnectTo.from_environment().of_crawl(crawl.endpoint).targets
    ports = {host: port for host, port in _first_hosts(crawl).items() if host not in opened}
    for host, found in looked_up(ports, _LOOKUP_SECONDS).items():
        said = f"crawl.endpoint: {host}, a host of its URLs,"
        if not found:
            log.warning("%s has no address in DNS: its pictures will fail", said)
        elif not any(map(is_public, found)):
            target = f"[{found[0]}]" if ":" in found[0] else found[0]
            mend = f"export {CONNECT_TO}={host}={target}:{ports[host]}"
            log.warning(
                "%s is at %s, no public address, so its pictures will be refused. If it is your own: %s",
                *(said, target, mend),
            )


def check_lists(experiment: Experiment) -> None:
    """Check that the lists that the experiment names can be read; this imports what the crawl and the filter import.

    Raises:
        ConfigError: an opt-out list has a wrong line, the lists of sensitive words have no word, or a file is another
            one than a rule expects; names the key.
    """
    from wukong.crawl.optout import OptOut

    problems = []
    for key in ("crawl.politeness.opt_out", "release.opt_out"):
        if uri := experiment.uris().get(key):
            try:
                OptOut.load(uri)
            except ConfigError as error:
                problems.append(f"{key}: {error}")
    for rule in rules.REGISTRY:
        named = [f"filter.{key}: {uri}" for key, uri in rules.uris(experiment.filter, [rule]).items()]
        for read in (rule.load, rule.verify) if named else ():
            try:
                read(experiment.filter)
            except ConfigError as error:
                problems.append(f"{', '.join(named)}: {error}")
    refuse(problems)


def refuse(problems: Collection[str]) -> None:
    """Raise a ``ConfigError`` that names all problems of an experiment, if there are any."""
    if problems:
        raise ConfigError("\n  ".join(["the experiment cannot be run:", *problems]))


def _checks(experiment: Experiment) -> Mapping[str, Callable[[str], str]]:
    """Return a check for each key that is a URI: it returns why the URI is wrong, which names it, or an empty text."""
    source = experiment.crawl.source
    return {
        "crawl.queries": _of_file if source.searched else lambda _: "",
        **({"crawl.endpoint": source.check} if isinstance(source, Listed) else {}),
        "crawl.politeness.opt_out": _of_file,
        "crawl.previous": lambda uri: _of_stage(uri, "crawl"),
        **{f"filter.{key}": partial(rule.problem, key) for rule in rules.REGISTRY for key in rule.uris},
        "validation.reference": lambda uri: _of_stage(uri, "validate"),
        "release.opt_out": _of_file,
        "evaluate.sets": lambda uri: _of_sets(uri, experiment.published_sets),
        "filter.decontaminate.sets": lambda uri: _of_sets(uri, experiment.decontaminated_sets),
        "pretrain.from_model": lambda uri: _of_folder(uri, start.FILES),
        "model.image.weights": _of_file,
        "model.text.vocabulary": _of_file,
        "model.text.weights": lambda uri: _of_folder(uri, TEXT_FILES),
    }


def _of_file(uri: str) -> str:
    if storage.exists(uri):
        return ""
    if storage.list_files(uri):
        return f"{uri} is a folder; name a file in it"
    return f"{uri} does not exist; name a file that is there"


def _of_folder(uri: str, files: Collection[str]) -> str:
    missing = [name for name in files if not storage.exists(storage.join(uri, name))]
    return f"{uri} lacks {', '.join(missing)}; name a folder with {', '.join(files)}" if missing else ""


def _of_sets(uri: str, names: Collection[str]) -> str:
    """Check that there are files of each set; whether it is the published one, ``check_sets`` says."""
    if missing := [name for name in names if not storage.list_files(storage.join(uri, name))]:
        return (
            f"{uri} has nothing in {', '.join(f'{name}/' for name in missing)}; docs/evaluation-sets.md says what to "
            "download and what the folder of a set holds"
        )
    return ""


def _of_stage(uri: str, stage: str) -> str:
    try:
        name = manifest.load(uri).stage
    except WukongError as error:
        return f"{uri} is not the manifest of a {stage} stage ({error})"
    return "" if name == stage else f"{uri} is the manifest of a {name} stage; name one of a {stage} stage"


def _unsigned(crawl: Crawl) -> Iterator[str]:
    """Yield a problem if a search engine that is not the operator's own could not know who asks it.

    One whose address the operator has set is the operator's own.
    """
    from wukong.crawl.addresses import ConnectTo, is_public_name

    host = urlsplit(crawl.endpoint).hostname or ""
    is_ours = not is_public_name(host) or host in ConnectTo.from_environment().targets
    if not is_ours and not crawl.politeness.is_signed:
        yield (
            f"crawl.politeness.contact: {host} would be asked, and pictures be fetched, by a crawler whose operator "
            "nobody can reach: write your e-mail address or a page about your crawl, for instance "
            "--set crawl.politeness.contact=crawl@university.example"
        )


def _first_hosts(crawl: Crawl) -> dict[str, int]:
    """Return the hosts of the first URLs of a list, and their ports."""
    from wukong.crawl.status import FetchError
    from wukong.crawl.url import normalise

    hosts: dict[str, int] = {}
    source = crawl.source
    if not isinstance(source, Listed) or crawl.engine == "published_set" or not (lists := source.lists(crawl)):
        return hosts
    first = next(source.read(lists[0], 0, crawl), None)
    for url in first["url"].to_pylist() if first is not None else ():
        try:
            parts = urlsplit(normalise(url))
        except FetchError:
            continue  # a file, or no URL, which the crawl counts
        hosts[parts.hostname or ""] = parts.port or (443 if parts.scheme == "https" else 80)
        if len(hosts) == _HOSTS:
            break
    return hosts


def _unanswered(endpoint: str) -> Iterator[str]:
    """Yield a problem if nothing answers at a search engine's address; no proxy is used, as in the crawler."""
    from wukong.crawl.addresses import ConnectTo

    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    address = ConnectTo.from_environment().targets.get(host) or (
        host,
        parts.port or (443 if parts.scheme == "https" else 80),
    )
    try:
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        yield (
            f"crawl.endpoint: nothing answers at {endpoint} ({error.strerror or error}); give the address of a search "
            "that this machine can reach, or set WUKONG_CONNECT_TO"
        )


def expected_urls(experiment: Experiment) -> tuple[int, int]:
    """Return the fewest and the most pictures that may be expected to come in; lists are counted, nothing is searched.

    Raises:
        ConfigError: the query list cannot be read.
        DataError: the pictures' list cannot be read.
    """
    crawl, source = experiment.crawl, experiment.crawl.source
    if isinstance(source, Listed):
        count = source.count(crawl)
        return count, count
    from wukong.crawl.queries import read_queries

    return estimate.urls(experiment, len(read_queries(crawl.queries, crawl.max_queries)))


def warn_of_few(experiment: Experiment, pictures: int | None = None) -> None:
    """Warn where the gate asks for more pairs than can come in; pairs that are held out by caption are none of them.

    Args:
        experiment: the experiment.
        pictures: the most that come in; None to count the lists.

    Raises:
        ConfigError: the query list cannot be read.
        DataError: the pictures' list cannot be read.
    """
    most = expected_urls(experiment)[1] if pictures is None else pictures
    for why in fit.too_few(experiment, round(most * (1 - experiment.filter.split.held_out_captions))):
        log.warning("%s", why)


def check_store(experiment: Experiment) -> None:
    """Check that what a run crawls and filters fits the object store, where an installation says what that holds.

    What lies in the store already is not counted, and neither are models and stored features.

    Raises:
        ConfigError: the fewest pictures that may be expected do not fit; says what is needed, and the remedy.
        DataError: the pictures' list cannot be read.
    """
    holds = os.environ.get(overlay.STORE_CAPACITY)
    if not holds or not experiment.storage.startswith("s3://"):
        return
    room = int(overlay.amount_of(holds))
    few, many = (fit.too_full(room, estimate.DATA_BYTES * urls) for urls in expected_urls(experiment))
    refuse([f"storage: {why}" for why in few])
    for why in many:
        log.warning("storage: of a search that finds as much as it may, %s", why)


def check_access(experiment: Experiment) -> None:
    """Check that a run may do at its object store what it does there, by a file that is deleted again.

    The file lies where the run's experiment is stored: on a cluster the key of the first component writes there, and in
    few other places. What the store does not do and a run can do without is logged: conditional writes, and to forget
    what is deleted.

    Raises:
        StorageError: something is refused; says what the key needs.
    """
    if not experiment.storage.startswith("s3://"):
        return
    file = storage.join(experiment.root, "experiments", f"_check-{uuid.uuid4().hex}")  # not .json: no backup reads it
    storage.write_json(file, {})
    try:
        storage.list_files(file)
        why = fence.why_unconditional(file)
    finally:
        storage.delete(file)
    store, bucket = address.of_environment(), file.removeprefix("s3://").partition("/")[0]
    versions = s3_requests.keeps_versions(store, bucket)
    if why:
        log.warning(
            "%s has no conditional writes (%s): runs that make the same output at once all work, an attempt on a lost "
            "node could replace a newer one's manifest, and `wukong gc` deletes nothing%s",
            experiment.storage,
            why,
            ". "
            + "The bucket keeps versions; some stores heed conditions only where it does not"
            + " (docs/cluster.md)"
            if versions
            else "",
        )
    if versions and not s3_requests.expires_versions(store, bucket):
        log.warning(
            "the bucket %s keeps what is deleted or overwritten, and has no lifecycle rule that deletes it: its room "
            "is never free again (docs/store.md)",
            bucket,
        )


def check_batches(experiment: Experiment, pairs: int, what: str) -> None:
    """Check that each training has pairs for one batch.

    Args:
        experiment: the experiment.
        pairs: how many there are at most.
        what: what they are, for the message.

    Raises:
        ConfigError: a batch is larger; the message names every key.
    """
    sizes = {name: stages.training_of(experiment, name).batch_size for name in stages.TRAININGS}
    refuse(
        [
            f"{name}.batch_size: {size:,} is more than the {pairs:,} {what}: give at most so many"
            for name, size in sizes.items()
            if size > pairs
        ]
    )


def check_machine(
    experiment: Experiment,
    machine: Machine,
    needed: int,
    size: Size | None = None,
) -> None:
    """Check that a run fits a machine.

    Args:
        experiment: the experiment.
        machine: the machine.
        needed: bytes that the stages will write.
        size: the model's; None if none is trained.

    Raises:
        ConfigError: it does not fit; the message names every key.
    """
    problems = []
    if needed > machine.free:
        problems.append(
            f"storage: {experiment.storage} needs about {needed / _GIB:.1f} GiB for this run and "
            f"{machine.free / _GIB:.1f} GiB are free there: free some space, or name a place on a larger disk (of "
            "the embedded stack: WUKONG_HOME)"
        )
    for name in stages.TRAININGS:
        if size is None:
            break
        settings = stages.training_of(experiment, name)
        fewest = settings.min_workers or settings.workers
        key = "min_workers" if settings.min_workers else "workers"
        if fewest > machine.cores:
            problems.append(
                f"{name}.{key}: {fewest} workers need a core each and this machine has {machine.cores}, so "
                f"they would wait for ever; at most {machine.cores} are allowed here"
            )
        cards = fewest * settings.gpus_per_worker
        if cards > machine.gpus:
            problems.append(
                f"{name}.gpus_per_worker: {fewest} workers with {settings.gpus_per_worker} each need {cards} "
                f"graphics cards and this machine has {machine.gpus}, so they would wait for ever; 0 trains on cores"
            )
        held = settings.workers * size.memory(settings)
        if not settings.gpus_per_worker and held > machine.memory:
            problems.append(
                f"{name}.workers: {settings.workers} workers with a model of {size.weights:,} weights, gradients and "
                f"the optimiser's state hold {held / _GIB:.1f} GiB, this machine has {machine.memory / _GIB:.1f} GiB: "
                "take fewer workers or a smaller model"
            )
    refuse(problems)
