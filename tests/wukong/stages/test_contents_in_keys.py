"""What an address holds is in the keys by its content: which settings are addresses, what a replaced file changes."""

import hashlib
import json
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from wukong import stages
from wukong.config import documents
from wukong.config.experiment import CONTENTS, Experiment
from wukong.curate import rules
from wukong.errors import ConfigError, DataError
from wukong.stages import places, start
from wukong.store import contents, storage
from wukong.store.manifest import Manifest, Stage

WITHOUT = {
    "storage": "where outputs are written",
    "crawl.politeness.opt_out": "a takedown removes pairs from a finished crawl (docs/architecture.md)",
    "release.address": "a text of the released documents",
}
"""Addresses whose content is in no key, and why."""

BY_CONTENT = {
    "crawl.queries",
    "crawl.endpoint",
    "crawl.previous",
    "filter.sensitive_words",
    "filter.forbidden.lists",
    "filter.decontaminate.hashes",
    "validation.reference",
    "release.opt_out",
    "evaluate.sets",
    "pretrain.from_model",
    *CONTENTS,
}
"""Addresses that ``test_other_content_is_another_key`` replaces the content of."""


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel], str]]:
    """Every setting that is a text or texts, by dotted key, with its section and its description."""
    for name, field in model.model_fields.items():
        kinds = [*leaves(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings_of(kind, f"{prefix}{name}.")
        if str in kinds:
            yield f"{prefix}{name}", model, field.description or ""


def leaves(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, dict) or hasattr(annotation, "__metadata__"):
        for each in get_args(annotation):
            yield from leaves(each)
    else:
        yield annotation


def test_each_setting_that_is_an_address_is_in_a_key_by_content() -> None:
    """By the descriptions: a new setting that says URI or URL belongs into one of the tables, or says a digest."""
    spoken_of = re.compile("on the image URL|of the list of URLs|a list of URLs;|of a URL list|URLs a part|of URLs,")
    found = {}
    for key, section, description in settings_of(Experiment):
        if key.endswith(".uri") or re.search("UR[IL]", spoken_of.sub("", description)):
            found[key] = section
    stated = {key for key, section in found.items() if key.endswith(".uri") and "sha256" in section.model_fields}
    assert stated >= {"filter.vector_model.uri", "filter.faces.model.uri"}, "the walk comes to the sections in sections"
    # A run takes neither stage from another one: fine-tuning may not name a model, and an engine is no address.
    others = {"crawl.engine", "finetune.from_model"}
    assert found.keys() - stated - others - {*WITHOUT} == BY_CONTENT
    assert {f"{key}_sha256" for key in CONTENTS} <= {key for key, _, _ in settings_of(Experiment)}


def test_the_addresses_that_an_experiment_reads_are_those() -> None:
    """``Experiment.uris`` is what the checks before a run look at."""
    named = {"decontaminate": {"hashes": ["file:///h"], "sets": ["coco-cn"]}, "sensitive_words": "file:///w"}
    named |= {"forbidden": {"lists": ["file:///f"]}, "similarity_model": "file:///m"}
    text = {"weights": "file:///t", "vocabulary": "file:///v"}
    experiment = made(
        Path("/nowhere"),
        filter=named,
        model={"image": {"weights": "file:///i"}, "text": text},
        crawl={"queries": "file:///q", "previous": "file:///p", "politeness": {"opt_out": "file:///o"}},
        validation={"reference": "file:///r"},
        release={"opt_out": "file:///o"},
        evaluate={"sets": "file:///s"},
    )
    known = {key.partition("[")[0] for key in experiment.uris()} - {"filter.decontaminate.sets"}
    assert known == (BY_CONTENT | {"crawl.politeness.opt_out", "evaluate.sets"}) - {
        "pretrain.from_model",
        "crawl.endpoint",  # of an engine that is searched
        "evaluate.sets",
    }


def made(root: Path, **changed: Any) -> Experiment:
    crawl = {"queries": "file:///q", "endpoint": "http://site.test", **changed.pop("crawl", {})}
    return documents.parse({"name": "x", "storage": storage.from_path(root), "crawl": crawl, **changed})


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def key_of(experiment: Experiment, key: str) -> str:
    """The key of a stage that reads what the address holds, as a run computes it that begins now."""
    experiment = start.as_it_begins(experiment)
    crawled = Stage(experiment.root, "crawl", {}).commit([])
    filtered = Stage(experiment.root, "filter", {"split": {}}).commit([])
    if key.startswith("crawl."):
        return places.crawl(experiment).stage.key
    if key.startswith("filter."):
        return places.filtering(experiment, crawled).key
    if key == "validation.reference":
        return places.validation(experiment, filtered).key
    if key == "evaluate.sets":
        parents = {name: Stage(experiment.root, name, {"training": {}}).commit([]) for name in stages.TRAININGS}
        return places.evaluation(experiment, {"filter": filtered, **parents}, []).key
    if key == "pretrain.from_model":
        return start.stage(experiment).key
    trained = places.training("pretrain", experiment, filtered, None, None).key
    if key == "model.image.weights":
        return trained + places.features(experiment, filtered).key
    return trained


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def finished(folder: Path, stage: str, text: str) -> None:
    made_of = Manifest(stage=stage, uri=storage.from_path(folder), config={"of": text})
    storage.write_json(storage.from_path(folder / "manifest.json"), made_of.model_dump(mode="json"))


def saved(folder: Path, text: str) -> None:
    settings = made(folder).model.model_dump(mode="json")
    write(folder / "config.json", json.dumps({"format": 1, "model": settings}))
    write(folder / "model.safetensors", text)
    write(folder / "vocab.txt", "[PAD]\n")


PLACED: dict[str, Callable[[Path, str], None]] = {
    "crawl.endpoint": lambda place, text: write(place / "list.csv", f"url,caption\nhttps://a.test/1.jpg,{text}\n"),
    "filter.sensitive_words": lambda place, text: write(place / "words.txt", f"{text}\n"),
    "filter.forbidden.lists": lambda place, text: write(place, f"{hashlib.md5(text.encode()).hexdigest()}\n"),
    "filter.decontaminate.hashes": write,
    "filter.similarity_model": saved,
    "model.text.weights": saved,
    "model.image.weights": write,
    "model.text.vocabulary": write,
    "crawl.queries": write,
    "validation.reference": lambda place, text: finished(place, "validate", text),
    "evaluate.sets": lambda place, text: write(place / "imagenet" / "labels.txt", text),
    "pretrain.from_model": saved,
}
"""What writes some content to the place that an address names."""
ELSEWHERE = {
    "crawl.previous": "tests/ray_jobs/test_crawl.py, and it is a parent by its digest, as validation.reference",
    "release.opt_out": "tests/ray_jobs/test_release.py",
}


def naming(root: Path, key: str, place: Path) -> Experiment:
    uri = storage.from_path(place)
    listed = {"filter.forbidden.lists", "filter.decontaminate.hashes"}
    changed: dict[str, Any] = nested(key, [uri] if key in listed else uri)
    if key == "crawl.endpoint":
        changed["crawl"]["engine"] = "urls"
    if key == "evaluate.sets":
        changed["evaluate"]["tasks"] = ["imagenet"]
    return made(root, **changed)


def test_every_address_is_tried() -> None:
    assert PLACED.keys() | ELSEWHERE.keys() == BY_CONTENT


@pytest.mark.parametrize("key", PLACED)
def test_other_content_is_another_key(key: str, tmp_path: Path) -> None:
    """Of the same size, at the same address; and the former content is the former key."""
    experiment, place = naming(tmp_path / "data", key, tmp_path / "placed"), tmp_path / "placed"
    keys = []
    for text in ("one cat", "two dog", "one cat"):
        PLACED[key](place, text)
        keys.append(key_of(experiment, key))
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize("key", [key for key in PLACED if key in CONTENTS])
def test_a_run_that_has_begun_keeps_its_key_and_refuses_the_new_file(key: str, tmp_path: Path) -> None:
    """The digest stands in the experiment that every process of the run reads, so no process reads the file for it."""
    place = tmp_path / "placed"
    PLACED[key](place, "one cat")
    begun = start.as_it_begins(naming(tmp_path / "data", key, place))
    stored = documents.parse(json.loads(json.dumps(begun.model_dump(mode="json"))))
    assert stored == begun
    digest = contents.digest(storage.from_path(place), CONTENTS[key])
    assert digest in json.dumps(begun.model_dump(mode="json"))
    contents.check(storage.from_path(place), digest, CONTENTS[key])
    PLACED[key](place, "two dog")
    with pytest.raises(DataError, match=r"was replaced: its SHA-256 is (.|\n)* start a run under another name"):
        contents.check(storage.from_path(place), digest, CONTENTS[key])
    with pytest.raises(ConfigError, match=rf"{key}_sha256 is {digest}, and what lies at .*: put back"):
        start.as_it_begins(begun)


@pytest.mark.parametrize(("key", "late"), [("filter.sensitive_words", False), ("filter.forbidden.lists", True)])
def test_a_filter_that_works_refuses_lists_that_were_replaced(key: str, late: bool, tmp_path: Path) -> None:
    """Each task reads them again: tasks of one key never work with other lists than the key says."""
    place = tmp_path / "placed"
    PLACED[key](place, "one cat")
    settings = naming(tmp_path / "data", key, place).filter
    known = rules.digests(settings)
    rules.load(settings, late=late, known=known)
    PLACED[key](place, "two dog")
    with pytest.raises(ConfigError, match=rf"{key}: what it names was replaced while the filter worked"):
        rules.load(settings, late=late, known=known)
    rules.load(settings, late=late)


def test_only_what_the_stages_read_is_read(tmp_path: Path) -> None:
    write(tmp_path / "weights", "some")
    experiment = made(tmp_path, model={"image": {"weights": storage.from_path(tmp_path / "weights")}})
    assert start.as_it_begins(experiment, ["crawl", "filter"]) == experiment
    assert start.as_it_begins(experiment, ["pretrain"]).model.image.weights_sha256
    assert start.as_it_begins(experiment, ["evaluate"]).model.image.weights_sha256
    (tmp_path / "weights").unlink()
    assert start.as_it_begins(experiment) == experiment, "what is missing is said by the checks before the run"


@pytest.mark.parametrize("key", CONTENTS)
def test_a_digest_of_no_address_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{key}_sha256: {key} is .* which names no file: leave the digest out"):
        made(tmp_path, **nested(f"{key}_sha256", "0" * 64))


KEYS = {
    "demo": {
        "filter": "bf4df835c94f940c",
        "validate": "e8c97798dac57332",
        "features": "9730c116354a78b4",
        "pretrain": "13781215e86a7b4b",
        "finetune": "f6c06c1464d5cd5c",
        "evaluate": "31d80183cb677725",
    },
    "own-data": {
        "filter": "8d9309f2a0bfc29e",
        "validate": "bd92b5b9da0c6d76",
        "features": "41e8e5e344ce6396",
        "pretrain": "e32fd9677903550e",
        "finetune": "947f64d561586f94",
        "evaluate": "23e6960d840357e1",
    },
}
"""Where one changes, what was made under it is made anew: the stage's version says so."""


def keys_of(experiment: Experiment) -> dict[str, str]:
    parents = {"crawl": Manifest(stage="crawl", uri="s3://b/c", config={})}
    found = {}
    for name in ("filter", "validate", "features", "pretrain", "finetune", "evaluate"):
        if name == "features":
            stage = places.features(experiment, parents["filter"])
        elif name in stages.TRAININGS:
            stage = places.training(name, experiment, parents["filter"], parents["features"], parents.get("pretrain"))
        elif name == "evaluate":
            stage = places.evaluation(experiment, parents, [])
        else:
            stage = {"filter": places.filtering, "validate": places.validation}[name](
                experiment, [*parents.values()][-1]
            )
        found[name] = stage.key
        parents[name] = Manifest(stage=name, uri=stage.uri, config=stage.config)
    return found


@pytest.mark.parametrize("config", ["demo", "own-data"])
def test_keys_stay_as_long_as_the_stages_versions_do(config: str) -> None:
    root = Path(__file__).parents[3] / "configs"
    value = {"name": "x", "crawl": {"engine": "files", "endpoint": "file:///p"}}
    experiment = (
        documents.load(root / "demo.yaml")
        if config == "demo"
        else documents.load_part(None, root / "own-data.yaml", value, [])
    )
    assert keys_of(start.as_it_begins(experiment)) == KEYS[config]
