import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Union, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.registry.aliases import Gate
from wukong.registry.sweep import Sweep

MINIMAL = {"name": "small", "crawl": {"queries": "file:///q.txt", "endpoint": "http://site.test/search"}}


def write(tmp_path: Path, value: object) -> Path:
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump(value), encoding="utf-8")
    return file


def test_paper_values_are_the_defaults(tmp_path: Path) -> None:
    experiment = documents.load(write(tmp_path, MINIMAL))
    # Section 3: 200K queries, at most 1000 samples each; sides over 200 px, ratio at most 3; fewer than 32 words;
    # captions seen at most 10 times.
    assert (experiment.crawl.max_queries, experiment.crawl.max_results_per_query) == (200_000, 1_000)
    assert (experiment.filter.min_side, experiment.filter.max_aspect_ratio) == (201, 3.0)
    assert (experiment.filter.min_length, experiment.filter.max_length, experiment.filter.max_caption_count) == (
        1,
        31,
        10,
    )
    # Tables 3 and 4.
    assert (experiment.model.embedding, experiment.model.text.max_tokens) == (256, 32)
    assert (experiment.model.text.layers, experiment.model.text.width, experiment.model.text.heads) == (12, 768, 12)
    assert (experiment.model.temperature, experiment.pretrain.epochs) == (0.07, 20)


def test_overrides_change_one_value(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    experiment = documents.load(file, ["pretrain.epochs=3", "crawl.politeness.robots_txt=false"])
    assert experiment.pretrain.epochs == 3
    assert experiment.crawl.politeness.robots_txt is False
    assert (
        experiment.model_copy(update={"pretrain": documents.load(file).pretrain}).finetune
        == documents.load(file).finetune
    )


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("pretrain.epoch=3", ["pretrain.epoch", "unknown key", "epochs"]),
        ("pretrain.epochs=0", ["pretrain.epochs", "0 leaves no model", "pretrain.from_model"]),
        ("finetune.epochs=-1", ["finetune.epochs", "greater than or equal to 0", "-1"]),
        ("pretrain.batch_size=0", ["pretrain.batch_size", "greater than 0", "0"]),
        ("filter.name_care=none", ["filter.name_care", "'precise', 'balanced' or 'thorough'", "none"]),
        ("crawl.politeness.robots=no", ["crawl.politeness.robots", "robots_txt"]),
        ("name=Not Allowed", ["name", "Not Allowed"]),
        ("storage=/tmp/x", ["storage", "/tmp/x"]),
        ("pretrain", ["key.path=value"]),
        ("name.x=1", ["name.x=1", "'name' holds a value"]),
        ("pretrain.epochs=[", ["not valid YAML"]),
        ("crawl.no_such.deep=1", ["crawl.no_such", "unknown key"]),
        ("filter.split.holdouts=[{name: a, source: b, extra: 1}]", ["filter.split.holdouts.0.extra", "captions"]),
        (
            "evaluate.classification=[{name: c, holdouts: [nowhere], classes: {}}]",
            ["'nowhere'", "filter.split.holdouts"],
        ),
    ],
)
def test_a_wrong_value_names_the_key_the_value_and_what_is_allowed(
    tmp_path: Path, override: str, named: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        documents.load(write(tmp_path, MINIMAL), [override])
    for text in named:
        assert text in str(caught.value)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"crawl\.endpoint: missing"):
        documents.load(write(tmp_path, {"name": "x", "crawl": {"queries": "file:///q"}}))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"just text", b""])
def test_a_file_that_is_no_experiment_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.yaml"):
        documents.load(file)


def test_a_key_written_twice_is_an_error_not_a_choice(tmp_path: Path) -> None:
    file = tmp_path / "twice.yaml"
    file.write_text("name: x\ncrawl: {queries: 'file:///q', endpoint: 'http://site.test'}\nname: y\n")
    with pytest.raises(ConfigError, match=r"line 3: 'name' is written twice"):
        documents.load(file)


