"""What the launcher says of an installation that is incomplete."""

from typing import Any

import pytest
from api_server import ApiServer
from played_ray_job import run

from ray_jobs.launch.kuberay import RayJobError
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda server: server.forbid.add("POST"), "Role ray-job-launcher"),
        (lambda server: setattr(server, "kuberay_installed", False), "Is KubeRay installed"),
        (lambda server: server.config_maps.clear(), "kubectl apply -f k8s/"),
        (lambda server: server.config_maps["ray-job"].pop("template.yaml"), r"no template\.yaml"),
        (lambda server: server.config_maps["ray-job"].update({"settings.yaml": "quue: x"}), "quue"),
        (lambda server: server.config_maps["ray-job"].update({"template.yaml": "a: b"}), "must be a RayJob"),
        (lambda server: server.config_maps["ray-job"].update({"template.yaml": ":\n:"}), "not valid YAML"),
    ],
)
def test_an_incomplete_installation_is_explained(
    server: ApiServer, experiment: Experiment, break_it: Any, said: str
) -> None:
    break_it(server)
    with pytest.raises((RayJobError, ConfigError), match=said):
        run(experiment)
