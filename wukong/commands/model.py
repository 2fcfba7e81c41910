"""``wukong model``: use a trained model outside of Wukong."""

from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import echo

app = typer.Typer(help="Use a trained model outside of Wukong.", no_args_is_help=True)


@app.callback()
def model() -> None:
    """Use a trained model outside of Wukong."""


@app.command()
def export(
    uri: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model's folder, a path or a URI: config.json lies in it.")
    ],
    output: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files are written; it is made.")],
) -> None:
    """Write both towers as ONNX files, and check by onnxruntime that they give what the model gives.

    image.onnx reads uint8 pictures of the model's size, text.onnx token ids; both give vectors of unit length, for
    batches of any size. vocab.txt and config.json lie beside them. Example:

        wukong model export s3://wukong/demo/finetune/0123456789abcdef/model onnx/
    """
    import wukong
    from wukong.model import onnx

    loaded = wukong.load(uri)
    for file, difference in onnx.export(loaded, output).items():
        size = (output / file).stat().st_size / 2**20
        echo(f"{output / file}: {size:,.1f} MiB, differs from torch by at most {difference:.0e}")
