"""The table of stages: what every part of the project must know about a stage stands here, once.

The command line, the launcher, the run records, the pipelines, the preflight checks, the plan, the report and the
takedown read this table. To add a stage, add an entry here and write its job (``ray_jobs/NAME.py``), which takes its
key from the entry (``wukong.stages.places.of``), and its component (``components/NAME.py``).
``tests/wukong/stages/test_stages.py`` checks that they fit the entry, and that no other list of stages stands anywhere.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wukong.config.experiment import Experiment
from wukong.config.training import Training
from wukong.curate import rules
from wukong.errors import ConfigError
from wukong.stages import estimate
from wukong.stages.estimate import Estimate, Work

_FILTER_VERSION = 9
"""Shared with ``look``, which holds the pairs that the filter's rules kept: another rule changes both."""


@dataclass(frozen=True)
class Entry:
    """What the project must know about one stage.

    Attributes:
        name: stored in manifests, records and URIs; also the name of its job and of its component.
        title: how the KFP UI shows it.
        hands_on: what the next stages get from it, in words.
        runs_as: ``job``: a Ray job that its component starts. ``component``: its component does all the work.
            ``inside``: other stages' jobs make it when they need it; it has no component and no record of its own.
        parents: the stages whose manifests its component takes, in this order; of a stage made inside others, the
            stages that it reads.
        inputs: other artifacts its component takes: parameter, and the stage and output that it comes from.
        makes: the stages that its job makes when it needs them, or whose job its component starts.
        continues: the stages of earlier runs whose models it may take, besides its own.
        shows: the stages before its parents of whose pictures it shows some.
        records: names of the records in a run that it writes besides its own.
        key_parents: the stages whose manifests' digests are in its key, which may be parents of parents.
        version: number of its code, in its key: raise it when the code makes other output from the same input. 0 for a
            stage without a manifest.
        from_experiment: gives the part of the experiment that decides its output, as its manifest stores it; the
            manifest may say more. None for a job whose key ``wukong.stages.places`` alone says, as where the content
            of lists decides too, and where there is no manifest.
        sections: the sections of the experiment whose files and addresses it reads.
        in_whole_run: whether ``wukong run`` and the training pipeline do it.
        function: name of its component's function; empty where it is the stage's name.
        output: the component's output artifact that the next stages take.
        memory: limit of its component's pod.
        trains: whether it has a section of the experiment under its name that sets workers and GPUs (``Training``).
        runs_model: whether its job runs a model that a GPU makes faster, by the experiment.
        estimate: bytes and seconds before it has ever run; None for a stage that is in no whole run.
        writes: where it writes, for people.
        takedown: what a takedown does with its output: ``rewrite`` it without the pairs, ``delete`` what was computed
            from their images, or ``keep`` it as it is.
    """

    name: str
    title: str
    hands_on: str
    runs_as: Literal["job", "component", "inside"] = "job"
    parents: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    makes: tuple[str, ...] = ()
    continues: tuple[str, ...] = ()
    shows: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    key_parents: tuple[str, ...] = ()
    version: int = 0
    from_experiment: Callable[[Experiment], dict[str, Any]] | None = None
    sections: tuple[str, ...] = ()
    in_whole_run: bool = True
    function: str = ""
    output: str = "manifest"
    memory: str = "2Gi"
    trains: bool = False
    runs_model: Callable[[Experiment], bool] = lambda _: False
    estimate: Callable[[Work], Estimate] | None = None
    writes: str = "{root}/{name}"
    takedown: Literal["rewrite", "delete", "keep"] = "keep"

    def config(self, experiment: Experiment) -> dict[str, Any]:
        """The part of the experiment that decides its output; empty where ``from_experiment`` is None."""
        return self.from_experiment(experiment) if self.from_experiment else {}

    def place(self, experiment: Experiment) -> str:
        """The prefix below which it writes, for people."""
        return self.writes.format(root=experiment.root, name=self.name)


