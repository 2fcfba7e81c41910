"""Run a stage as a RayJob of the KubeRay operator, and wait for it.

- ``settings``: reads the ConfigMap in which the cluster's operator says what stages may use.
- ``kept_images``: the images with which a run has begun.
- ``manifest``: makes the RayJob of a stage.
- ``status``: reads from a RayJob's status and pods how it ended or why it waits.
- ``queue``: reads from Kueue what a RayJob waits for.
- ``client``: calls of the Kubernetes API.
- ``logs``: follows the job's log.
- ``pods``: writes down which pods the job holds, and which images they run.
- ``progress``: shows on the RayJob, and to Argo, how far the log says that it has come.
- ``pipeline_run``: whether the run of the pipeline goes on without this pod.
- ``job``: puts these together.
"""

from ray_jobs.launch.kuberay.client import Timing
from ray_jobs.launch.kuberay.errors import RayJobError
from ray_jobs.launch.kuberay.job import end_run, images_of_this_pod, run_job, was_terminated
from ray_jobs.launch.kuberay.kept_images import keep as keep_images
from ray_jobs.launch.kuberay.status import INFRASTRUCTURE

__all__ = [
    "INFRASTRUCTURE",
    "RayJobError",
    "Timing",
    "end_run",
    "images_of_this_pod",
    "keep_images",
    "run_job",
    "was_terminated",
]
