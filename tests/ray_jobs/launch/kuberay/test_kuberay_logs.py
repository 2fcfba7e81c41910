"""Following a RayJob's log."""

from typing import Any

from api_server import ApiServer
from played_ray_job import NEW, RUNNING, SUCCEEDED, run

from wukong import config


def test_no_line_of_the_log_is_lost_or_comes_twice(
    server: ApiServer, experiment: config.Experiment, capsys: Any
) -> None:
    steps: list[Any] = [NEW, RUNNING]
    for number in range(40):
        steps.append(("log", f"line {number}"))
        if number % 7 == 3:
            steps.append(("drop logs",))
    server.scripts = [[*steps, SUCCEEDED]]
    run(experiment)
    assert capsys.readouterr().out.split("\n")[:-1] == [f"line {number}" for number in range(40)]
    assert sum(request.endswith("-submitter/log") for request in server.requests) > 3