def _of_evaluate(experiment: Experiment) -> dict[str, Any]:
    holdouts = [holdout.model_dump(mode="json") for holdout in experiment.filter.split.holdouts]
    # Where the published sets lie decides nothing; what they are does (wukong.stages.places).
    settings = experiment.evaluate.model_dump(mode="json", exclude={"sets"})
    return {"evaluate": settings, "holdouts": holdouts}


def _of_training(experiment: Experiment, settings: Training) -> dict[str, Any]:
    model = experiment.model.model_dump(mode="json")
    # How often a run is looked at, measured and stored does not change its model, unless what is measured decides, nor
    # does who keeps the optimiser's state; the threads change its rounding.
    unimportant = {"checkpoint", "log_every", "min_workers", "validation", "threads", "shard_optimizer"}
    training = settings.model_dump(mode="json", exclude=unimportant)
    del training["from_model"]  # a model that is taken has a key of its own (wukong.stages.start)
    if settings.validation.decides:
        training["validation"] = settings.validation.model_dump(mode="json") | {
            "captions": experiment.evaluate.captions,
            "classification": [task.model_dump(mode="json") for task in experiment.evaluate.classification],
        }
    return {"model": model, "training": training, "seed": experiment.seed}


TABLE = (
    Entry(
        name="crawl",
        title="Crawl",
        hands_on="the downloaded pairs",
        version=6,
        sections=("crawl", "release"),  # a release mostly uses the crawl's own opt-out list
        estimate=estimate.of_crawl,
        takedown="rewrite",
    ),
    Entry(
        name="look",
        title="Look at images",
        hands_on="what rules compute from the pictures of kept pairs",
        runs_as="inside",
        parents=("crawl",),
        key_parents=("crawl",),
        version=_FILTER_VERSION,
        takedown="delete",
    ),
    Entry(
        name="pack",
        title="Pack test sets",
        hands_on="the pictures of a published set that lies in an object store, in tables",
        runs_as="inside",
        version=1,
    ),
    Entry(
        name="fingerprints",
        title="Hash test sets",
        hands_on="hashes and vectors of the pictures of a published set",
        runs_as="inside",
        version=2,
    ),
    Entry(
        name="filter",
        title="Filter and split",
        hands_on="the data",
        parents=("crawl",),
        makes=("look", "pack", "fingerprints"),
        continues=("pretrain", "finetune"),  # filter.similarity_model
        key_parents=("crawl",),
        version=_FILTER_VERSION,
        from_experiment=lambda experiment: rules.config_of(experiment.filter),
        sections=("filter",),
        function="filter_pairs",
        runs_model=lambda experiment: rules.run_a_model(experiment.filter),
        estimate=estimate.of_filter,
        takedown="rewrite",
    ),
    Entry(
        name="validate",
        title="Validate",
        hands_on="the gate's results and the dataset card",
        parents=("filter",),
        shows=("crawl",),  # blurred, on the card: what the filter has dropped
        key_parents=("filter",),
        version=6,
        from_experiment=lambda experiment: experiment.model_dump(
            mode="json", include={"name", "about", "sources", "filter", "validation"}
        ),
        sections=("validation",),
        estimate=estimate.of_validate,
        takedown="rewrite",
    ),
    Entry(
        name="release",
        title="Release",
        hands_on="the set to publish",
        runs_as="component",
        parents=("validate",),
        key_parents=("filter", "validate"),
        version=4,
        sections=("release",),
        in_whole_run=False,
        takedown="rewrite",
    ),
    Entry(
        name="features",
        title="Compute features",
        hands_on="features of a locked image tower",
        runs_as="inside",
        parents=("filter",),
        key_parents=("filter",),
        version=5,
        takedown="delete",
    ),
    Entry(
        name="pretrain",
        title="Pre-train",
        hands_on="the pre-trained model",
        parents=("filter", "validate"),
        makes=("pack", "features"),
        continues=("finetune",),
        key_parents=("filter",),  # it waits for the gate and takes nothing from it
        version=6,
        from_experiment=lambda experiment: _of_training(experiment, experiment.pretrain),
        sections=("model", "pretrain"),
        trains=True,
        runs_model=lambda _: True,
        estimate=estimate.of_pretrain,
    ),
    Entry(
        name="finetune",
        title="Fine-tune",
        hands_on="the fine-tuned model",
        parents=("filter", "pretrain"),
        makes=("pack", "features"),
        key_parents=("filter", "pretrain"),
        version=6,
        from_experiment=lambda experiment: _of_training(experiment, experiment.finetune),
        sections=("model",),
        trains=True,
        runs_model=lambda _: True,
        estimate=estimate.of_finetune,
    ),
    Entry(
        name="evaluate",
        title="Evaluate",
        hands_on="what was measured",
        parents=("filter", "pretrain", "finetune"),
        makes=("pack", "features"),
        records=("champion",),
        key_parents=("filter", "pretrain", "finetune"),
        version=8,
        from_experiment=_of_evaluate,
        sections=("model", "evaluate"),  # it computes features of the hold-outs
        runs_model=lambda _: True,
        estimate=estimate.of_evaluate,
    ),
    Entry(
        name="register",
        title="Register the model",
        hands_on="the model's version",
        runs_as="component",
        parents=("finetune", "evaluate"),
        makes=("evaluate", "pack", "features"),  # it may measure the model that holds the alias
        records=("champion",),
        output="metrics",
        memory="4Gi",  # it carries a model through its own memory
        estimate=estimate.of_register,
        writes="MLflow",
    ),
    Entry(
        name="report",
        title="Report",
        hands_on="one page about the run",
        runs_as="component",
        parents=("evaluate",),  # it finds the other manifests by the run's records
        inputs={"registration": ("register", "metrics")},
        output="page",
        memory="4Gi",  # it carries images through its own memory
        estimate=estimate.of_report,
        writes="{root}/runs",
    ),
)
"""Every stage; a stage stands after all that it reads."""

