"""Watching a RayJob, and asking an API server that is away, busy or forbids."""

import pytest
from api_server import ApiServer
from played_ray_job import NEW, PENDING, RUNNING, SUBMITTED, SUCCEEDED, run

from ray_jobs.launch.kuberay import RayJobError, Timing, run_job
from wukong.config.experiment import Experiment


def test_dropped_and_expired_watches_are_survived(server: ApiServer, experiment: Experiment) -> None:
    server.drop_watches, server.expire_watches = 3, 2
    watched = ("until", lambda: server.watching)
    drops = [
        step
        for left, status in ((2, SUBMITTED), (1, PENDING), (0, RUNNING))
        for step in (watched, status, ("until", lambda left=left: server.drop_watches <= left))
    ]
    server.scripts = [[NEW, *drops, watched, SUCCEEDED]]
    run(experiment)
    assert (server.drop_watches, server.expire_watches) == (0, 0)
    assert sum(request.startswith("WATCH") for request in server.requests) >= 6


def test_where_watching_is_forbidden_the_job_is_asked_for(server: ApiServer, experiment: Experiment) -> None:
    server.forbid = {"WATCH"}
    server.scripts = [[NEW, ("until", lambda: "WATCH" in str(server.requests)), RUNNING, ("sleep", 0.1), SUCCEEDED]]
    run(experiment)
    assert sum(request.startswith("WATCH") for request in server.requests) == 1


def test_a_watch_is_made_anew_when_its_time_is_over(server: ApiServer, experiment: Experiment) -> None:
    def watches() -> int:
        return sum(request.startswith("WATCH") for request in server.requests)

    server.scripts = [[NEW, ("until", lambda: watches() >= 2), RUNNING, SUCCEEDED]]
    short = Timing(watch=1, look=1, poll=0.05, patience=1.0)
    run_job("filter", experiment, "r", ["filter"], {}, "wukong", short)


def test_an_overloaded_api_server_is_asked_again(server: ApiServer, experiment: Experiment) -> None:
    server.unavailable = 2
    server.scripts = [[NEW, RUNNING, SUCCEEDED]]
    run(experiment)


def test_an_api_server_that_stays_away_is_reported(server: ApiServer, experiment: Experiment) -> None:
    server.unavailable = 10_000
    with pytest.raises(RayJobError, match="has not answered for 1 s"):
        run_job("filter", experiment, "r", ["filter"], {}, "wukong", Timing(patience=1.0))
