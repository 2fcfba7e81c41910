"""The typed experiment: one YAML file with everything that a run does. An unknown key is an error.

Values that cannot be meant, alone or together, are refused here. ``wukong.preflight`` checks what depends on the world:
files, disks, memory, servers.
"""

import math
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from wukong.crawl import engines
from wukong.curate import rules
from wukong.errors import ConfigError
from wukong.section import Fraction, Positive, Strict

if TYPE_CHECKING:
    # The settings that the type checker knows. A rule whose settings nothing but its own file reads need not be here.
    from wukong.curate.rules import aspect_ratio, duplicate_image, frequency, language, length, sensitive, similarity
    from wukong.curate.rules import size as sides

    class _RuleSettings(
        sides.Settings,
        aspect_ratio.Settings,
        length.Settings,
        frequency.Settings,
        sensitive.Settings,
        similarity.Settings,
        duplicate_image.Settings,
    ):
        pass

    class _GateSettings(language.GateSettings, frequency.GateSettings):
        pass

    Engine = str
else:
    Engine = Literal[(*engines.REGISTRY, "urls", "files")]
    _RuleSettings = rules.section_of("settings")
    _GateSettings = rules.section_of("gate_settings")


Dtype = Literal["float16", "int8"]
"""Of the numbers in stored features."""


class Politeness(Strict):
    """How the crawler treats the sites it visits; every relaxation is the operator's decision."""

    robots_txt: bool = Field(True, description="obey the robots.txt of each host that images are fetched from")
    search_robots_txt: bool = Field(
        True, description="obey the search engine's robots.txt too; switch it off only where you may query the engine"
    )
    respect_noai: bool = Field(True, description="leave out images whose X-Robots-Tag says noai or noimageai")
    per_host_concurrency: Positive = Field(8, description="requests to one host at the same time, in the whole cluster")
    per_host_delay: float = Field(0.0, ge=0.0, description="seconds between two requests to one host")
    max_crawl_delay: float = Field(
        60.0, gt=0, description="seconds: a host whose robots.txt asks for a longer Crawl-delay is left alone"
    )
    max_retry_after: float = Field(
        60.0, gt=0, description="seconds: a host that asks to wait longer (Retry-After) is left alone until then"
    )
    max_host_seconds: float = Field(
        3_600.0,
        gt=0,
        description="that one host's slowness may cost each process: its Crawl-delay and Retry-After, requests that "
        "fail or crawl, pictures that are hard to decode; after that it is left alone",
    )
    user_agent: str = Field(
        "wukong-crawler/0.1 (+https://github.com/wukong/wukong; dataset research)",
        description="sent with each request, and the name that robots.txt rules are looked up by",
    )
    opt_out: str | None = Field(None, description="URI of a file of domains, URLs and SHA-256 digests to leave out")


