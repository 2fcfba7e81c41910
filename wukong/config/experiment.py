"""The typed experiment: one YAML file with everything that a run does. An unknown key is an error.

Each section is a file of this folder. Values that cannot be meant, alone or together, are refused here.
``wukong.stages.preflight`` checks what depends on the world: files, disks, memory, servers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from wukong.config.crawl import Crawl
from wukong.config.decontaminate import ALL
from wukong.config.evaluate import Evaluate
from wukong.config.evaluators import EVALUATORS, HOLDOUTS
from wukong.config.features import Features
from wukong.config.filter import Filter
from wukong.config.model import TEXT_FILES, Model
from wukong.config.registry import Registry
from wukong.config.release import Release
from wukong.config.section import Strict, uri_problem
from wukong.config.split import Split
from wukong.config.training import Training
from wukong.config.validation import Validation
from wukong.curate import rules
from wukong.curate.rules import similarity

CONTENTS: Mapping[str, tuple[str, ...]] = {
    "model.image.weights": (),
    "model.text.weights": TEXT_FILES,
    "model.text.vocabulary": (),
    "filter.similarity_model": similarity.MODEL_FILES,
}
"""Addresses whose content is in the keys by a setting beside each, KEY_sha256; of a folder with its files' names."""


class Source(Strict):
    """Where some of the images come from, for reports and dataset cards."""

    name: str = Field(description="how reports call it")
    pattern: str = Field(description="shell pattern on the image URL")
    licence: str = Field("", description="of these images, a name or an address")
    note: str = Field("", description="what else reports say about it")


