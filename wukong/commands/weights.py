"""``wukong weights``: bring published weights to where experiments read them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import JsonOption, echo, print_data, print_json
from wukong.runtime import environment
from wukong.runtime.language import _
from wukong.store import storage

app = typer.Typer(help="Bring published weights to where experiments read them.", no_args_is_help=True)


_CHECKED = {
    "table": _("as published"),
    "hub": _("as the hub says"),
    "": _("no published digest is known here"),
}


@app.callback()
def weights() -> None:
    """Bring published weights to where experiments read them."""


@app.command()
def get(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A tower by its architecture (vit-l-14) or by timm's name with its tag; bert-base-chinese, "
            "chinese-roberta-wwm-ext; vocab-bert-base-chinese.",
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="URI", help="Folder of weights, s3://BUCKET/PREFIX or a path.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="A safetensors file instead of the hub; for a text encoder a folder with config.json and "
            "model.safetensors, for a vocabulary its vocab.txt. A path or a URI.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store weights of a tower, of a text encoder, or a vocabulary, after a check that they fit.

    They come from the hub, or from a file where there is no network. Nothing is unpickled. Example:

        wukong weights get vit-l-14 --to s3://wukong/inputs/weights

    What is printed is the value of model.image.weights, of model.text.weights or of model.text.vocabulary.
    """
    from wukong.model import published_weights  # torch takes seconds to import

    published = published_weights.of(name)
    folder, given = _uri(to), _uri(source) if source else None
    environment.use_for(folder)
    stored = published_weights.get(published, folder, given)
    value = storage.join(folder, published.name) if published.kind == "text" else stored[0].uri
    if as_json:
        files = [asdict(each) for each in stored]
        print_json({"name": published.name, "value": value, "licence": published.licence, "files": files})
        return
    for each in stored:
        checked = _CHECKED[each.compared_with]
        echo(f"{each.uri}\n  {each.size:,} bytes, SHA-256 {each.sha256} ({checked})")
    echo(f"Licence {published.licence}, of {published.repository}")
    key = {"tower": "image.weights", "text": "text.weights", "vocabulary": "text.vocabulary"}[published.kind]
    print_data(f"model.{key}: {value}")


def _uri(place: str) -> str:
    return place if "://" in place else storage.from_path(Path(place).resolve())