class Crawl(Strict):
    """Section 3: from queries to downloaded image-text pairs."""

    queries: str = Field(
        "", description="URI of the query list: one word a line, most frequent first; for engines that are searched"
    )
    max_queries: Positive = Field(200_000, description="only the first of the list are searched; the paper has 200,000")
    engine: Engine = Field(
        "baidu",
        description="a search engine; 'urls', a list of URLs; or 'files', pictures of one's own (docs/own-data.md)",
    )
    endpoint: str = Field(
        description="the engine's search URL; for 'urls' the URI of the list; for 'files' of a folder or a list"
    )
    max_results_per_query: Positive = Field(1_000, description="search results taken for one query, as in the paper")
    part_size: Positive = Field(1_000, description="URLs a part, that is a task, a tar and a Parquet file")
    concurrency: Positive = Field(64, description="requests in flight for each process")
    min_side: int = Field(
        201, ge=0, description="header-first: pictures with a smaller side are not downloaded further"
    )
    max_aspect_ratio: float = Field(
        3.0, ge=1.0, description="longer side over shorter side; above it an image is not kept"
    )
    resize: Literal["keep_ratio", "center_crop", "border", "no"] = Field(
        "keep_ratio",
        description="'keep_ratio' makes the shorter side image_size and never enlarges; 'center_crop' and 'border' "
        "give a square, cut or padded with white; 'no' leaves the image as it is",
    )
    image_size: Positive = Field(256, description="pixels of the shorter side after resizing")
    jpeg_quality: int = Field(95, ge=1, le=100, description="of images that are encoded anew")
    keep_small_jpegs: bool = Field(
        True, description="a JPEG that needs no resizing keeps its pixels, and only its metadata is removed"
    )
    url_column: str = Field("url", description="of a URL list")
    caption_column: str = Field("caption", description="of a URL list")
    max_bytes: Positive = Field(32 * 2**20, description="an image with a larger file is left out")
    max_bytes_in_flight: int = Field(
        256 * 2**20,
        ge=16 * 2**20,
        description="of answers that a process holds in memory at a time; an answer for which there is no room is "
        "requested when there is",
    )
    max_seconds: float = Field(
        30.0, gt=0, le=86_400, description="on the wire, over all attempts and redirects of one picture"
    )
    max_pixels: int = Field(
        64_000_000, ge=1, le=178_956_970, description="an image with more pixels is not decoded; Pillow opens no more"
    )
    max_decode_seconds: float = Field(
        10.0, gt=0, le=86_400, description="of processor time, to decode one picture, resize and encode it"
    )
    retries: int = Field(2, ge=0, description="further attempts after a failure that may pass")
    previous: str | None = Field(
        None, description="URI of an earlier crawl: only what it does not have is searched and fetched"
    )
    retry_failed: bool = Field(False, description="fetch again what failed in the previous crawl")
    max_transient_share: Fraction = Field(
        0.5,
        description="of URLs, and of searches, that may fail for reasons that pass (no DNS, timeouts, busy servers): "
        "with more the crawl fails, and the next run tries those again",
    )
    max_unexpected_share: Fraction = Field(
        0.1, description="of URLs, and of searches, that may end in an error of our own code; with more the crawl fails"
    )
    politeness: Politeness = Politeness()

    @model_validator(mode="after")
    def _the_largest_image_fits(self) -> "Crawl":
        if self.max_bytes > self.max_bytes_in_flight:
            raise ValueError(
                f"max_bytes is {self.max_bytes} and max_bytes_in_flight {self.max_bytes_in_flight}, and an image must "
                "fit into the bytes in flight: lower the first or raise the second"
            )
        return self

    @property
    def searched(self) -> bool:
        """Whether the engine is a search engine, which is asked for the query list's words, and not a list."""
        return self.engine in engines.REGISTRY


class Holdout(Strict):
    """A test set: pairs from some sources, whose captions training has seen or has not (see ``Split``)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the test set; also its folder")
    title: str = Field("", description="how reports call it")
    source: str = Field(description="shell pattern on the image URL, for instance '*/fluent/*'")
    captions: Literal["seen", "unseen", "any"] = Field(
        "any", description="take pairs whose captions training has ('seen'), pairs whose captions are held out, or both"
    )


class Split(Strict):
    """Which pairs training must not see. The split is by caption and picture, never by file.

    A caption is held out when its salted hash is below the fraction; training sees no pair with that caption, whatever
    its source. Training also sees no pair whose URL matches the source of a hold-out without ``captions: unseen``, and
    no pair with the same picture (by SHA-256) as a pair that it must not see. Of all these pairs, a hold-out takes
    those of its source: with ``captions: unseen`` only those with held-out captions, with ``seen`` only those with
    captions that training sees. A pair that several hold-outs could take is in the first of them. The others are
    ``held_back``.
    """

    held_out_captions: Fraction = Field(0.0, description="share of the distinct captions that are held out")
    salt: str = Field("wukong", description="another text holds out other captions")
    holdouts: tuple[Holdout, ...] = Field((), description="the test sets")

    @model_validator(mode="after")
    def _names_are_folders(self) -> "Split":
        names = [holdout.name for holdout in self.holdouts]
        for name in names:
            if name in ("train", "dropped", "pairs", "kept"):
                raise ValueError(f"a hold-out cannot be called {name!r}: that name has a meaning of its own")
            if names.count(name) > 1:
                raise ValueError(f"two hold-outs are called {name!r}; give each a name of its own")
        return self


class Filter(_RuleSettings):
    """Sections 3.1 and 3.2: the settings of the rules (``wukong/curate/rules``), and what else is done to pairs."""

    mask_names: bool = Field(True, description="replace names of persons in captions by '<人名>', as in the paper")
    name_care: Literal["precise", "balanced", "thorough"] = Field(
        "balanced", description="'precise' masks fewer words that are no names, 'thorough' leaves fewer names unmasked"
    )
    clean_markup: bool = Field(False, description="take HTML and emoji out of captions, before all else")
    simplify: bool = Field(False, description="turn captions into Simplified Chinese (OpenCC), before they are counted")
    shard_size: Positive = Field(1_000, description="pairs a training shard")
    seed: int = Field(0, ge=0, description="of the order of pairs in shards, and of the examples on cards and reports")
    split: Split = Split()


class Validation(_GateSettings):
    """The gate between data and training: the tolerances of the rules' checks, and what else must hold."""

    min_pairs: Positive = Field(1_000, description="pairs that the set must have")
    max_unmasked_name_rate: Fraction = Field(
        0.05, description="share of captions in which a name of a person may be left, by the recogniser's own count"
    )
    reference: str | None = Field(
        None, description="URI of an earlier validate stage's output: the distributions of its set are compared"
    )
    max_drift: Fraction = Field(
        0.1, description="from the reference: Jensen-Shannon divergence, in bits, of each distribution"
    )
    severity: dict[str, Literal["fail", "warn"]] = Field(
        {}, description="by expectation name; 'fail' unless said otherwise"
    )