_BY_NAME = {entry.name: entry for entry in TABLE}

RECORDED = tuple(entry.name for entry in TABLE if entry.runs_as != "inside")
"""The stages that have a component, and leave a record in a run."""

JOBS = tuple(entry.name for entry in TABLE if entry.runs_as == "job")
"""The stages that are Ray jobs."""

WHOLE_RUN = tuple(entry.name for entry in TABLE if entry.runs_as != "inside" and entry.in_whole_run)
"""The stages that ``wukong run`` and the training pipeline do."""

TRAININGS = tuple(entry.name for entry in TABLE if entry.trains)
"""The stages that have a ``Training`` section of their name."""


def of(name: str) -> Entry:
    """The entry of a stage.

    Raises:
        ConfigError: there is no stage of that name.
    """
    if name not in _BY_NAME:
        raise ConfigError(f"there is no stage {name!r}; the stages are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def needed_for(name: str) -> tuple[str, ...]:
    """A stage and all stages that it reads, directly or through others, in the table's order."""
    wanted, pending = {name}, [name]
    while pending:
        entry = of(pending.pop())
        before = {*entry.parents, *(stage for stage, _ in entry.inputs.values())}
        pending += before - wanted
        wanted |= before
    return tuple(entry.name for entry in TABLE if entry.name in wanted)


def sections_of(names: Collection[str]) -> set[str]:
    """The sections of the experiment whose files and addresses some stages read."""
    return {section for name in names for section in of(name).sections}


def training_of(experiment: Experiment, name: str) -> Training:
    """The section of the experiment that sets a training stage's workers, GPUs and epochs.

    A stage that takes a model, or hands one on, is one process that copies it.

    Raises:
        ConfigError: the stage does not train.
    """
    if not of(name).trains:
        raise ConfigError(f"the stage {name} does not train; those that do are {', '.join(TRAININGS)}")
    settings: Training = getattr(experiment, name)
    return Training(epochs=0, batch_size=1, workers=1, loader_workers=0) if settings.is_skipped else settings