def test_no_file_says_where_examples_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="configs/"):
        documents.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("file", sorted(Path("configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_committed_experiment_is_valid(file: Path) -> None:
    experiment = documents.load(file)
    assert documents.parse(experiment.model_dump(mode="json")) == experiment


def test_stored_features_are_not_asked_of_a_tower_in_training(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    assert documents.load(file, ["finetune.lock=9"]).finetune.lock == 9
    assert documents.load(file, ["pretrain.lock=none", "finetune.views=2"]).pretrain.lock == "none"
    for name in ("views=1", "whiten_image_head=true"):
        with pytest.raises(ConfigError, match="stored features of a locked image tower"):
            documents.load(file, ["pretrain.lock=none", f"pretrain.{name}"])
        with pytest.raises(ConfigError, match="store_features: true"):
            documents.load(file, ["finetune.store_features=false", f"finetune.{name}"])
    with pytest.raises(ConfigError, match=r"pretrain\.lock"):
        documents.load(file, ["pretrain.lock=-1"])


def test_whether_features_are_stored_may_be_left_to_the_run(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    undecided = documents.load(file, ["pretrain.store_features=auto", "pretrain.views=2"]).pretrain
    assert undecided.is_undecided and not undecided.reads_features
    stored, streamed = (undecided.decided(store=store) for store in (True, False))
    assert (stored.reads_features, stored.views) == (True, 2)
    assert (streamed.reads_features, streamed.views) == (False, 0)
    assert not documents.load(file, ["pretrain.store_features=auto", "pretrain.lock=none"]).pretrain.is_undecided
    with pytest.raises(ConfigError, match="whiten_image_head needs stored features"):
        documents.load(file, ["pretrain.store_features=auto", "pretrain.whiten_image_head=true"])
    with pytest.raises(ConfigError, match=r"pretrain\.store_features"):
        documents.load(file, ["pretrain.store_features=sometimes"])


LISTED = {"name": "small", "crawl": {"engine": "urls", "endpoint": "file:///list.csv"}}


def test_a_list_needs_no_queries(tmp_path: Path) -> None:
    assert documents.load(write(tmp_path, LISTED)).crawl.queries == ""
    assert documents.load(write(tmp_path, LISTED), ["crawl.engine=files"]).uris() == {
        "crawl.endpoint": "file:///list.csv"
    }
    with pytest.raises(ConfigError, match=r"crawl\.queries: missing; crawl\.engine 'searxng' is searched by words"):
        documents.load(write(tmp_path, {"name": "x", "crawl": {"engine": "searxng", "endpoint": "https://a/search"}}))


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.image.weights=packge", ["model.image.weights", "'packge'", "'package', 'hub', 'random'"]),
        ("model.image.weights=http://a/b", ["model.image.weights", "the scheme 'http'", "s3://BUCKET/KEY"]),
        ("model.text.weights='hub:'", ["model.text.weights", "'hub:NAME'"]),
        ("model.text.weights=rndom", ["model.text.weights", "'rndom'", "'random'"]),
        ("model.text.vocabulary=vocab.txt", ["model.text.vocabulary", "'vocab.txt'", "'package'"]),
        ("model.text.heads=5", ["model.text", "heads is 5", "width, 768", "8, 12, 16"]),
        ("crawl.endpoint=site.test/search", ["crawl.endpoint", "'site.test/search'", "https://HOST/PATH"]),
        ("crawl.endpoint=ftp://site.test/", ["crawl.endpoint", "ftp://site.test/", "https://HOST/PATH"]),
        ("crawl.endpoint=http://[::1/x", ["crawl.endpoint", "http://[::1/x", "is no URL"]),
        ("crawl.endpoint=http://a:port/", ["crawl.endpoint", "is no URL"]),
        ("crawl.engine=urls", ["crawl.endpoint", "http://site.test/search", "file:///ABSOLUTE/PATH"]),
        ("crawl.engine=bing", ["crawl.engine", "'bing'", "'baidu', 'searxng', 'urls', 'files' or 'published_set'"]),
        ("crawl.queries=queries.txt", ["crawl.queries", "'queries.txt'", "file:///ABSOLUTE/PATH"]),
        ("crawl.queries=file://queries.txt", ["crawl.queries", "names a host, 'queries.txt'", "three slashes"]),
        ("crawl.politeness.opt_out=opt.txt", ["crawl.politeness.opt_out", "'opt.txt'"]),
        ("release.opt_out=opt.txt", ["release.opt_out", "'opt.txt'"]),
        ("validation.reference=earlier", ["validation.reference", "'earlier'"]),
        ("filter.sensitive_words=words/", ["filter.sensitive_words", "'words/'"]),
        ("storage=s3:///x", ["storage", "names no bucket"]),
        ("storage=file://x", ["storage", "names a host, 'x'"]),
        ("registry.model_name=a/b", ["registry.model_name", "'a/b'", "MLflow"]),
        ("registry.level=0.7", ["registry.level", "0.7", "0.5"]),
        ("registry.guards={eval/retrieval/holdouts/mean_recall: 2}", ["registry.guards", "less than 1"]),
        ("registry.guards={accuracy: 0.1}", ["registry.guards", "'accuracy'", "does not measure"]),
        ("registry.alias=latest", ["registry.alias", "'latest'", "letters, digits"]),
        ("registry.alias=v1", ["registry.alias", "'v1'"]),
        ("registry.alias=my champion", ["registry.alias", "'my champion'"]),
        ("pretrain.sources=[]", ["pretrain.sources", "at least 1 item"]),
        ("filter.min_similarity=0.2", ["filter", "min_similarity is 0.2", "similarity_model"]),
        (
            "evaluate.classification=[{name: c, holdouts: [], classes: {}}]",
            ["evaluate.classification 'c'", "at least one of each"],
        ),
        ("filter.min_length=40", ["filter", "min_length is 40 and max_length 31"]),
        ("filter.split.held_out_captions=1.0", ["filter.split.held_out_captions", "1.0", "less than 1"]),
        (
            "filter.split.holdouts=[{name: a, source: '*/b/*', captions: unseen}]",
            ["filter.split.held_out_captions", "0.0", "'a'", "above 0"],
        ),
        ("filter.split.holdouts=[{name: a, source: '*'}]", ["filter.split.holdouts.0.source", "'*'", "unseen"]),
        ("pretrain.batch_size=511", ["pretrain", "batch_size is 511", "2 workers", "512"]),
        ("finetune.workers=3", ["finetune", "batch_size is 512", "3 workers", "513"]),
        ("finetune={workers: 4, min_workers: 2}", ["finetune", "batch_size is 512", "3 workers", "516"]),
        ("finetune={workers: 2, min_workers: 3}", ["finetune", "min_workers is 3", "at most workers", "2"]),
        (
            "finetune={workers: 1, shard_optimizer: true}",
            ["finetune", "shard_optimizer", "workers is 1", "more workers"],
        ),
    ],
)
def test_what_values_can_never_mean_is_refused(tmp_path: Path, override: str, named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        documents.load(write(tmp_path, MINIMAL), [override])
    for text in named:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "metric",
    [
        "retrieval.mean_recall",
        "eval/retrieval/a/mean_recal",
        "eval/retrieval/other/mean_recall",
        "eval/retrieval/holdouts/text_to_image_r1",
        "eval/classification/a/top1",
        "loss",
    ],
)
def test_a_metric_that_is_not_measured_cannot_decide(tmp_path: Path, metric: str) -> None:
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "a", "source": "*", "captions": "unseen"}]}
    file = write(tmp_path, {**MINIMAL, "filter": {"split": split}})
    with pytest.raises(ConfigError, match=r"registry\.metric is .* begins with one of .*eval/retrieval/a"):
        documents.load(file, [f"registry.metric={metric}"])
    for known in (
        "eval/retrieval/holdouts/mean_recall",
        "eval/retrieval/a/text_to_image_r1",
        "pretrained/retrieval/a/mean_recall",
    ):
        assert documents.load(file, [f"registry.metric={known}"]).registry.metric == known