class Release(Strict):
    """The set as it is published: CSV files of ``url,caption``."""

    files: Positive = Field(256, description="CSV files to write; the paper's set has 256")
    opt_out: str | None = Field(
        None, description="URI of a file of domains, URLs and SHA-256 digests to leave out; if absent, the crawler's"
    )
    licence: str = Field("", description="of the list of URLs and captions, a name or an address")
    version: str = Field("1.0.0", description="of the released set")


class ImageEncoder(Strict):
    """An image encoder: a timm model by name, the source of its weights, and the resolution of its input."""

    name: str = Field("tf_efficientnet_lite0", description="timm's, for instance 'resnet50_clip.openai'")
    weights: str = Field(
        "package",
        description="'package' (tf_efficientnet_lite0 and vit_small_patch14_dinov2 have one), 'hub', 'random', or the "
        "URI of a safetensors file in timm's, OpenAI's or open_clip's naming",
    )
    image_size: Positive = Field(224, description="pixels of a side of the square that the tower sees")
    view: Literal["whole", "crop"] = Field(
        "whole",
        description="what the tower sees of a picture that is not augmented: the 'whole' of it on a white square, or "
        "'crop', as CLIP and most evaluations do: resized by its shorter side and cut to the square in its middle",
    )
    block: int | None = Field(
        None, ge=0, description="take the features after this stage (CNN, Swin) or block (ViT) instead of the last ones"
    )

    @field_validator("weights")
    @classmethod
    def _weights_are_known(cls, value: str) -> str:
        if value not in ("package", "hub", "random") and (why := uri_problem(value)):
            raise ValueError(f"it is 'package', 'hub', 'random', or the URI of a safetensors file; {value!r} {why}")
        return value


class TextEncoder(Strict):
    """A BERT-like text tower (section 4.2) over a WordPiece vocabulary of 21,128."""

    layers: Positive = Field(12, description="transformer layers")
    heads: Positive = Field(12, description="attention heads of a layer; they divide width")
    width: Positive = Field(768, description="of a token's vector")
    max_tokens: Positive = Field(32, description="of a caption, [CLS] and [SEP] included; more are cut off")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of values set to zero in training")
    pooling: Literal["cls", "mean"] = Field(
        "cls", description="what stands for a caption: [CLS], as in the paper, or the mean of its tokens"
    )
    vocabulary: str = Field("package", description="'package' for the Chinese BERT's, or the URI of a vocab.txt")
    weights: str = Field(
        "random",
        description="what training starts from: 'random', as in the paper; the URI of a folder with config.json and "
        "model.safetensors of a BERT or RoBERTa; or 'hub:' and its name there, for instance 'hub:bert-base-chinese'",
    )
    norm_epsilon: float = Field(1e-12, gt=0, description="of the layer norms: BERT's 1e-12, RoBERTa's 1e-5")

    @field_validator("vocabulary")
    @classmethod
    def _vocabulary_is_known(cls, value: str) -> str:
        if value != "package" and (why := uri_problem(value)):
            raise ValueError(f"it is 'package', or the URI of a vocab.txt; {value!r} {why}")
        return value

    @field_validator("weights")
    @classmethod
    def _weights_are_known(cls, value: str) -> str:
        named = value.startswith("hub:") and value != "hub:"
        if value != "random" and not named and (why := uri_problem(value)):
            raise ValueError(f"it is 'random', 'hub:NAME', or the URI of a folder of a BERT; {value!r} {why}")
        return value

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "TextEncoder":
        if self.width % self.heads:
            fitting = [n for n in range(1, min(self.width, 64) + 1) if not self.width % n]
            raise ValueError(
                f"heads is {self.heads}, which does not divide width, {self.width}; for this width heads may be "
                f"{', '.join(map(str, fitting))}"
            )
        return self


