"""What the launcher says of an installation that is incomplete."""

from typing import Any

import pytest
from api_server import ApiServer
from played_ray_job import NEW, RUNNING, SUCCEEDED, change_settings, only_job, run

from ray_jobs.launch.kuberay import RayJobError
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda server: server.forbid.add("POST"), "Role ray-job-launcher"),
        (lambda server: setattr(server, "kuberay_installed", False), "Is KubeRay installed"),
        (lambda server: server.objects.clear(), "kubectl apply -f k8s/"),
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


def _add_settings_of_another_version(server: ApiServer) -> None:
    """Settings that nobody knows: one for all stages, one of a stage, one of GPUs."""
    change_settings(
        server,
        checkpoints_elsewhere=True,
        stages={"filter": {"workers": 3, "memory": "1Gi", "colour": "red"}},
        gpu={"image": "x:1", "driver": {"version": 7}},
    )


def test_settings_of_another_version_are_left_out_and_named(
    server: ApiServer, experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    """A run goes on when the cluster gets another version in its middle."""
    _add_settings_of_another_version(server)
    server.config_maps["ray-job"]["version"] = "99.0"
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)
    (workers,) = only_job(server)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == 3
    for name in ("checkpoints_elsewhere", "stages.filter.colour", "gpu.driver"):
        assert f"{name} is a setting of version 99.0" in caplog.text


@pytest.mark.parametrize("version", [None, "own"])
def test_unknown_settings_of_the_same_version_are_a_mistake(
    server: ApiServer, experiment: Experiment, version: str | None
) -> None:
    _add_settings_of_another_version(server)
    if version is None:
        del server.config_maps["ray-job"]["version"]
    with pytest.raises(ConfigError, match=r"(?s)checkpoints_elsewhere.*Extra inputs"):
        run(experiment)


def test_a_wrong_value_of_another_version_is_a_mistake_too(server: ApiServer, experiment: Experiment) -> None:
    _add_settings_of_another_version(server)
    server.config_maps["ray-job"]["version"] = "99.0"
    change_settings(server, retries="many")
    with pytest.raises(ConfigError, match="retries"):
        run(experiment)