def test_a_validation_that_decides_measures_its_metric(tmp_path: Path) -> None:
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "a", "source": "*", "captions": "unseen"}]}
    file = write(tmp_path, {**MINIMAL, "filter": {"split": split}})

    def asked(**changed: object) -> list[str]:
        return [f"pretrain.validation={yaml.safe_dump(changed, default_flow_style=True).strip()}"]

    with pytest.raises(ConfigError, match=r"keep: best needs a model to be measured: set every_steps"):
        documents.load(file, asked(keep="best"))
    with pytest.raises(ConfigError, match=r"patience: 3 needs a model to be measured"):
        documents.load(file, asked(patience=3))
    for metric in ("retrieval/b/mean_recall", "retrieval/a/top1", "mean_recall", "eval/retrieval/a/mean_recall"):
        with pytest.raises(ConfigError, match=r"pretrain\.validation\.metric is .*not measured with the tasks a;"):
            documents.load(file, asked(keep="best", every_steps=5, metric=metric))
    with pytest.raises(ConfigError, match=r"evaluate\.sets is empty, and pretrain\.validation\.tasks names imagenet"):
        documents.load(file, asked(every_steps=5, tasks=["imagenet"]))
    published = [*asked(every_steps=5, tasks=["imagenet"], keep="best"), "evaluate.sets=file:///sets"]
    with pytest.raises(ConfigError, match=r"'retrieval/holdouts/mean_recall', which is not measured"):
        documents.load(file, published)
    found = documents.load(file, [*published, "pretrain.validation.metric=classification/imagenet/top1"])
    assert found.published_sets == ["imagenet"] and found.uris()["evaluate.sets"] == "file:///sets"
    assert (
        documents.load(file, asked(every_steps=5, keep="best", metric="retrieval/a/mean_recall")).published_sets == []
    )