class Model(Strict):
    """The dual encoder of figure 1: an architecture (``wukong/model/architectures``) and the keys that override it."""

    architecture: str | None = Field(
        None,
        exclude=True,  # what it stands for is in the other keys
        description="name of a file in wukong/model/architectures, such as vit-b-32; the other keys override it",
    )
    image: ImageEncoder = ImageEncoder()
    text: TextEncoder = TextEncoder()
    embedding: Positive | None = Field(
        256,
        description="width of the common space (table 3), to which each side is projected; null for no projections, "
        "where the towers are of one width",
    )
    similarity: Literal["global", "token"] = Field(
        "global", description="of one vector an image and a caption, or of all their tokens (section 4.3)"
    )
    match_text_cls: bool = Field(
        True,
        description="of the token-wise similarity: whether a patch may take the text's [CLS] for its match (s^I), as "
        "in section 4.3 and the authors' code; a text's similarity to pictures (s^T) leaves [CLS] out either way",
    )
    temperature: float = Field(0.07, gt=0, description="initial; learned")
    min_temperature: float = Field(0.01, gt=0, description="the learned temperature is never lower")
    loss: Literal["softmax", "sigmoid"] = Field(
        "softmax", description="a caption among all of the batch (section 4.3), or each pair by itself (SigLIP)"
    )
    bias: float = Field(-10.0, description="initial, of the sigmoid loss: most of what it sees are no pairs; learned")

    @model_validator(mode="before")
    @classmethod
    def _of_architecture(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("architecture") is None:
            return value
        merged = dict(architecture(value["architecture"]))
        for key, entry in value.items():
            if key == "architecture":
                continue
            both = isinstance(entry, dict) and isinstance(merged.get(key), dict)
            merged[key] = {**merged[key], **entry} if both else entry
        return merged


def architecture(name: str) -> dict[str, Any]:
    """Read a file of ``wukong/model/architectures``: keys of ``model`` by section.

    Raises:
        ValueError: there is no such file; the message names those there are.
    """
    folder = resources.files("wukong.model") / "architectures"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in names:
        raise ValueError(f"there is no architecture {name!r}; allowed are {', '.join(names)}")
    value: dict[str, Any] = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    return value


class Features(Strict):
    """How stored features are kept (store_features). The tower computes them in pretrain.precision."""

    dtype: Dtype = Field(
        "float16", description="of the stored numbers; 'int8' has a scale for each vector and takes half of the room"
    )
    room_gib: float | None = Field(
        None,
        gt=0,
        description="for store_features: auto, room for features in a store that cannot say how much is free, like S3",
    )


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

    every_steps: int = Field(
        0, ge=0, description="steps between two validations; 0 for none. The last step is validated too"
    )
    tasks: tuple[str, ...] = Field(
        (),
        description="hold-outs, sets of `evaluate.classification`, or published sets (`evaluate.sets` has them); if "
        "empty, all but the published sets",
    )
    protocol: Literal["paper", "cn-clip", "clip-benchmark", "own"] = Field(
        "paper", description="how the published sets are measured; hold-outs are always measured by `own`"
    )
    metric: str = Field(
        "retrieval/holdouts/mean_recall",
        description="KIND/TASK/RESULT that decides which model is best; higher is better",
    )
    keep: Literal["last", "best"] = Field("last", description="the model that training ends with")
    patience: int = Field(
        0, ge=0, description="validations in a row without a better metric after which training ends; 0 for no end"
    )
    min_delta: float = Field(0.0, ge=0, description="by how much a metric must be better to count for `patience`")

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

    epochs: Positive = Field(20, description="times that all pairs are trained on")
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
    gpus_per_worker: int = Field(0, ge=0, description="0 trains on processors")
    views: int = Field(
        0, ge=0, description="augmented views of each picture, beside the plain one, whose locked features are cached"
    )
    sources: tuple[str, ...] = Field(
        ("*",), min_length=1, description="shell patterns on the image URL of the pairs to train on"
    )
    whiten_image_head: bool = Field(
        False, description="start the image head as a whitening of the training features instead of at random"
    )
    image_head_rate: float = Field(1.0, ge=0, description="learning rate of the image head, as a share of the others'")
    token_dropout: float = Field(0.0, ge=0.0, lt=1.0, description="share of word pieces replaced by [MASK]")
    exclude_same_captions: bool = Field(True, description="equal captions in a batch are not each other's negatives")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="share of each answer given to the other pairs")
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
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="of the towers' and heads' arithmetic; 'tf32' lets GPUs round the factors of float32 products",
    )
    clip_gradient_norm: float = Field(
        0.0, ge=0, description="the largest norm of a step's gradient, over all parameters; 0 for no limit"
    )
    deterministic: bool = Field(
        True,
        description="equal inputs give equal weights, to the bit; an operation that has no such version is an error; "
        "false lets torch and the token-wise kernels choose the fastest algorithms",
    )
    compile: bool = Field(False, description="compile the towers with torch.compile; the first steps take much longer")
    checkpoint_activations: bool = Field(
        False, description="compute each layer a second time in the backward pass instead of keeping what it computed"
    )
    checkpoint: Checkpointing = Checkpointing()
    validation: Validating = Validating()
    max_failures: int = Field(
        5,
        ge=0,
        description="times in a row that training is started again after a failure, such as a lost machine; a new "
        "checkpoint starts the count again. Errors in settings or data end it at once",
    )
    log_every: Positive = Field(
        50,
        description="steps between two looks at the loss: what is measured is logged, what is not finite ends the run",
    )

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


