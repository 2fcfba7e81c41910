"""How far the stages of a run on a cluster have come."""

import contextlib
import logging

log = logging.getLogger(__name__)


class StageProgress:
    """How far the stages of a run have come, as their RayJobs say it to the kubeconfig's user.

    Where there is no kubeconfig, or its user may not look, nothing is said: the run can be waited for without.

    Args:
        namespace: the RayJobs'.
        experiment: name of the experiment.
        run: name of the run.
    """

    def __init__(self, namespace: str, experiment: str, run: str) -> None:
        from ray_jobs.launch.kuberay import RayJobError, Timing
        from ray_jobs.launch.kuberay.client import KubernetesApi

        self._experiment, self._run = experiment, run
        self._api: KubernetesApi | None = None
        with contextlib.suppress(RayJobError):
            self._api = KubernetesApi(namespace, Timing(patience=0))

    def now(self) -> dict[str, str]:
        """Return a message for each stage at work that has said how far it is."""
        from ray_jobs.launch.kuberay import RayJobError
        from ray_jobs.launch.kuberay.progress import NAME, in_words
        from ray_jobs.launch.kuberay.status import verdict

        if self._api is None:
            return {}
        try:
            jobs = self._api.jobs_of_run(self._run)
        except RayJobError as error:
            log.debug("the progress of stages is not shown: %s", error)
            if error.reason != "Unreachable":
                self._api = None
            return {}
        found = {}
        for job in jobs:
            labels, of = job["metadata"]["labels"], job["metadata"].get("annotations", {}).get("wukong/experiment")
            if of == self._experiment and NAME in labels and verdict(job.get("status", {})) is None:
                found[labels["wukong/stage"]] = in_words(labels[NAME])
        return found