def test_published_sets_need_a_place_and_names_of_their_own(tmp_path: Path) -> None:
    split = {"held_out_captions": 0.1, "holdouts": [{"name": "muge", "source": "*", "captions": "unseen"}]}
    file = write(tmp_path, {**MINIMAL, "filter": {"split": split}})
    with pytest.raises(ConfigError, match=r"evaluate\.sets is empty, and evaluate\.tasks names coco-cn"):
        documents.load(file, ["evaluate.tasks=[coco-cn]"])
    with pytest.raises(ConfigError, match=r"muge: the hold-outs in .* need different names"):
        documents.load(file, ["evaluate.tasks=[muge]", "evaluate.sets=file:///sets"])
    with pytest.raises(ConfigError, match=r"evaluate\.sets: 'sets' is no URI"):
        documents.load(file, ["evaluate.tasks=[coco-cn]", "evaluate.sets=sets"])
    with pytest.raises(ConfigError, match=r"evaluate\.protocol.*'paper', 'cn-clip', 'clip-benchmark' or 'own'"):
        documents.load(file, ["evaluate.protocol=elevater"])
    found = documents.load(file, ["evaluate.tasks=[coco-cn]", "evaluate.sets=s3://sets/all"])
    assert found.uris()["evaluate.sets"] == "s3://sets/all"
    assert found.held_out_tasks == ["muge"]


def test_a_model_is_called_as_its_experiment(tmp_path: Path) -> None:
    file = write(tmp_path, MINIMAL)
    assert documents.load(file).registry.model_name == "small"
    assert documents.load(file, ["name=other"]).registry.model_name == "other"
    assert documents.load(file, ["registry.model_name=shared", "registry.alias=best"]).registry.model_name == "shared"
    again = documents.parse(documents.load(file).model_dump(mode="json"))
    assert again.registry.model_name == "small"


