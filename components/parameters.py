"""The parameters of a run on a cluster: the one list of which pipelines, KFP's form and ``wukong submit`` are made."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError


@dataclass(frozen=True)
class _Sets:
    """A number of the experiment: its type, and the keys that it sets."""

    kind: type[int] | type[float]
    keys: tuple[str, ...]


def _of_trainings(key: str) -> _Sets:
    return _Sets(int, tuple(f"{stage}.{key}" for stage in stages.TRAININGS))


class Parameters(BaseModel):
    """What a run is asked for. Numbers are texts, because a number on KFP's page cannot be left empty.

    KFP's form has those with a description. ``configure`` is called with all but ``of_run``. KFP puts the text of that
    function into the pipeline, so its signature is written out, and a test holds it to these fields.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: dict[str, Any] = Field(
        description="the experiment. Press **Open Json Editor** and replace its queries and endpoint; `wukong config` "
        "prints all keys."
    )
    overrides: list[str] = Field(
        [], description='single values of the experiment to change, for instance `["crawl.max_queries=1000"]`.'
    )
    epochs: Annotated[str, _Sets(int, ("pretrain.epochs",))] = Field(
        "", description="epochs of pre-training. Empty takes the experiment's."
    )
    batch_size: Annotated[str, _Sets(int, ("pretrain.batch_size",))] = Field(
        "", description="pairs a step of pre-training, over all workers. Empty takes the experiment's."
    )
    learning_rate: Annotated[str, _Sets(float, ("pretrain.learning_rate",))] = Field(
        "", description="learning rate of pre-training. Empty takes the experiment's."
    )
    workers: Annotated[str, _of_trainings("workers")] = Field(
        "", description="Ray workers of pre-training and fine-tuning. Empty takes the experiment's."
    )
    gpus_per_worker: Annotated[str, _of_trainings("gpus_per_worker")] = Field(
        "", description="1 for a GPU for each of those workers, 0 for none. Empty takes the experiment's."
    )
    model: str = Field(
        "",
        description="a trained model that is fine-tuned without pre-training, `models:/NAME@ALIAS` or the URI of its "
        "folder; the experiment's section `model` is then the model's own. Empty pre-trains.",
    )
    of_run: str = Field(
        "",
        description="name of the run whose data and models are measured. Its experiment is `experiment`, whose section "
        "`evaluate` says what is measured.",
    )
    run: str = Field(
        "",
        description="name of the records, the MLflow run and the report. Empty takes KFP's name of the run, "
        "of which each recurring one has its own.",
    )
    source: str = Field(
        "",
        description="left empty: `wukong submit` says in it which revisions of the experiment's file and of the code "
        "it submits.",
    )
    job: str = ""
    stages: list[str] = []
    continue_last_run: bool = False

    @property
    def name(self) -> str:
        """The run's name: its own, or KFP's."""
        return self.run.strip() or self.job

    def changed_experiment(self) -> Experiment:
        """Make the experiment: ``overrides`` are applied to it, then the numbers that are given, then the model.

        Raises:
            ConfigError: the result is not a valid experiment, or a text is no number; the message says what to write.
        """
        model = self.model.strip()
        changes = [*self.overrides, *([f"pretrain.from_model={json.dumps(model)}", "model={}"] if model else [])]
        for name, field in type(self).model_fields.items():
            text = getattr(self, name)
            for number in (each for each in field.metadata if isinstance(each, _Sets) and text.strip()):
                try:
                    value = number.kind(text)
                except ValueError as error:
                    raise ConfigError(
                        f"{name}: {text!r} is not {'a whole number' if number.kind is int else 'a number'}; leave it "
                        "empty for the experiment's own"
                    ) from error
                changes += [f"{key}={value!r}" for key in number.keys]
        where = "the pipeline's parameter experiment"
        return documents.loads(json.dumps(self.experiment, ensure_ascii=False), changes, where=where)


IN_FORM = {name: field for name, field in Parameters.model_fields.items() if field.description}
"""Those that people fill in; each pipeline has some of them."""
