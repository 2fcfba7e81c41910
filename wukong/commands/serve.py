"""``wukong serve``: the search page over a model and a collection of pictures."""

import asyncio
import logging
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wukong.commands import search
from wukong.commands.output import echo
from wukong.errors import ConfigError
from wukong.model.signature import PUBLIC_KEY
from wukong.runtime import cancel
from wukong.runtime.language import _
from wukong.serve import garbage

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def serve(
    model: search.ModelOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Output of a filter or crawl stage, a folder of pictures with captions, or a list of them. Without it "
            "there is no page, only vectors by OpenAI's API.",
        ),
    ] = None,
    index: Annotated[
        str | None,
        typer.Option("--index", help="URI under which indexes are kept; by default indexes/ in the stack's home."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port to listen on; 0 for any that is free. By default 8500, or if taken any."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device that the model computes on, for instance cuda.")] = "cpu",
    public_key: Annotated[
        Path | None,
        typer.Option(
            envvar=PUBLIC_KEY,
            help="Serve a model only if it is signed by this key, or by one of these certificates, in PEM.",
        ),
    ] = None,
    watch: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How often to look whether the data, or the model that holds an alias, are others now, and to load "
            "them while the old index answers; 0 for never.",
        ),
    ] = 60.0,
) -> None:
    """Serve a page on which people search pictures by Chinese text and captions by picture.

    The first start encodes the pictures, or reads the features that the training has stored, and goes on where it
    stopped if it is ended. POST /v1/embeddings gives vectors of texts and pictures. Example:

        wukong serve --model models:/demo@champion --data s3://wukong/demo/filter/KEY
    """
    if data is None and index is not None:
        raise ConfigError("--index: nothing is searched without --data, so no index is needed")
    logging.getLogger("wukong").setLevel(logging.INFO)
    try:
        with cancel.end_on_signal():
            _serve(model or search.champion(), data, index, host, port, device, public_key, watch)
    except SystemExit as ended:
        echo("Ended." if data is None else "Ended. What was encoded is kept for the next start.")
        # To end a server by SIGTERM is the usual way; Ctrl-C ends any command with 130.
        raise typer.Exit(0 if ended.code == 128 + signal.SIGTERM else 128 + signal.SIGINT) from None


def _serve(
    model: str,
    data: str | None,
    index: str | None,
    host: str,
    port: int | None,
    device: str,
    public_key: Path | None,
    watch: float,
) -> None:
    from wukong.serve.listening import USUAL_PORT, Protocol, address, allow_connections, hosts, listen

    allow_connections()
    with listen(host, port) as listening:
        taken = listening.getsockname()[1]
        if port is None and taken != USUAL_PORT:
            echo(f"Port {USUAL_PORT} is taken, so the page will be at port {taken}. --port asks for another.")
        with garbage.kept():
            import uvicorn

            from wukong.serve import start
            from wukong.serve.app import create_app
            from wukong.serve.metrics import Metrics
            from wukong.serve.versions import Switch, Watch

            names = hosts(listening, host)
            app: ASGIApp
            url = f"http://{address(listening)}:{taken}"
            if data is None:
                app = create_app(start.embedder(model, device, public_key=public_key), names)
                ready = _("Vectors of texts and pictures at {url}/v1 (Ctrl-C ends it)").format(url=url)
            else:
                current = partial(start.version, model, data)
                load = partial(start.service, model, data, index, device, public_key=public_key)
                known, service = current(), load()
                watching = Watch(current, partial(asyncio.to_thread, load), watch, known) if watch else None
                app = Switch(partial(create_app, hosts=names, metrics=Metrics()), service, watching)
                ready = _("{pictures} pictures at {url} (Ctrl-C ends it)").format(pictures=service.pictures, url=url)
        echo(ready)
        # Without a configuration of its own: that would close every handler of this process.
        config = uvicorn.Config(app, http=Protocol, log_config=None, log_level="warning", access_log=False)
        # It ends in order when a signal comes, and then sends itself that signal again.
        uvicorn.Server(config).run([listening])