@pytest.mark.parametrize("engine", ["searxng", "urls", "files"])
@pytest.mark.parametrize(
    ("key", "values", "named"),
    [
        (
            "min_side",
            {"filter": 100},
            ["filter.min_side: 100", "crawl.min_side, which is 201", "crawl.min_side to 100"],
        ),
        ("min_side", {"filter": 250, "crawl": 300}, ["filter.min_side: 250", "crawl.min_side, which is 300"]),
        ("min_side", {"filter": 100, "crawl": 100}, []),
        ("min_side", {"filter": 300}, []),
        ("min_side", {"crawl": 300}, []),
        ("max_aspect_ratio", {"filter": 5}, ["filter.max_aspect_ratio: 5.0", "crawl.max_aspect_ratio, which is 3.0"]),
        ("max_aspect_ratio", {"filter": 5, "crawl": 5}, []),
        ("max_aspect_ratio", {"filter": 2}, []),
        ("max_aspect_ratio", {"crawl": 2}, []),
    ],
)
def test_a_limit_of_the_filter_that_the_crawl_has_already_applied_is_refused(
    tmp_path: Path, engine: str, key: str, values: dict[str, int], named: list[str]
) -> None:
    crawl: object = {"queries": "file:///q.txt", "endpoint": "http://site.test/search", "engine": engine}
    if engine != "searxng":
        crawl = {"engine": engine, "endpoint": "file:///list.csv"}
    file = write(tmp_path, {"name": "x", "crawl": crawl})
    overrides = [f"{section}.{key}={value}" for section, value in values.items()]
    if not named:
        experiment = documents.load(file, overrides)
        assert documents.parse(experiment.model_dump(mode="json")) == experiment
        return
    with pytest.raises(ConfigError) as caught:
        documents.load(file, overrides)
    for text in named:
        assert text in str(caught.value)


def floats(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """The dotted keys of a model and its sections that take a number with a point."""
    for name, field in model.model_fields.items():
        pending = [field.annotation]
        while pending:
            kind = pending.pop()
            if get_origin(kind) is Annotated:
                pending.append(get_args(kind)[0])
            elif get_origin(kind) in (Union, types.UnionType):
                pending += get_args(kind)
            elif kind is float:
                yield path + name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from floats(kind, f"{path}{name}.")


FLOATS = list(floats(Experiment))


def test_there_are_floats() -> None:
    assert {"crawl.max_seconds", "crawl.politeness.max_host_seconds", "model.bias", "filter.max_aspect_ratio"} < {
        *FLOATS
    }


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_no_number_is_infinite_or_none(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        documents.load(write(tmp_path, MINIMAL), [f"{key}={value}"])
    assert key in str(raised.value) and f"got {float(value.replace('.', '', 1))}" in str(raised.value)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_no_number_of_a_list_or_a_sweep_is_infinite(tmp_path: Path, value: float) -> None:
    with pytest.raises(ConfigError, match=r"registry\.guards"):
        documents.parse(MINIMAL | {"registry": {"guards": {"eval/retrieval/holdouts/mean_recall": value}}})
    for values in ([value, 1.0], {"low": 0.0, "high": value}):
        with pytest.raises(ValidationError, match="finite"):
            Sweep.model_validate(
                {"name": "s", "experiment": "e.yaml", "parameters": {"pretrain.learning_rate": values}}
            )
    with pytest.raises(ValidationError, match="finite"):
        Gate.model_validate({"metric": "m", "level": value, "guards": {}})


@pytest.mark.parametrize("key", ["crawl.max_seconds", "crawl.max_decode_seconds"])
def test_seconds_that_no_clock_can_count_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*86400"):
        documents.load(write(tmp_path, MINIMAL), [f"{key}=1e300"])
