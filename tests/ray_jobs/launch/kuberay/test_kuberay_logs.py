"""Following a RayJob's log."""

from typing import Any

from api_server import ApiServer
from played_ray_job import NEW, RUNNING, SUCCEEDED, run

from wukong.config.experiment import Experiment


def test_no_line_of_the_log_is_lost_or_comes_twice(server: ApiServer, experiment: Experiment, capsys: Any) -> None:
    steps: list[Any] = [NEW, RUNNING]
    for number in range(40):
        steps.append(("log", f"line {number}"))
        if number % 7 == 3:
            steps.append(("drop logs",))
    server.scripts = [[*steps, SUCCEEDED]]
    run(experiment)
    assert capsys.readouterr().out.split("\n")[:-1] == [f"line {number}" for number in range(40)]
    assert sum(request.endswith("-submitter/log") for request in server.requests) > 3


def test_the_log_has_no_colours(server: ApiServer, experiment: Experiment, capsys: Any) -> None:
    coloured = "\x1b[36m(RayTrainWorker pid=121)\x1b[0m epoch 1 [rank=0]"
    server.scripts = [[NEW, RUNNING, ("log", coloured), SUCCEEDED]]
    run(experiment)
    assert "(RayTrainWorker pid=121) epoch 1 [rank=0]\n" in capsys.readouterr().out
