"""The sections ``pretrain`` and ``finetune`` of an experiment (section 5.1)."""

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from wukong.config import model_kinds
from wukong.config.section import Fraction, Positive, Strict, uri_problem


class Checkpointing(Strict):
    """When the state of a training run is stored, to resume it: at the end of each epoch, and more often.

    Each of these is left out if it comes too soon after the one before, by `least_seconds` or by `most_share`.
    """

    steps: int = Field(0, ge=0, description="steps between two checkpoints; 0 for none by steps")
    minutes: float = Field(10.0, ge=0, description="minutes between two checkpoints; 0 for none by time")
    least_seconds: float = Field(
        60.0,
        ge=0,
        description="from one checkpoint to the next at least. The last one of a training is always stored, and with "
        "`validation.keep: best` the best",
    )
    most_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="of the time in which a checkpoint is being written, at most: after one that took 6 s, the next is "
        "60 s later at the earliest. It makes no pause longer than `minutes`",
    )
    keep: Positive = Field(2, description="newest checkpoints that are kept")


class Validating(Strict):
    """Measuring a model while it is trained, by the evaluators of the evaluate stage."""

    every_steps: Annotated[int, Field(ge=0)] | Literal["epoch"] = Field(
        0, description="steps between two validations, or 'epoch'; 0 for none. The last step is validated too"
    )
    tasks: tuple[str, ...] = Field(
        (),
        description="hold-outs, sets of `evaluate.classification`, or published sets (`evaluate.sets` has them); if "
        "empty, all but the published sets",
    )
    protocol: Literal["paper", "cn-clip", "clip-benchmark", "own"] = Field(
        "paper", description="how the published sets are measured; hold-outs are always measured by `own`"
    )
    split: str = Field(
        "",
        description="part of the published sets that is measured, for instance val, so that what chooses a model is "
        "not what it is measured on at the end; if empty, the protocol's",
    )
    metric: str = Field(
        "retrieval/holdouts/mean_recall",
        description="KIND/TASK/RESULT that decides which model is best; higher is better",
    )
    keep: Literal["last", "best"] = Field("last", description="the model that training ends with")
    patience: int = Field(
        0, ge=0, description="validations in a row without a better metric after which training ends; 0 for no end"
    )

    @property
    def decides(self) -> bool:
        """Whether the trained model depends on what is measured."""
        return self.keep == "best" or self.patience > 0

    @model_validator(mode="after")
    def _what_decides_is_measured(self) -> "Validating":
        if self.decides and not self.every_steps:
            key = "keep: best" if self.keep == "best" else f"patience: {self.patience}"
            raise ValueError(f"{key} needs a model to be measured: set every_steps to a number above 0")
        return self