class Experiment(Strict):
    """Everything that one run does, from words to an evaluated model."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,40}$", description="of the experiment and its model; also its folder in storage"
    )
    about: str = Field("", description="what the data are, in a sentence or two; reports show it beside the numbers")
    sources: tuple[Source, ...] = Field((), description="where the images come from")
    storage: str = Field(
        "s3://wukong", pattern=r"^(s3|file)://.+", description="where all stages write: s3://BUCKET or file:///FOLDER"
    )
    seed: int = Field(
        0, ge=0, description="of training: first weights, order of batches, dropout; the data have `filter.seed`"
    )
    priority: str = Field(
        "",
        pattern=r"^([a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?)?$",
        description="of the run's jobs where a cluster queues them with Kueue: the name of a WorkloadPriorityClass; "
        "empty takes the cluster's",
    )
    crawl: Crawl
    filter: Filter = Filter()
    validation: Validation = Validation()
    release: Release = Release()
    model: Model = Model()
    features: Features = Features()
    pretrain: Training = Training()
    finetune: Training = Training()
    evaluate: Evaluate = Evaluate()
    registry: Registry = Registry()

    @property
    def root(self) -> str:
        """The URI below which every stage of this experiment writes."""
        return f"{self.storage.rstrip('/')}/{self.name}"

    @property
    def origin(self) -> tuple[str, str, str]:
        """What runs of one experiment share, whatever else is set: its name, and where its images come from."""
        return self.name, self.crawl.engine, self.crawl.endpoint

    @property
    def held_out_tasks(self) -> list[str]:
        """The names of what is measured on hold-outs: retrieval on each, then the classification sets."""
        holdouts = [holdout.name for holdout in self.filter.split.holdouts]
        return [*holdouts, *(task.name for task in self.evaluate.classification)]

    @property
    def published_sets(self) -> list[str]:
        """The names of the published sets that are measured, at the end or while a model is trained."""
        trainings = (self.pretrain, self.finetune)
        validated = [name for each in trainings if not each.is_skipped for name in each.validation.tasks]
        known = {*self.held_out_tasks}
        return list(dict.fromkeys([*self.evaluate.tasks, *(name for name in validated if name not in known)]))

    @property
    def decontaminated_sets(self) -> list[str]:
        """The published sets by name that the filter compares with what would be trained on."""
        asked, holdouts = self.filter.decontaminate, [holdout.name for holdout in self.filter.split.holdouts]
        return [name for name in asked.sets if name not in (ALL, *holdouts)] if asked else []

    @property
    def decontaminated_holdouts(self) -> list[str]:
        """The hold-outs that the filter compares with what would be trained on."""
        asked, holdouts = self.filter.decontaminate, [holdout.name for holdout in self.filter.split.holdouts]
        return [name for name in holdouts if ALL in asked.sets or name in asked.sets] if asked else []

    def uris(self) -> dict[str, str]:
        """The URIs that the experiment reads, by their dotted key. Keys that are not set are left out."""
        crawl, model = self.crawl, self.model
        named = {
            "crawl.queries": crawl.queries,
            "crawl.endpoint": None if crawl.source.searched else crawl.endpoint,
            "crawl.politeness.opt_out": crawl.politeness.opt_out,
            "crawl.previous": crawl.previous,
            **{f"filter.{key}": uri for key, uri in rules.uris(self.filter).items()},
            "validation.reference": self.validation.reference,
            "release.opt_out": self.release.opt_out,
            "evaluate.sets": self.evaluate.sets if self.published_sets else None,
            "filter.decontaminate.sets": self.evaluate.sets if self.decontaminated_sets else None,
        }
        if start := self.pretrain.from_model:  # it has its weights and its vocabulary
            named["pretrain.from_model"] = None if start.startswith("models:/") else start
        else:
            files = (model.image.weights, model.text.vocabulary, model.text.weights)
            keys = ("model.image.weights", "model.text.vocabulary", "model.text.weights")
            named |= {key: uri if "://" in uri else None for key, uri in zip(keys, files, strict=True)}
        return {key: value for key, value in named.items() if value}

    @model_validator(mode="before")
    @classmethod
    def _models_are_the_experiments(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(registry := value.get("registry", {}), dict):
            return value
        return {**value, "registry": {**registry, "model_name": registry.get("model_name") or value.get("name", "")}}

    @model_validator(mode="after")
    def _values_agree(self) -> "Experiment":
        named = [*self.uris().items(), ("storage", self.storage)]
        problems = [f"{key}: {why}" for key, value in named if (why := uri_problem(value))]
        if self.finetune.from_model:
            problems.append("finetune.from_model: fine-tuning goes on from pretrain's model: set pretrain.from_model")
        if not (self.pretrain.epochs or self.pretrain.from_model):
            problems.append(
                "pretrain.epochs: 0 leaves no model: give at least 1, or name a model in pretrain.from_model"
            )
        problems += [
            *self.crawl.source.problems(self.crawl),
            *_limit_problems(self.crawl, self.filter),
            *_split_problems(self.filter.split),
            *_digest_problems(self),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    @model_validator(mode="after")
    def _the_deciding_metric_is_measured(self) -> "Experiment":
        asked = [
            ("registry.metric", self.registry.metric),
            *(("registry.guards", each) for each in self.registry.guards),
        ]
        for key, metric in asked:
            group, _, name = metric.partition("/")
            if group in ("eval", "pretrained") and self._is_measured(name, self.evaluate.tasks):
                continue
            kinds, held = EVALUATORS.values(), self._measured_tasks()
            measured = [f"{each.kind}: {', '.join(each.results)}" for each in kinds]
            raise ValueError(
                f"{key} is {metric!r}, which the evaluation does not measure; it measures "
                f"{'; '.join(measured)}; of all hold-outs together "
                f"{' and '.join(f'eval/{each.kind}/{HOLDOUTS}/{name}' for each in kinds for name in each.means)}; "
                f"a name begins with one of "
                f"{', '.join(f'eval/{kind}/{task}' for kind, tasks in held.items() for task in tasks)}"
            )
        return self

    @model_validator(mode="after")
    def _validation_measures_what_decides(self) -> "Experiment":
        for key, settings in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            asked = settings.validation
            published = [name for name in asked.tasks if name not in self.held_out_tasks]
            if published and not self.evaluate.sets:
                held_out = ", ".join(self.held_out_tasks) or "there are none"
                raise ValueError(
                    f"evaluate.sets is empty, and {key}.validation.tasks names {', '.join(published)}, besides the "
                    f"tasks of hold-outs ({held_out}): give the URI of the "
                    "folder that holds published sets, or name a hold-out"
                )
            known = asked.tasks or tuple(self.held_out_tasks)
            if asked.decides and not self._is_measured(asked.metric, published, known):
                raise ValueError(
                    f"{key}.validation.metric is {asked.metric!r}, which is not measured with the tasks "
                    f"{', '.join(known)}; write KIND/TASK/RESULT, for instance retrieval/holdouts/mean_recall or "
                    "classification/imagenet/top1"
                )
        return self

    def _measured_tasks(self) -> dict[str, list[str]]:
        """The tasks of hold-outs by their kind; ``HOLDOUTS`` stands for all of a kind."""
        held = [holdout.name for holdout in self.filter.split.holdouts]
        classified = [task.name for task in self.evaluate.classification]
        return {"retrieval": [HOLDOUTS, *held], "classification": [HOLDOUTS, *classified]}

    def _is_measured(self, metric: str, published: Sequence[str], tasks: Sequence[str] | None = None) -> bool:
        """Whether KIND/TASK/RESULT is a result of the published sets or of hold-outs; ``tasks`` None for all of them.

        A data set may be made without a hold-out; what trains asks for one (wukong.stages.preflight).
        """
        kind, task, result = [*metric.split("/"), "", ""][:3]
        held = self._measured_tasks().get(kind, [])
        if tasks is not None:
            held = [name for name in held if name in tasks]
            held += [HOLDOUTS] if held else []
        evaluator = EVALUATORS.get(kind)
        if evaluator is None or result not in (evaluator.means if task == HOLDOUTS else evaluator.results):
            return False
        return task in (*held, *published) or not self.filter.split.holdouts

    @model_validator(mode="after")
    def _tasks_have_names_of_their_own(self) -> "Experiment":
        names = [*self.held_out_tasks, *self.evaluate.tasks, HOLDOUTS]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice)}: the hold-outs in filter.split.holdouts, the sets in evaluate.classification and "
                "those in evaluate.tasks need different names, and none is 'holdouts'"
            )
        return self

    @model_validator(mode="after")
    def _decontaminated_sets_have_a_place(self) -> "Experiment":
        if self.decontaminated_sets and not self.evaluate.sets:
            raise ValueError(
                f"evaluate.sets is empty, and filter.decontaminate.sets names {', '.join(self.decontaminated_sets)}: "
                "give the URI of the folder that holds them, file:///FOLDER or s3://BUCKET/PREFIX"
            )
        return self

    @model_validator(mode="after")
    def _holdouts_exist(self) -> "Experiment":
        known = {holdout.name for holdout in self.filter.split.holdouts}
        for task in self.evaluate.classification:
            for name in task.holdouts:
                if name not in known:
                    raise ValueError(
                        f"evaluate.classification {task.name!r} names the hold-out {name!r}; "
                        f"filter.split.holdouts has {', '.join(sorted(known)) or 'no hold-out'}"
                    )
            if not task.holdouts or not task.classes:
                raise ValueError(
                    f"evaluate.classification {task.name!r} has {len(task.holdouts)} holdouts and {len(task.classes)} "
                    "classes; it takes at least one of each"
                )
        return self


def _split_problems(split: Split) -> Iterator[str]:
    """Return why a split leaves nothing to train on, or nothing to test."""
    key = "filter.split"
    if split.held_out_captions == 1:
        yield f"{key}.held_out_captions: 1.0 holds every caption out, so nothing is trained on; give less than 1"
    for number, holdout in enumerate(split.holdouts):
        if holdout.captions == "unseen" and not split.held_out_captions:
            yield (
                f"{key}.held_out_captions: 0.0 holds no caption out, but the hold-out {holdout.name!r} takes captions "
                "that training has not seen: give a share above 0, for instance 0.1"
            )
        if holdout.captions != "unseen" and not holdout.source.strip("*"):
            yield (
                f"{key}.holdouts.{number}.source: {holdout.source!r} keeps every pair from training: set captions: "
                "unseen, or name a source as a pattern on the URL"
            )


def _digest_problems(experiment: Experiment) -> Iterator[str]:
    """Return the digests of files that no address names."""
    for key in CONTENTS:
        *sections, name = key.split(".")
        section: Any = experiment
        for each in sections:
            section = getattr(section, each)
        address = getattr(section, name)
        if getattr(section, f"{name}_sha256") and "://" not in (address or ""):
            yield f"{key}_sha256: {key} is {address!r}, which names no file: leave the digest out"


def _limit_problems(crawl: Crawl, settings: Filter) -> Iterator[str]:
    """Return the limits of the filter that have no effect, because the crawl has already left those pictures out.

    A limit that has its default value is not reported: an experiment may narrow the crawl's limit alone.
    """
    for rule in rules.REGISTRY:
        for key in rule.crawl_limits:
            of_filter, of_crawl = getattr(settings, key), getattr(crawl, key)
            lets_more_pass = of_filter < of_crawl if key.startswith("min_") else of_filter > of_crawl
            if lets_more_pass and of_filter != Filter.model_fields[key].default:
                yield (
                    f"filter.{key}: {of_filter} has no effect: the crawl has already left pictures out by crawl.{key}, "
                    f"which is {of_crawl}. Set crawl.{key} to {of_filter} too, or filter.{key} to {of_crawl}"
                )
