"""``wukong model``: use a trained model outside of Wukong."""

from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import Console, Table, echo
from wukong.store import storage

app = typer.Typer(help="Use a trained model outside of Wukong.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Use a trained model outside of Wukong."""


@app.command()
def export(
    uri: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model's folder, a path or a URI: config.json lies in it.")
    ],
    output: Annotated[
        Path | None,
        typer.Argument(metavar="[FOLDER]", help="Where the files are written; it is made. By default exports/TARGET."),
    ] = None,
    target: Annotated[
        str,
        typer.Option("--to", metavar="TARGET", help="Whose loader opens the folder; see the list above."),
    ] = "onnx",
    name: Annotated[str, typer.Option(help="What the model is called where the target writes a name.")] = "wukong",
    measure_on: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Pictures with captions on which what the target loses is measured: the output of a filter stage, a "
            "folder of pictures with captions beside them, or a list of them.",
        ),
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option(help="The model's licence for its card: an identifier such as apache-2.0, a name or an address."),
    ] = None,
    results: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Results for its card, which `wukong evaluate --output` wrote. By default those of the model's run.",
        ),
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="Write files in int8 too: a fourth of the size, and faster; of the target onnx."),
    ] = False,
) -> None:
    """Write a model as the folder that another project's own loader opens, and check that it gives the same there.

    The targets, and what each is for, are in docs/export.md. A target that cannot hold the model says why, and what can
    be done instead; an incomplete folder is never left. Example:

        wukong model export s3://wukong/demo/finetune/0123456789abcdef/model clip/ --to open_clip
    """
    import wukong
    from wukong.export import run
    from wukong.export.card import About
    from wukong.export.target import Options

    folder = output or Path("exports", target)
    measured = storage.from_path(Path(results)) if results and "://" not in results else results
    about = About(address=uri, licence=licence, results=measured)
    options = Options(name=name, measure_on=measure_on, int8=int8, about=about)
    checks = run.export(wukong.load(uri), target, folder, options)
    table = Table("compared", "measure", "value", "by", box=None)
    for check in checks:
        table.add_row(check.of, check.measure, f"{check.value:.3g}", check.by)
    Console().print(table)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    echo(f"{folder}: {size / 2**20:,.1f} MiB")
