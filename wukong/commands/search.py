"""``wukong search``: search pictures in the terminal, as the page of ``wukong serve`` does."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from wukong.commands.output import Console, JsonOption, Table, echo, print_json, wide
from wukong.config.registry import Registry
from wukong.errors import ConfigError, DataError
from wukong.runtime import environment
from wukong.runtime.language import _
from wukong.store import manifest, storage
from wukong.tracking import availability, model_versions
from wukong.tracking.mlflow_rest import Server

if TYPE_CHECKING:
    from wukong.serve.filters import Filters
    from wukong.serve.service import Service

_ALIAS = str(Registry.model_fields["alias"].default)
_MODEL = "/model"

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The model's folder or URI, or models:/NAME@ALIAS; by default the champion, or "
        "the newest version where there is none.",
    ),
]
DataOption = Annotated[
    str | None,
    typer.Option("--data", help="What is searched, as of `wukong serve`; by default what the model's run filtered."),
]
EncodeOption = Annotated[
    bool, typer.Option("--encode", help="Encode the pictures first, if that was not done with this model.")
]
IndexOption = Annotated[
    str | None,
    typer.Option("--index", help="URI under which indexes are kept; by default indexes/ in the stack's home."),
]
DeviceOption = Annotated[str, typer.Option(help="Device that the model computes on, for instance cuda.")]
"""What is searched and by which model: the options of each command that opens an index."""


def search(
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What is searched for, in Chinese.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE", help="Search for what is similar to this picture.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many pictures.")] = 10,
    having: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="NAME=VALUE",
            help="What the pictures must have, as in the JSON API: source=example.com, min_width=300, word=猫, "
            "fold=true; repeat it for several.",
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Also write the pictures as files into this folder.")
    ] = None,
    encode: EncodeOption = False,
    index: IndexOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Search pictures by a Chinese text, or by a picture, in the terminal.

    Index and results are those of `wukong serve`. Example:

        wukong search 红色的花 --top 5 --filter min_width=300 --save flowers
    """
    if (text is None) == (picture is None):
        raise ConfigError("give a text or --picture FILE, one of them: `wukong search 红色的花`")
    if picture is not None and having:
        raise ConfigError("--filter: what is similar to a picture cannot be filtered; leave it out, or give a text")
    if picture is not None and not picture.is_file():
        raise ConfigError(f"--picture: there is no file {picture}")
    chosen = model or champion()
    searched = data or data_of(chosen)
    from wukong.crawl.uploads import Limits, RefusedError
    from wukong.serve import start

    limits = Limits(ranks=max(top, Limits.ranks))
    try:
        filters = _filters(having or ())
        with closing(start.service(chosen, searched, index, device, limits, encodes=encode)) as service:
            document = asyncio.run(_found(service, text, picture, top, filters, save))
    except RefusedError as error:
        raise ConfigError(str(error)) from error
    document = {"model": chosen, "data": searched, **document}
    if as_json:
        print_json(document)
    else:
        _print(Console(highlight=False), document)


def champion() -> str:
    """Return the address of the model that holds the alias of a champion, or of the newest version where none does.

    Raises:
        ConfigError: no model is registered, or several hold the alias.
    """
    environment.use_for("models:/")
    availability.refuse_untracked()
    registered = Server().registered("registered-models")
    aliases = {each["name"]: {entry["alias"] for entry in each.get("aliases", ())} for each in registered}
    champions = [f"models:/{name}@{_ALIAS}" for name, held in sorted(aliases.items()) if _ALIAS in held]
    if len(champions) == 1:
        return champions[0]
    if champions:
        raise ConfigError(f"several models have a {_ALIAS}: choose one by --model, of {', '.join(champions)}")
    versions = Server().registered("model-versions")
    if not versions:
        raise ConfigError("no model is registered yet: `wukong run` trains and registers one; --model takes any folder")
    newest = max(versions, key=lambda each: (int(each["creation_timestamp"]), int(each["version"])))
    address = f"models:/{newest['name']}/{newest['version']}"
    echo(f"No model has the alias {_ALIAS}: {address}, the newest version, is taken; --model names another.", err=True)
    return address


