"""``wukong index``: use the index of a search outside of Wukong."""

from pathlib import Path
from typing import Annotated

import typer

from wukong.commands import search
from wukong.commands.output import echo
from wukong.runtime.amounts import size

app = typer.Typer(help="Use the index of a search outside of Wukong.", no_args_is_help=True)


@app.callback()
def index() -> None:
    """Use the index of a search outside of Wukong."""


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files are written; it is made.")],
    to: Annotated[
        str, typer.Option("--to", metavar="FORM", help="Who searches it: faiss, lancedb, or numpy for a plain matrix.")
    ],
    model: search.ModelOption = None,
    data: search.DataOption = None,
    encode: search.EncodeOption = False,
    index: search.IndexOption = None,
    device: search.DeviceOption = "cpu",
) -> None:
    """Write the vectors of the pictures that are searched, with keys, captions and URLs, for another library.

    The folder is a copy: what a takedown removes stays in it, so delete it then and export again. Example:

        wukong index export flowers.lancedb --to lancedb --data s3://wukong/demo/filter/KEY
    """
    from wukong.serve import index_export, start

    chosen = model or search.champion()
    searched = data or search.data_of(chosen)
    count = index_export.export(*start.indexed(chosen, searched, index, device, encodes=encode), to, folder)
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    echo(f"{folder}: {count:,} pictures, {size(written)}")
