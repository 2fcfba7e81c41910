"""``wukong align``: draw which word of a text each patch of a picture matches best."""

from pathlib import Path
from typing import Annotated

import typer

from wukong.commands.output import echo


def align(
    model: Annotated[str, typer.Option("--model", help="The model's folder or URI, or models:/NAME@ALIAS in MLflow.")],
    image: Annotated[str, typer.Option("--image", help="Path or URI of the picture.")],
    text: Annotated[str, typer.Option("--text", help="A caption or the name of a class.")],
    word: Annotated[
        str | None, typer.Option("--word", help="The part of the text to highlight; by default all of it.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG that is written.")] = Path("alignment.png"),
    font: Annotated[Path | None, typer.Option("--font", help="A font with Chinese characters.")] = None,
) -> None:
    """Draw which word of a text each patch of a picture matches best (Figure 4 of the paper), as a PNG.

    The model must be trained with model.similarity=token. Example:

        wukong align --model models:/demo@champion --image dragonfly.jpg --text 豆娘
    """
    import wukong
    from wukong.evaluate import alignment
    from wukong.model.saved_model import open_picture

    aligned = alignment.align(wukong.load(model), open_picture(image), text, word)
    alignment.draw(aligned, font).save(output)
    for number, token in enumerate(aligned.tokens):
        echo(f"{number:3d}  {token}  {int((aligned.best == number).sum())} patches")
    echo(f"{output}: {aligned.best.shape[0]} x {aligned.best.shape[1]} patches")
