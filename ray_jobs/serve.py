"""The search page under Ray Serve: ``serve run ray_jobs.serve:search model=URI data=URI index=URI``.

It is the application of ``wukong serve`` (``wukong.serve``), with as many replicas as are asked for. Each replica loads
model and index. The index should be made before, so that replicas find it: ``wukong serve`` does, or the first replica.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve

from ray_jobs import gpus
from wukong.errors import ConfigError
from wukong.serve import garbage

_NEEDED = ("model", "data", "index")


def search(arguments: Mapping[str, Any]) -> serve.Application:
    """Make the Ray Serve application.

    Args:
        arguments: ``model``, ``data`` and ``index``, URIs that ``wukong serve`` takes and all replicas reach; perhaps
            ``replicas`` (1), ``cpus`` of each (2) and ``gpus`` of each (0; 1 encodes there, or does not start).

    Raises:
        ConfigError: an argument is missing or unknown.
    """
    unknown = sorted(set(arguments) - {*_NEEDED, "replicas", "cpus", "gpus"})
    missing = [name for name in _NEEDED if not arguments.get(name)]
    if unknown or missing:
        raise ConfigError(
            f"ray_jobs.serve:search lacks {missing} and does not know {unknown}: give model, data and index, and "
            "perhaps replicas, cpus and gpus"
        )
    model, data, index = (str(arguments[name]) for name in _NEEDED)
    cpus, cards = int(arguments.get("cpus", 2)), int(arguments.get("gpus", 0))

    def application() -> Any:
        with garbage.kept():
            from wukong.serve import start
            from wukong.serve.app import create_app

            device = gpus.of_task() if cards else "cpu"
            return create_app(start.service(model, data, index, device, cores=cpus))

    return serve.deployment(
        serve.ingress(application)(),
        name="search",
        num_replicas=int(arguments.get("replicas", 1)),
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": cpus, "num_gpus": cards},
    ).bind()
