"""What a RayJob's own key may do follows from the RayJob, whoever made it and however odd it is."""

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra import s3_keys, stage_keys
from wukong.errors import ConfigError
from wukong.stages import access

NAME = "nightly-crawl-0123abcd-1"
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["", "*", "${aws:username}", "'"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def job(run: str = "nightly", entrypoint: str = "--experiment s3://wukong/demo/experiments/0.json") -> dict[str, Any]:
    """A RayJob of the crawl, as the launcher makes it, with what the keys are made of."""
    sources = [{"secretRef": {"name": f"{NAME}-s3"}}, {"configMapRef": {"name": "wukong-settings"}}]
    pods = {"template": {"spec": {"containers": [{"name": "ray-head", "envFrom": sources}]}}}
    return {
        "metadata": {
            "name": NAME,
            "uid": "1d0f0000-0",
            "labels": {"wukong/stage": "crawl"},
            "annotations": {"wukong/run": run},
        },
        "spec": {
            "entrypoint": f"python -m ray_jobs crawl {entrypoint} --run {run}",
            "rayClusterSpec": {"headGroupSpec": pods},
        },
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values inside a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in inner for place in ((*path, key), *places(each, (*path, key)))]


@given(st.data())
def test_an_odd_job_is_refused_or_gets_a_key_for_its_own_alone(data: st.DataObject) -> None:
    odd = copy.deepcopy(job())
    inner = odd
    *path, last = data.draw(st.sampled_from(places(odd)))
    for key in path:
        inner = inner[key]
    if data.draw(st.booleans()):
        inner[last] = data.draw(_VALUES)
    else:
        del inner[last]
    try:
        allowed = stage_keys.access_of(odd)
    except ConfigError:
        return
    for pattern in allowed.writes if allowed else ():
        assert re.fullmatch(r"demo/(crawl/\*|runs/[A-Za-z0-9._-]+/.+|runs/\*/attempts/[^*]+\*)", pattern), pattern


@pytest.mark.parametrize("run", ["*", "?", "${aws:username}", "a*", "..", "", "a/b", "a b"])
def test_a_runs_name_that_is_a_pattern_gets_no_key(run: str) -> None:
    with pytest.raises(ConfigError, match="run name"):
        stage_keys.access_of(job(run))


@pytest.mark.parametrize(
    "experiment",
    [
        *("s3://wukong/*/experiments/0.json", "s3://wukong/${aws:username}/experiments/0.json"),
        *("s3://wukong/d?/experiments/0.json", "s3://wukong/a/../b/experiments/0.json", "s3://wukong//experiments/0"),
        *("s3://mlflow/demo/experiments/0.json", "file:///demo/experiments/0.json", "s3://wukong/demo/0.json", "--run"),
    ],
)
def test_an_experiment_elsewhere_or_one_that_is_a_pattern_gets_no_key(experiment: str) -> None:
    with pytest.raises(ConfigError):
        stage_keys.access_of(job(entrypoint=f"--experiment '{experiment}'"))


def test_the_launchers_job_gets_a_key_that_writes_its_own() -> None:
    allowed = stage_keys.access_of(job())
    assert allowed == access.of_ray_job("crawl", "demo", "nightly")
    written = s3_keys.policy_of(allowed)["Statement"][-1]["Resource"]
    assert {*written} >= {"arn:aws:s3:::wukong/demo/crawl/*", "arn:aws:s3:::wukong/demo/runs/nightly/crawl.json*"}
    ended = {**job(), "status": {"jobDeploymentStatus": "Complete"}}
    assert stage_keys.access_of(ended) is None


@pytest.mark.parametrize("team", ["*", "a/../b", "${aws:username}", ""])
def test_a_teams_name_that_is_a_pattern_gets_no_keys(team: str) -> None:
    with pytest.raises(ConfigError, match="policy"):
        access.s3_keys_of_team(team)
