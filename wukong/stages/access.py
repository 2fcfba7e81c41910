"""What each pod of a run gets on a cluster: an S3 key and a user of MLflow that may do what its stage needs.

It follows from the table of stages: a job reads its parents, and the manifests of what these come from; it writes its
own folder; and of a run's files it has those of its name. The setup job makes the keys (``infra.cluster``), components
and RayJobs get them by the names of their Secrets. These keys are of a kind of pod and not of one run: SeaweedFS is
told of them when it starts. Where ``infra.stage_keys`` runs, each RayJob has a key of its own.

Names of objects are patterns, in which ``*`` is any text, slashes too: the objects of an experiment begin with its
``storage`` and its name.

A team (``infra.team``) has keys of the same names, which open what is below the team's own prefix alone.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from wukong import stages
from wukong.errors import ConfigError
from wukong.runtime import forwarded
from wukong.stages import run_paths

BUCKET = "wukong"
"""The bucket of the runs on a cluster; ``k8s/base/settings.yaml`` has it made."""

_PLAIN = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9@%+=:,._-]+")  # what the launcher lets into a RayJob's command
EVERYTHING = "*"
_INPUTS = "inputs/*"  # what people put into the bucket: lists, weights, published sets
_OPT_OUT = "*/filter/*/forbidden.txt*"  # a list that we make of what is to be left out
_TAKEDOWN = ("*/takedowns/begun.json*", "*/takedowns/_lease.json*")  # that one goes on; what it removes stands beside
_EXPERIMENTS, _RUNS = "*/experiments/*", "*/runs/*"
_OF_RUN = ("*/runs/*/cost.json*", "*/runs/*/run.json*")  # what it has cost so far, and that it was terminated
_SWEEPS = "*/sweeps/*"  # of which trials the model was chosen
# Who looks for an object that is not there lists what begins with its name and a slash.
_OF_RECORD = ("*/runs/*/{}.json*", "*/runs/*/attempts/{}/*", "*/runs/*/held/{}/*")
_OF_LAUNCH = ("*/runs/*/asked/{}*", "*/runs/*/images/{}/*")  # who does the work, and which images its pods run


@dataclass(frozen=True)
class Access:
    """What a key may do in the bucket.

    Attributes:
        reads: the objects that it reads, and lists.
        writes: the objects that it writes, and deletes.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...] = ()


def key_of_job(stage: str) -> str:
    """Name of the Secret with the S3 key of a stage's Ray pods."""
    return f"job-{stage}-s3"


def key_of_component(name: str) -> str:
    """Name of the Secret with the S3 key of the component of a stage, or of another kind of component."""
    return f"component-{name}-s3"


def key_of_ray_job(name: str) -> str:
    """Name of the Secret with the S3 key of one RayJob alone (``infra.stage_keys``)."""
    return f"{name}-s3"


def of_ray_job(stage: str, root: str, run: str) -> Access:
    """What the key of one RayJob may do: it writes for its own experiment and run.

    A claim at a stage is written in other runs' folders too, by who takes over the work of a process that seems dead.

    Args:
        stage: name of the stage.
        root: the experiment's prefix in the bucket.
        run: name of the run.

    Raises:
        ConfigError: the prefix or the name would be a pattern in a policy, or lead elsewhere.
    """
    run_paths.check_name(run)
    _require_plain(root)

    def own(pattern: str) -> str:
        place = pattern.replace("*", root, 1)
        return place if "/attempts/" in place else place.replace("/runs/*/", f"/runs/{run}/", 1)

    key = S3_KEYS[key_of_job(stage)]
    return Access(key.reads, tuple(own(pattern) for pattern in key.writes))


def _require_plain(prefix: str) -> None:
    """Check that a prefix means itself in a policy, where ``*``, ``?`` and ``${...}`` mean more, and in a path."""
    if not all(_PLAIN.fullmatch(part) for part in prefix.split("/")):
        raise ConfigError(
            f"{prefix!r} cannot be part of a policy: use ASCII letters, digits and @%+=:,._- between slashes, and no "
            "part that is empty or means a folder above"
        )


def _folders(names: Iterable[str]) -> tuple[str, ...]:
    """The folders that stages write, in all experiments; one that writes elsewhere has none."""
    places = (stages.of(name).writes.format(root="*", name=name) for name in dict.fromkeys(names))
    return tuple(f"{place}/*" for place in places if place.startswith("*"))


def _of_records(names: Iterable[str], patterns: Iterable[str]) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names for pattern in patterns)


def _ended_by(name: str) -> Iterator[str]:
    """What is written of attempts at other stages that seem dead, by a stage that makes the same output as they."""
    makes = {name, *stages.of(name).makes}
    for other in stages.TABLE:
        if other.runs_as == "job" and other.name != name and makes & {other.name, *other.makes}:
            yield from _of_records((other.name, *other.records), ("*/runs/*/attempts/{}/*.taken-over.json*",))


