"""``wukong model``: use a trained model outside of Wukong."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from wukong.commands.output import Console, Table, echo
from wukong.errors import ConfigError
from wukong.model import address, signature
from wukong.model.signature import Signer
from wukong.runtime.language import _, translated
from wukong.store import storage

TARGETS = (
    "hub",
    "immich",
    "late-interaction",
    "onnx",
    "open_clip",
    "sentence-transformers",
    "transformers",
    "transformers.js",
)
"""The targets of an export: their own modules would import torch for a help text."""

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
        typer.Option(
            "--to",
            metavar="TARGET",
            help=translated(_("Whose loader opens the folder: {targets}.").format(targets=", ".join(TARGETS))),
        ),
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
    table = Table(_("compared"), _("measure"), _("value"), _("by"), box=None)
    for check in checks:
        table.add_row(check.of, check.measure, f"{check.value:.3g}", check.by)
    Console().print(table)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    echo(f"{folder}: {size / 2**20:,.1f} MiB")


@app.command()
def sign(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The folder of a model or of an export, a path or a URI, or models:/NAME/VERSION."
        ),
    ],
    key: Annotated[
        Path,
        typer.Option(
            envvar=signature.KEY_FILE,
            help=translated(
                _(
                    "The private EC key in PEM. The password of an encrypted one is asked for, or is in {variable}."
                ).format(variable=signature.PASSWORD)
            ),
        ),
    ],
    certificate: Annotated[
        Path | None,
        typer.Option(
            help="The key's certificate in PEM, and after it those up to the one that is trusted; by default none."
        ),
    ] = None,
) -> None:
    """Sign all files of a model, and put the signature beside them as model.sig.

    Whoever has the public key can ask for the signature where the model is loaded, as `wukong model verify` does.
    A signature in the folder is replaced. Example:

        wukong model sign clip/ --key key.pem
    """
    signer = Signer(key, certificate, os.environ.get(signature.PASSWORD, ""))
    if certificate is None and signer.is_locked:
        if not sys.stdin.isatty():
            raise ConfigError(f"{key} is encrypted: set {signature.PASSWORD} to its password")
        signer = replace(signer, password=typer.prompt(f"Password of {key}", hide_input=True))
    with _local(uri) as folder:
        made = signature.sign(folder, signer)
    if address.in_mlflow(uri):
        from wukong.tracking import model_versions

        model_versions.add_file(uri, signature.FILE, made)
    else:
        storage.write_bytes(storage.join(address.to_uri(uri), signature.FILE), made)
    echo(f"{uri} is signed: {signature.FILE} is beside its files")


@app.command()
def verify(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The folder of a model or of an export, a path or a URI, or models:/NAME/VERSION."
        ),
    ],
    public_key: Annotated[
        Path,
        typer.Option(envvar=signature.PUBLIC_KEY, help="The public key in PEM, or the certificates that are trusted."),
    ],
) -> None:
    """Check that a model is signed by a key, and that no file was changed, added or removed since.

    Nothing of the model is loaded. Example:

        wukong model verify clip/ --public-key key.pub
    """
    with _local(uri) as folder:
        signature.verify(folder, public_key, uri)
    echo(f"{uri} is what the key of {public_key} has signed")


@contextmanager
def _local(uri: str) -> Iterator[Path]:
    """Give the folder of a model: itself if it is on this machine, else a copy."""
    if "://" not in uri and not address.in_mlflow(uri):
        yield Path(uri)
        return
    with TemporaryDirectory() as scratch:
        yield address.fetch(uri, Path(scratch))