class Classification(Strict):
    """A zero-shot classification set: pictures of a hold-out, classes by a pattern on their URL."""

    name: str = Field(description="of the task, as it stands in the metrics")
    title: str = Field("", description="how reports call it")
    holdouts: tuple[str, ...] = Field(description="names of the test sets whose images are classified")
    classes: dict[str, str] = Field(description="Chinese class name -> shell pattern on the image URL")


class Evaluate(Strict):
    """Section 5.2 and 5.3: what is measured."""

    batch_size: Positive = Field(256, description="images or captions encoded at once")
    captions: Literal["distinct", "all", "first"] = Field(
        "distinct",
        description="of retrieval: 'distinct' takes equal captions as one, 'all' every pair's caption by itself, as "
        "for Flickr30K or COCO with five captions a picture, 'first' each picture's first caption alone",
    )
    classification: tuple[Classification, ...] = Field((), description="zero-shot classification tasks")
    tasks: tuple[str, ...] = Field(
        (), description="published evaluation sets that are measured too, for instance [coco-cn, imagenet]"
    )
    protocol: Literal["paper", "cn-clip", "clip-benchmark", "own"] = Field(
        "paper", description="how the published sets are measured; hold-outs are always measured by `own`"
    )
    sets: str = Field(
        "", description="URI of the folder that holds a folder for each published set; needed if `tasks` names any"
    )

    @model_validator(mode="after")
    def _sets_have_a_place(self) -> "Evaluate":
        if self.tasks and not self.sets:
            raise ValueError(
                f"evaluate.sets is empty, and evaluate.tasks names {', '.join(self.tasks)}: give the URI of the folder "
                "that holds them, file:///FOLDER or s3://BUCKET/PREFIX"
            )
        return self


