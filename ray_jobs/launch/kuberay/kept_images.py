"""Which images the RayJobs of a run have: those that the cluster named when the run began.

An upgrade in the middle of a run makes the ConfigMap name other images. The run's components stay what they were, since
the pipeline names their image. Its later stages would then run other code than that which launches them, and a
component that is started again would not find the RayJob of its stage, whose name depends on the images.
"""

import logging

from ray_jobs.launch.kuberay.client import KubernetesApi, Timing
from ray_jobs.launch.kuberay.errors import RayJobError
from wukong.config.experiment import Experiment
from wukong.errors import ConfigError
from wukong.runtime import installed
from wukong.stages import ray_job, run_paths
from wukong.stages.ray_job import Settings
from wukong.store import storage

FILE = "ray_images.json"
"""Beside the records of a run."""

log = logging.getLogger(__name__)


def keep(experiment: Experiment, run_name: str, namespace: str) -> None:
    """Write down which images the cluster names now, for the run that begins.

    A cluster that cannot be asked is left to the run's stages, which say more of what is wrong.
    """
    try:
        data = KubernetesApi(namespace, Timing(patience=60)).read_config_map(ray_job.CONFIG_MAP)
        _, found = ray_job.parse(data, namespace)
    except (ConfigError, RayJobError) as error:
        log.warning("the images of the run are not written down: %s", error)
        return
    written_for = data.get(ray_job.VERSION, installed.version())
    if written_for != installed.version():
        log.warning(
            "this pipeline has version %s of Wukong, and the RayJobs of this cluster have %s: upload its pipelines",
            installed.version(),
            written_for,
        )
    images = {"image": found.image, "gpu_image": found.gpu.image}
    storage.write_json(run_paths.uri_of(experiment, run_name, FILE), images)


def of_run(found: Settings, experiment: Experiment, run_name: str) -> Settings:
    """Return the cluster's settings with the images that it named when the run began."""
    uri = run_paths.uri_of(experiment, run_name, FILE)
    if not storage.exists(uri):
        return found
    kept = storage.read_json(uri)
    image, gpu_image = kept["image"] or found.image, kept["gpu_image"] or found.gpu.image
    if (image, gpu_image) != (found.image, found.gpu.image):
        log.info("the cluster has other images than when this run began; the run goes on with %s", image)
    gpu = found.gpu.model_copy(update={"image": gpu_image})
    return found.model_copy(update={"image": image, "gpu": gpu})