class Training(Strict):
    """One training run (section 5.1, table 4)."""

    epochs: int = Field(
        20,
        ge=0,
        description="times that all pairs are trained on; 0, of finetune alone, hands the pre-trained model on",
    )
    batch_size: Positive = Field(512, description="pairs a step, over all workers")
    optimizer: Literal["lamb", "adamw"] = Field("lamb", description="LAMB, as in the paper, or AdamW")
    epsilon: float = Field(1e-2, gt=0, description="the optimiser's (table 4)")
    learning_rate: float = Field(3e-3, gt=0, description="the highest, at the end of the warm-up")
    warmup_fraction: Fraction = Field(0.1, description="share of the steps over which the learning rate rises")
    weight_decay: float = Field(0.05, ge=0, description="of the layers' matrices")
    workers: Positive = Field(2, description="processes that train together")
    min_workers: int = Field(
        0,
        ge=0,
        description="fewest processes to train with while machines for all workers are missing; 0 to wait for them",
    )
    threads: int = Field(
        0,
        ge=0,
        description="with which a worker computes on processors; 0 for its share of its machine's cores. Another "
        "number rounds otherwise: set it to get equal bytes on machines with other numbers of cores",
    )
    gpus_per_worker: int = Field(0, ge=0, description="1 trains on a GPU for each worker, 0 on processors")
    views: int = Field(
        0, ge=0, description="augmented views of each picture, beside the plain one, whose locked features are cached"
    )
    sources: tuple[str, ...] = Field(
        ("*",), min_length=1, description="shell patterns on the image URL of the pairs to train on"
    )
    captions_per_picture: Literal["first", "sampled"] = Field(
        "first",
        description="of a picture that the crawl found with several: 'first' trains on that of its pair's text file, "
        "'sampled' on one that is drawn in each epoch, as often as searches found it",
    )
    whiten_image_head: bool = Field(
        False, description="start the image head as a whitening of the training features instead of at random"
    )
    image_head_rate: float = Field(1.0, ge=0, description="learning rate of the image head, as a share of the others'")
    text_head_rate: float = Field(1.0, ge=0, description="learning rate of the text head, as a share of the others'")
    exclude_same_captions: bool = Field(True, description="equal captions in a batch are not each other's negatives")
    lock: Literal["all", "none"] | Positive = Field(
        "all",
        description="of the image tower: 'all', as in the paper, 'none', or how many of its first layer groups",
    )
    store_features: bool | Literal["auto"] = Field(
        True,
        description="run a locked image tower once for each picture and read what it gave in every epoch; false runs "
        "it anew each epoch, for more pictures than there is room for; 'auto' takes the faster way, by rates that are "
        "measured before the first epoch, if there is room",
    )
    augmentations: tuple[Literal["crop", "flip", "autoaugment"], ...] = Field(
        ("crop", "flip", "autoaugment"),
        description="of the pictures that a tower sees anew each epoch; the views of stored features have all",
    )
    max_broken_pictures: int = Field(
        0,
        ge=0,
        description="pictures that may fail to decode, each time counted, before training ends; another pair takes the "
        "place of each",
    )
    max_lost_shards: int = Field(
        0,
        ge=0,
        description="shards that may be missing or damaged before training ends, each counted once; other pairs stand "
        "in the places of theirs",
    )
    loader_workers: int = Field(2, ge=0, description="processes a worker that decode pictures for a tower in the loop")
    micro_batch: int = Field(
        0, ge=0, description="pairs a worker encodes at once; the gradients stay the batch's. 0 for all of its share"
    )
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = Field(
        "float32",
        description="of the towers' and heads' arithmetic; 'tf32' lets GPUs round the factors of float32 products; "
        "'float16' is for GPUs without bfloat16: it scales the loss, and leaves out steps whose gradient is not finite",
    )
    clip_gradient_norm: float = Field(
        0.0, ge=0, description="the largest norm of a step's gradient, over all parameters; 0 for no limit"
    )
    deterministic: bool = Field(
        True,
        description="equal inputs give equal weights, to the bit; an operation that has no such version is an error; "
        "false lets torch and the token-wise kernels choose the fastest algorithms",
    )
    shard_optimizer: bool = Field(
        False,
        description="each worker keeps the optimiser's state of its share of the weights, and stores it: "
        "less memory where the image tower is trained too; equal weights, to the bit on processors",
    )
    compile: bool = Field(False, description="compile the towers with torch.compile; the first steps take much longer")
    checkpoint_activations: bool = Field(
        False, description="compute each layer a second time in the backward pass instead of keeping what it computed"
    )
    checkpoint: Checkpointing = Checkpointing()
    validation: Validating = Validating()
    log_every: Positive = Field(
        50,
        description="steps between two looks at the loss: what is measured is logged, what is not finite ends the run",
    )
    from_model: str = Field(
        "",
        description="of pretrain alone: a model to take in the place of pre-training, which is then left out: the URI "
        "of its folder, or models:/NAME@ALIAS. The section `model` is then the model's own, and need not be given",
    )

    @property
    def is_skipped(self) -> bool:
        """Whether nothing is trained: a model is taken in its place, or the one before is handed on."""
        return bool(self.from_model) or not self.epochs

    @property
    def reads_features(self) -> bool:
        """Whether training reads stored features of a locked image encoder; not while it is still to be decided."""
        return self.lock == "all" and self.store_features is True

    @property
    def is_undecided(self) -> bool:
        """Whether it is to be decided if features are stored (``store_features: auto``)."""
        return self.lock == "all" and self.store_features == "auto"

    def decided(self, *, store: bool) -> "Training":
        """Return the settings of an undecided training after the decision; a tower in the loop has no stored views."""
        changed = {"store_features": store} if store else {"store_features": store, "views": 0}
        return self.model_copy(update=changed)

    @field_validator("from_model")
    @classmethod
    def _the_model_can_be_trained(cls, value: str) -> str:
        kind = value.partition(":")[0]
        if kind in model_kinds.KINDS:
            raise ValueError(
                f"{value!r} is computed by {kind}'s own code, which `wukong evaluate` measures and this project cannot "
                "train: name a model of this project. Of an open_clip model the image tower can be trained on: name "
                "its safetensors file in model.image.weights; of a BERT or RoBERTa the folder in model.text.weights"
            )
        if value and not value.startswith("models:/") and (why := uri_problem(value)):
            raise ValueError(f"it is models:/NAME@ALIAS, or the URI of a saved model's folder; {why}")
        return value

    @model_validator(mode="after")
    def _a_batch_divides_between_the_workers(self) -> "Training":
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers is {self.min_workers}; at most workers is allowed, which is {self.workers}")
        numbers = range(self.min_workers or self.workers, self.workers + 1)
        for workers in numbers:
            if self.batch_size % workers:
                divided = math.lcm(*numbers)
                raise ValueError(
                    f"batch_size is {self.batch_size}, which {workers} workers cannot divide; a multiple of {divided} "
                    f"is allowed, for instance {-(-self.batch_size // divided) * divided}"
                )
        return self

    @model_validator(mode="after")
    def _several_workers_share_a_state(self) -> "Training":
        if self.shard_optimizer and self.workers == 1:
            raise ValueError(
                "shard_optimizer divides the optimiser's state between workers, and workers is 1: set shard_optimizer: "
                "false, or more workers"
            )
        return self

    @model_validator(mode="after")
    def _features_are_of_a_locked_tower(self) -> "Training":
        if self.is_undecided and self.whiten_image_head:
            raise ValueError(
                "whiten_image_head needs stored features: leave it out, or set store_features: true in place of auto"
            )
        if not (self.reads_features or self.is_undecided):
            for name, value in (("views", self.views), ("whiten_image_head", self.whiten_image_head)):
                if value:
                    raise ValueError(
                        f"{name} is for the stored features of a locked image tower: leave it out, or set lock: all "
                        "and store_features: true"
                    )
        return self