class Registry(Strict):
    """Where a model is registered that is better than the one with the alias."""

    model_name: str = Field(
        "", description="in MLflow; if empty, the experiment's name, so that models of other data do not compete"
    )
    alias: str = Field("champion", description="what MLflow calls the best version of the model")
    metric: str = Field(
        "eval/retrieval/holdouts/mean_recall",
        description="name of the evaluation metric that decides; higher is better",
    )
    level: float = Field(
        0.04,
        gt=0,
        lt=0.5,
        description="probability that a model that is no better takes the alias, over all attempts at one holder",
    )
    guards: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        {},
        description="by metric the margin, a share of 1, by which a model must be shown not to be worse than the "
        "holder, e.g. {eval/classification/holdouts/top1: 0.02}",
    )
    first: Literal["above-chance", "any"] = Field(
        "above-chance",
        description="what the first model of all must be to take the alias: better than chance by more than noise, or "
        "nothing, for trials with so few pairs that no model can show it",
    )

    @model_validator(mode="before")
    @classmethod
    def _the_webhook_is_the_operators(cls, value: Any) -> Any:
        """An experiment that an earlier version stored has the section, empty where nobody was told."""
        if not isinstance(value, dict) or not isinstance(section := value.get("webhook"), dict):
            return value
        if section.get("url"):
            raise ValueError(
                "webhook: who is told is not the experiment's to say, because MLflow and KFP show it to everybody: set "
                "the variables WUKONG_WEBHOOK_URL and WUKONG_WEBHOOK_SECRET where the alias is moved"
            )
        return {key: entry for key, entry in value.items() if key != "webhook"}

    @field_validator("model_name")
    @classmethod
    def _mlflow_takes_the_name(cls, value: str) -> str:
        if set(value) & set("/:"):
            raise ValueError(f"{value!r} holds '/' or ':', which MLflow does not take in a model's name")
        return value

    @field_validator("alias")
    @classmethod
    def _mlflow_takes_the_alias(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,255}", value) or re.fullmatch(r"(?i)latest|v\d+", value):
            raise ValueError(
                f"{value!r} is no alias that MLflow takes: letters, digits, '_' and '-', but neither 'latest' nor a "
                "version such as 'v1'"
            )
        return value


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
    def held_out_tasks(self) -> list[str]:
        """The names of what is measured on hold-outs: retrieval on each, then the classification sets."""
        holdouts = [holdout.name for holdout in self.filter.split.holdouts]
        return [*holdouts, *(task.name for task in self.evaluate.classification)]

    @property
    def published_sets(self) -> list[str]:
        """The names of the published sets that are measured, at the end or while a model is trained."""
        validated = [name for each in (self.pretrain, self.finetune) for name in each.validation.tasks]
        known = {*self.held_out_tasks}
        return list(dict.fromkeys([*self.evaluate.tasks, *(name for name in validated if name not in known)]))

    def uris(self) -> dict[str, str]:
        """The URIs that the experiment reads, by their dotted key. Keys that are not set are left out."""
        crawl, model = self.crawl, self.model
        named = {
            "crawl.queries": crawl.queries,
            "crawl.endpoint": None if crawl.searched else crawl.endpoint,
            "crawl.politeness.opt_out": crawl.politeness.opt_out,
            "crawl.previous": crawl.previous,
            **{f"filter.{key}": getattr(self.filter, key) for rule in rules.REGISTRY for key in rule.uris or ()},
            "validation.reference": self.validation.reference,
            "release.opt_out": self.release.opt_out,
            "evaluate.sets": self.evaluate.sets if self.published_sets else None,
            "model.image.weights": model.image.weights if "://" in model.image.weights else None,
            "model.text.vocabulary": model.text.vocabulary if "://" in model.text.vocabulary else None,
            "model.text.weights": model.text.weights if "://" in model.text.weights else None,
        }
        return {key: value for key, value in named.items() if value}

    @model_validator(mode="before")
    @classmethod
    def _models_are_the_experiments(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(registry := value.get("registry", {}), dict):
            return value
        return {**value, "registry": {**registry, "model_name": registry.get("model_name") or value.get("name", "")}}

    @model_validator(mode="after")
    def _values_agree(self) -> "Experiment":
        problems = [f"{key}: {value!r} {why}" for key, value in self.uris().items() if (why := uri_problem(value))]
        if why := uri_problem(self.storage):
            problems.append(f"storage: {self.storage!r} {why}")
        problems += [
            *_engine_problems(self.crawl),
            *_limit_problems(self.crawl, self.filter),
            *_split_problems(self.filter.split),
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
            measured = self._measured_tasks()
            raise ValueError(
                f"{key} is {metric!r}, which the evaluation does not measure; of retrieval it measures "
                f"{', '.join(_RESULTS['retrieval'])}, of classification {', '.join(_RESULTS['classification'])}, "
                f"of all hold-outs together eval/retrieval/holdouts/mean_recall and eval/classification/holdouts/top1; "
                f"a name begins with one of "
                f"{', '.join(f'eval/{kind}/{task}' for kind, tasks in measured.items() for task in tasks)}"
            )
        return self

    @model_validator(mode="after")
    def _validation_measures_what_decides(self) -> "Experiment":
        for key, settings in (("pretrain", self.pretrain), ("finetune", self.finetune)):
            asked = settings.validation
            published = [name for name in asked.tasks if name not in self.held_out_tasks]
            if published and not self.evaluate.sets:
                raise ValueError(
                    f"evaluate.sets is empty, and {key}.validation.tasks names {', '.join(published)}, besides the "
                    f"tasks of hold-outs ({', '.join(self.held_out_tasks) or 'there are none'}): give the URI of the "
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
        """The tasks of hold-outs by their kind; ``holdouts`` stands for all of a kind."""
        held = [holdout.name for holdout in self.filter.split.holdouts]
        classified = [task.name for task in self.evaluate.classification]
        return {"retrieval": ["holdouts", *held], "classification": ["holdouts", *classified]}

    def _is_measured(self, metric: str, published: Sequence[str], tasks: Sequence[str] | None = None) -> bool:
        """Whether KIND/TASK/RESULT is a result of the published sets or of hold-outs; ``tasks`` None for all of them.

        A data set may be made without a hold-out; what trains asks for one (wukong.preflight).
        """
        kind, task, result = [*metric.split("/"), "", ""][:3]
        held = self._measured_tasks().get(kind, [])
        if tasks is not None:
            held = [name for name in held if name in tasks]
            held += ["holdouts"] if held else []
        if result not in (_MEANS if task == "holdouts" else _RESULTS).get(kind, ()):
            return False
        return task in (*held, *published) or not self.filter.split.holdouts

    @model_validator(mode="after")
    def _tasks_have_names_of_their_own(self) -> "Experiment":
        # "holdouts" stands for all of them in the name of a metric.
        names = [*self.held_out_tasks, *self.evaluate.tasks, "holdouts"]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"{', '.join(twice)}: the hold-outs in filter.split.holdouts, the sets in evaluate.classification and "
                "those in evaluate.tasks need different names, and none is 'holdouts'"
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
                        f"filter.split.holdouts has {', '.join(sorted(known)) or 'none'}"
                    )
            if not task.holdouts or not task.classes:
                raise ValueError(
                    f"evaluate.classification {task.name!r} has {len(task.holdouts)} holdouts and {len(task.classes)} "
                    "classes; it takes at least one of each"
                )
        return self


def uri_problem(value: str) -> str:
    """Return why ``wukong.storage`` cannot open a value as a URI, as the end of a sentence; empty if it can."""
    if not _SCHEME.match(value):
        return "is no URI: write file:///ABSOLUTE/PATH or s3://BUCKET/KEY"
    scheme, _, rest = value.partition("://")
    if scheme not in ("file", "s3"):
        return f"has the scheme {scheme!r}; allowed are file:///ABSOLUTE/PATH and s3://BUCKET/KEY"
    if scheme == "file" and not rest.startswith("/"):
        return f"names a host, {rest.split('/')[0]!r}; a path on this machine has three slashes: file:///ABSOLUTE/PATH"
    if not rest.strip("/") or rest.startswith("//"):
        return "names nothing; write file:///ABSOLUTE/PATH or s3://BUCKET/KEY"
    return "names no bucket: write s3://BUCKET/KEY" if scheme == "s3" and rest.startswith("/") else ""


_RESULTS = {
    "retrieval": ("mean_recall", *(f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10))),
    "classification": ("top1", "top5", "mean_per_class"),
}
_MEANS = {"retrieval": ("mean_recall",), "classification": ("top1",)}
"""The results of the evaluation, and those whose mean over hold-outs is a metric too (wukong.evaluate.results)."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


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


def _engine_problems(crawl: Crawl) -> Iterator[str]:
    """Return what is wrong with the keys that ``crawl.engine`` reads."""
    if not crawl.searched:
        return
    if not crawl.queries:
        yield (
            f"crawl.queries: missing; crawl.engine {crawl.engine!r} is searched by words: name the URI of a list "
            "('urls' and 'files' need none)"
        )
    try:
        parts = urlsplit(crawl.endpoint)
        host, _port = parts.hostname, parts.port
    except ValueError as error:
        yield f"crawl.endpoint: {crawl.endpoint!r} is no URL ({error}); write https://HOST/PATH"
        return
    if parts.scheme not in ("http", "https") or not host:
        yield (
            f"crawl.endpoint: {crawl.endpoint!r} is not the address of a {crawl.engine} search: write it with its "
            "scheme, https://HOST/PATH (a list of URLs has crawl.engine: urls)"
        )


def _limit_problems(crawl: Crawl, settings: Filter) -> Iterator[str]:
    """Return the limits of the filter that have no effect, because the crawl has already left those pictures out.

    A limit that has its default value is not reported: an experiment may narrow the crawl's limit alone.
    """
    for rule in rules.REGISTRY:
        for key, lets_more_pass in (rule.crawl_limits or {}).items():
            of_filter, of_crawl = getattr(settings, key), getattr(crawl, key)
            if lets_more_pass(of_filter, of_crawl) and of_filter != Filter.model_fields[key].default:
                yield (
                    f"filter.{key}: {of_filter} has no effect: the crawl has already left pictures out by crawl.{key}, "
                    f"which is {of_crawl}. Set crawl.{key} to {of_filter} too, or filter.{key} to {of_crawl}"
                )


def load(path: Path, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment from a YAML file and apply ``key.path=value`` overrides, whose values are YAML.

    Raises:
        ConfigError: the file cannot be read, or a key is unknown or a value not allowed; the message names the key, the
            value and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"no experiment file at {path}; configs/ holds examples") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; an experiment is a YAML file in UTF-8") from error
    return loads(text, overrides, where=str(path))


def loads(text: str, overrides: list[str] | None = None, where: str = "the experiment") -> Experiment:
    """Read an experiment from the text of a YAML (or JSON) file; see ``load``."""
    try:
        value = yaml.load(text, _UniqueKeys)  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must hold a mapping at its top level, like configs/demo.yaml")
    for override in overrides or []:
        _override(value, override)
    return parse(value, where=where)


def parse(value: dict[str, Any], where: str = "the experiment") -> Experiment:
    """Check a mapping against the experiment's types; see ``load``."""
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        lines = [_explain(entry) for entry in error.errors()]
        raise ConfigError("\n".join([f"{where} is not a valid experiment:", *lines])) from error


class _UniqueKeys(yaml.SafeLoader):
    """YAML without the trap that of a key written twice only the second value counts."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.YAMLError(f"line {key_node.start_mark.line + 1}: {key!r} is written twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _override(value: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r}: write it as key.path=value, for instance pretrain.epochs=3")
    *parents, last = key.strip().split(".")
    target: Any = value
    for name in parents:
        target = target.setdefault(name, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {name!r} holds a value, so nothing can be set below it")
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error


def _explain(entry: Any) -> str:
    location = [str(part) for part in entry["loc"]]
    key = ".".join(location)
    if entry["type"] == "extra_forbidden":
        return f"  {key}: unknown key; allowed here: {', '.join(_allowed_keys(location[:-1]))}"
    if entry["type"] == "missing":
        return f"  {key}: missing"
    shown = "" if entry["type"] == "value_error" else f" (got {entry['input']!r})"
    where = f"{key}: " if key else ""  # what concerns several sections names its keys itself
    return f"  {where}{entry['msg'].removeprefix('Value error, ')}{shown if key else ''}"


def _allowed_keys(location: list[str]) -> list[str]:
    model: Any = Experiment
    for name in location:
        if name.isdigit():
            continue
        annotation = model.model_fields[name].annotation
        inner = getattr(annotation, "__args__", None)
        model = inner[0] if inner else annotation
    return sorted(model.model_fields)