def _of_job(name: str) -> Access:
    entry = stages.of(name)
    made = (name, *entry.makes)
    entries = [stages.of(each) for each in made]
    before = [each for of in entries for each in (*of.parents, *of.key_parents, *of.shows)]
    further = [each for each in stages.needed_for(name) if each not in (*made, *before)]
    manifests = (f"{folder}/manifest*" for folder in _folders(further))
    lists = (_INPUTS, *((_OPT_OUT,) if "release" in entry.sections else ()))
    own = (*_folders(made), *_of_records((name, *entry.records), _OF_RECORD), *_ended_by(name))
    return Access((*lists, *_TAKEDOWN, _EXPERIMENTS, *_folders((*before, *entry.continues)), *manifests, *own), own)


def _of_component(name: str) -> Access:
    """A component computes its job's key and holds the lease of its output, before the job does the same."""
    entry, job = stages.of(name), _of_job(name)
    does_it_all = entry.runs_as == "component" and not entry.makes
    reads = (*job.reads, *(_folders(stages.needed_for(name)) if does_it_all else ()), _RUNS)
    if entry.writes == "MLflow":
        reads += (_SWEEPS,)
    writes = (*job.writes, *_of_records((name, *entry.records), _OF_LAUNCH), *_OF_RUN)
    if entry.runs_as == "component" and entry.makes:
        writes += (_EXPERIMENTS,)  # that of another run's model, which it has measured
    return Access(*(_narrowed(each) for each in (reads, writes)))


def _narrowed(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns without those that another one begins like and covers."""
    distinct = tuple(dict.fromkeys(patterns))
    return tuple(
        each
        for each in distinct
        if not any(each != other and each.startswith(other) for other in distinct if other.endswith("/*"))
    )


S3_KEYS: Mapping[str, Access] = {
    "wukong-s3": Access((EVERYTHING,), (EVERYTHING,)),
    "search-s3": Access((EVERYTHING,), ("indexes/*",)),  # makes its index where there is none
    "backup-s3": Access((EVERYTHING,)),
    key_of_component("run"): Access((EVERYTHING,), (_EXPERIMENTS, _RUNS)),
    key_of_component("show"): Access((_EXPERIMENTS, _RUNS, *_folders(stages.RECORDED))),
    **{key_of_component(name): _of_component(name) for name in stages.RECORDED},
    **{key_of_job(name): _of_job(name) for name in stages.JOBS},
}
"""What each S3 key may do in the bucket, by the name of its Secret."""

_SHARED = "shared/*"  # what operators put there for all teams
_OF_SERVERS = ("search-s3", "backup-s3")
KEY_OF_KFP = "kfp-s3"
"""The key by which KFP's launcher and Argo write what they keep of a team's runs."""
_IN_TEAMS: Mapping[str, Access] = {
    **{name: key for name, key in S3_KEYS.items() if name not in _OF_SERVERS},
    KEY_OF_KFP: Access(("kfp/*",), ("kfp/*",)),
}


def storage_of_team(team: str) -> str:
    """The URI below which a team's objects lie."""
    return f"s3://{BUCKET}/{_prefix_of_team(team)}"


def s3_keys_of_team(team: str) -> dict[str, Access]:
    """What each S3 key of a team may do in the bucket, by the name of its Secret in the team's namespace.

    Raises:
        ConfigError: the team's name would be a pattern in a policy, or lead elsewhere.
    """
    prefix = _prefix_of_team(team)
    _require_plain(prefix)

    def within(key: Access) -> Access:
        shared = (_SHARED,) if {_INPUTS, EVERYTHING} & {*key.reads} else ()
        reads, writes = (tuple(f"{prefix}/{pattern}" for pattern in each) for each in (key.reads, key.writes))
        return Access((*reads, *shared), writes)

    return {name: within(key) for name, key in _IN_TEAMS.items()}


def _prefix_of_team(team: str) -> str:
    return f"teams/{team}"


_MAY_REGISTER, _MAY_LOG, _MAY_LOOK = "wukong-mlflow", "runs-mlflow", "search-mlflow"
"""Secrets of MLflow's users: one changes experiments and models, one experiments alone, one reads both."""

_OF_TASKS: Mapping[str, tuple[str, ...]] = {
    "configure": (key_of_component("run"), _MAY_LOOK),
    "record_end": (key_of_component("run"), _MAY_LOG),
    "find_manifest": (key_of_component("show"),),
    "data_card": (key_of_component("show"),),
    "results": (key_of_component("show"),),
    **{
        name: (key_of_component(name), _MAY_REGISTER if stages.of(name).writes == "MLflow" else _MAY_LOG)
        for name in stages.RECORDED
    },
}


def secrets_of_component(name: str) -> dict[str, tuple[str, ...]]:
    """The Secrets of a component's pod and their keys; a component is named as its module, which a stage's is too."""
    held = _OF_TASKS[name]
    return {secret: forwarded.S3_KEY if secret in S3_KEYS else forwarded.MLFLOW_USER for secret in held}


def copied_to_components() -> tuple[str, ...]:
    """The Secrets that components need, which run in a namespace of their own."""
    return tuple(dict.fromkeys(secret for held in _OF_TASKS.values() for secret in held))


def secrets_of_job(stage: str) -> dict[str, str | None]:
    """What stands in a stage's RayJob for each Secret of the template: another Secret, or None for no Secret."""
    return {"wukong-s3": key_of_job(stage), _MAY_REGISTER: _MAY_LOG if stages.of(stage).trains else None}
