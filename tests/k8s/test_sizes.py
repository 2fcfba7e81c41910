"""The sizes of each installation are those that the plan gives for the URLs that it says it is for."""

from pathlib import Path

import pytest
import yaml
from manifests import BUILDS, installation, named

from wukong.config import documents
from wukong.model.cost import Shape, Size
from wukong.stages import JOBS, WHOLE_RUN, estimate, fit, measured_rates, of, overlay
from wukong.stages.estimate import Work

ROOT = Path(__file__).parents[2]
LARGE = "paper/vit-l.yaml", Size(400_000_000, 300_000_000, 1.6e11, Shape(256, 1024))  # ViT-L/14
SMALL = "demo.yaml", Size(10_000_000, 3_400_000, 8e8, Shape(1, 1280))
OWN_STORE = [name for name in ("plain", *BUILDS) if name != "overlays/external-s3"]
RAY = 1.2e9
"""Bytes of Ray's own processes on a head, and its objects in shared memory."""


def work(name: str, tmp_path: Path, times: int = 1) -> Work:
    """What an installation's run has to do: the paper's experiment, on a laptop the demo's."""
    manifests, file = installation(name), tmp_path / "manifests.yaml"
    file.write_text(yaml.safe_dump_all(list(manifests)))
    config, size = SMALL if name == "overlays/kind" else LARGE
    experiment = documents.load(ROOT / "configs" / config)
    capacity = overlay.read(file, experiment)
    assert capacity.sized_for is not None
    urls = times * capacity.sized_for
    rates = measured_rates.load(Path(measured_rates.__file__).with_suffix(".json"))
    return Work(experiment, urls, urls, size, capacity, rates)


@pytest.mark.parametrize("name", OWN_STORE)
def test_the_store_holds_what_the_plan_writes_and_little_more(name: str, tmp_path: Path) -> None:
    planned = work(name, tmp_path)
    holds = planned.capacity.store
    stored = sum(each(planned).bytes for stage in WHOLE_RUN if (each := of(stage).estimate) is not None)
    assert holds is not None
    assert 0.75 * holds <= stored <= holds


@pytest.mark.parametrize("name", OWN_STORE)
def test_what_the_settings_say_the_store_holds_are_its_volumes(name: str) -> None:
    manifests = installation(name)
    container = named(manifests, "StatefulSet")["object-store"]["spec"]["template"]["spec"]["containers"][0]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    volumes = int(variables["VOLUMES"]) * int(variables["VOLUME_MB"]) * 2**20
    for namespace in ("wukong", "kubeflow"):
        said = named(manifests, "ConfigMap", namespace)["wukong-settings"]["data"][overlay.STORE_CAPACITY]
        assert overlay.amount_of(said) == volumes


@pytest.mark.parametrize("name", ["plain", *BUILDS])
def test_a_head_holds_the_driver_of_every_stage_beside_ray(name: str, tmp_path: Path) -> None:
    planned = work(name, tmp_path)
    head = planned.capacity.head_memory
    assert head is not None
    for stage in JOBS:
        made = of(stage).estimate
        assert made is not None
        assert made(planned).driver_memory + RAY <= head, stage


def test_more_urls_than_an_installation_is_for_do_not_fit(tmp_path: Path) -> None:
    many = work("plain", tmp_path, times=2)
    planned = {"crawl": estimate.of_crawl(many), "filter": estimate.of_filter(many)}
    assert any("the store holds" in problem for problem in fit.problems(many, planned))