def data_of(model: str) -> str:
    """Return the URI of the filter's output in the run that made a model.

    Raises:
        DataError: that is not known.
    """
    if model.startswith("models:/"):
        made = manifest.load(model_versions.evaluation_of(model))
    else:
        place = (model if "://" in model else storage.from_path(Path(model))).rstrip("/")
        stage = place.removesuffix(_MODEL)
        if stage == place or not storage.exists(storage.join(stage, "manifest.json")):
            raise DataError(f"{model} lies in no stage's output, so what it was trained on is not known: give --data")
        made = manifest.load(stage)
    filtered = next((parent.uri for parent in made.parents if parent.stage == "filter"), None)
    if filtered is None:
        raise DataError(f"{made.uri} was made without pictures of a filter stage: say by --data what is searched")
    return filtered


def _filters(given: Sequence[str]) -> "Filters":
    from wukong.serve.filters import Filters

    fields = []
    for entry in given:
        name, _, value = entry.partition("=")
        if name not in Filters.model_fields or not value.strip():
            names = ", ".join(Filters.model_fields)
            raise ConfigError(f"--filter: {entry!r} is no filter; write NAME=VALUE, where NAME is one of {names}")
        fields.append((name, value))
    return Filters.of_form(fields)


async def _found(
    service: "Service", text: str | None, picture: Path | None, top: int, filters: "Filters", save: Path | None
) -> dict[str, Any]:
    """Search, and write the pictures that were found into a folder, if one is given."""
    if picture is None:
        found = await service.search(text or "", top, filters=filters)
        answer, hits = found.model_dump(exclude={"results"}) | {"captions": []}, found.results
    else:
        similar = await service.captions(await service.sent(_chunks(picture), None), top)
        answer = {"query": str(picture), "captions": [each.model_dump() for each in similar.captions]}
        hits = similar.similar
    urls = await service.urls_of([hit.picture for hit in hits])
    results = []
    for rank, hit in enumerate(hits, 1):
        file = await _save(service, rank, hit.picture, save) if save else None
        row = {"rank": rank, "score": hit.score, "captions": hit.captions, "url": urls[hit.picture]}
        results.append(row | {"key": hit.picture} | ({"file": str(file)} if file else {}))
    return answer | {"results": results}


async def _chunks(picture: Path) -> AsyncIterator[bytes]:
    yield picture.read_bytes()


async def _save(service: "Service", rank: int, key: str, folder: Path) -> Path:
    from wukong.crawl import image_header

    content = (await service.stored(key)).data
    file = folder / f"{rank:03d}-{key}.{image_header.sniff(content[:16]) or 'picture'}"
    storage.write_bytes(storage.from_path(file), content)
    return file


def _print(console: Console, document: Mapping[str, Any]) -> None:
    if document.get("nothing_similar"):
        console.print(
            "Nothing stands out: these pictures are hardly nearer to the text than any others.", style="yellow"
        )
    if document.get("cut"):
        console.print("The text is too long for the model, which reads only its beginning.", style="yellow")
    table = Table(box=None, pad_edge=False)
    for column in (_("rank"), _("score")):
        table.add_column(column, justify="right")
    for column in (_("caption"), _("url"), _("key")):
        table.add_column(column, no_wrap=True)
    for hit in document["results"]:
        captions, url = Text(" | ".join(hit["captions"])), Text(hit["url"])
        table.add_row(str(hit["rank"]), f"{hit['score']:.4f}", captions, url, hit["key"])
    wide(console).print(table, crop=False)
    for caption in document["captions"]:
        console.out(f"{caption['score']:.4f}  {caption['caption']}")
    console.print(f"{document['model']}, pictures of {document['data']}", style="dim", markup=False, soft_wrap=True)
