"""``wukong serve``: the search page over a model and a collection of pictures."""

import logging
from typing import Annotated

import typer

from wukong.serve import garbage


def serve(
    model: Annotated[str, typer.Option("--model", help="The model's folder or URI, or models:/NAME@ALIAS in MLflow.")],
    data: Annotated[
        str,
        typer.Option(
            "--data", help="Output of a filter or crawl stage, a folder of pictures with captions, or a list of them."
        ),
    ],
    index: Annotated[
        str | None,
        typer.Option("--index", help="URI under which indexes are kept; by default indexes/ in the stack's home."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8500,
    device: Annotated[str, typer.Option(help="Device that the model computes on, for instance cuda.")] = "cpu",
) -> None:
    """Serve a page on which people search pictures by Chinese text and captions by picture.

    The first start encodes the collection, and goes on where it stopped if it is ended. Example:

        wukong serve --model models:/demo@champion --data s3://wukong/demo/filter/KEY
    """
    logging.getLogger("wukong").setLevel(logging.INFO)
    from wukong.serve.listening import address, hosts, listen

    with listen(host, port) as listening:
        with garbage.kept():
            import uvicorn

            from wukong.serve import start
            from wukong.serve.app import create_app

            service = start.service(model, data, index, device)
            app = create_app(service, hosts(listening, host))
        url = f"http://{address(listening)}:{listening.getsockname()[1]}"
        typer.echo(f"{len(service.index.keys)} pictures at {url} (Ctrl-C ends it)")
        # Without a configuration of its own: that would close every handler of this process.
        config = uvicorn.Config(app, log_config=None, log_level="warning", access_log=False)
        uvicorn.Server(config).run([listening])
