"""The search page under Ray Serve gives the bytes that uvicorn gives."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    "arguments", [{}, {"model": "m", "data": "d"}, {"model": "m", "data": "d", "index": "i", "x": 1}]
)
def test_wrong_arguments_are_refused(arguments: dict[str, object]) -> None:
    from ray_jobs.serve import search
    from wukong.errors import ConfigError

    with pytest.raises(ConfigError, match="give model, data and index"):
        search(arguments)


def test_a_replica_with_a_gpu_asks_for_it_and_one_without_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray import serve

    from ray_jobs.serve import search

    asked: list[dict[str, int]] = []

    def deployment(_application: object, *, ray_actor_options: dict[str, int], **_: object) -> SimpleNamespace:
        asked.append(ray_actor_options)
        return SimpleNamespace(bind=lambda *_: None)

    monkeypatch.setattr(serve, "deployment", deployment)
    for cards in ({}, {"gpus": 1}):
        search({"model": "m", "data": "d", "index": "i", "cpus": 3, **cards})
    assert asked == [{"num_cpus": 3, "num_gpus": 0}, {"num_cpus": 3, "num_gpus": 1}]


@pytest.mark.long
def test_answers_are_those_of_uvicorn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_ray: None) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "wukong" / "serve"))
    import colours
    import searched
    from ray import serve
    from search_site import Site, served

    from ray_jobs.serve import search
    from wukong.serve import start

    model, data, index = (str(tmp_path / name) for name in ("model", "pictures", "indexes"))
    searched.model(Path(model))
    colours.every_pair(Path(data))
    service = start.service(model, data, index)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(search({"model": model, "data": data, "index": index, "cpus": 1}), route_prefix="/")
        ray_site = Site(f"http://127.0.0.1:{port}", service)
        with served(service) as plain:
            picture = colours.encoded(colours.picture("红", "蓝"))
            for path, body, query in (
                ("/api/search", None, {"q": "紅色"}),
                ("/api/captions", picture, {}),
                ("/api/align", picture, {"text": "红蓝"}),
                ("/api/classify", picture, {"label": ["红", "蓝"]}),
                ("/", None, {"q": "红"}),
                ("/api/search", None, {}),
                ("/api/captions", b"x", {}),
            ):
                one, other = plain.ask(path, body, **query), ray_site.ask(path, body, **query)
                assert (one.status, one.body) == (other.status, other.body), path
    finally:
        serve.shutdown()
