"""What pods get: whose key reads and writes which objects, by the patterns alone (tests/k8s asks the real store)."""

from fnmatch import fnmatchcase

import pytest

from wukong import stages
from wukong.stages import access
from wukong.stages.access import S3_KEYS

CRAWL = "demo/crawl/KEY/parts/00000.tar"


def may(name: str, does: str, place: str) -> bool:
    return any(fnmatchcase(place, pattern) for pattern in getattr(S3_KEYS[name], does))


def test_the_crawlers_key_reaches_its_own_prefix_alone() -> None:
    key = access.key_of_job("crawl")
    written = {CRAWL, "demo/runs/first/crawl.json", "demo/runs/first/attempts/crawl/00001-a.json"}
    read = written | {"inputs/queries.txt", "demo/experiments/0.json", "other/crawl/KEY/index.parquet"}
    read |= {"demo/filter/KEY/forbidden.txt"}
    others = {f"demo/{stage.name}/KEY/manifest.json" for stage in stages.TABLE if stage.name != "crawl"}
    others |= {f"demo/runs/first/{stage}.json" for stage in (*stages.RECORDED, "run", "cost") if stage != "crawl"}
    others |= {"demo/runs/first/report.html", "demo/runs/first/experiment.json", "indexes/KEY/a", "queries.txt"}
    others |= {"demo/runs/first/attempts/filter/00001-a.json", "demo/runs/first/held/filter/ray.json"}
    for place in read | others:
        assert may(key, "reads", place) == (place in read), place
        assert may(key, "writes", place) == (place in written | {"other/crawl/KEY/index.parquet"}), place


@pytest.mark.parametrize("stage", stages.JOBS)
def test_a_job_writes_what_it_makes_and_reads_what_comes_before_it(stage: str) -> None:
    key, entry = access.key_of_job(stage), stages.of(stage)
    written = {stage, *entry.makes}
    read = {*written, *entry.parents, *entry.key_parents, *entry.continues, *entry.shows}
    for other in (each.name for each in stages.TABLE):
        assert may(key, "writes", f"x/{other}/KEY/a") == (other in written), other
        assert may(key, "reads", f"x/{other}/KEY/a") == (other in read), other


@pytest.mark.parametrize("stage", stages.JOBS)
def test_a_component_may_do_all_that_its_job_may(stage: str) -> None:
    of_component, of_job = S3_KEYS[access.key_of_component(stage)], S3_KEYS[access.key_of_job(stage)]
    assert set(of_job.writes) <= set(of_component.writes)
    assert all(may(access.key_of_component(stage), "reads", pattern) for pattern in of_job.reads)


@pytest.mark.parametrize("stage", stages.RECORDED)
def test_each_stage_sees_that_a_takedown_goes_on_and_not_what_it_removes(stage: str) -> None:
    keys = {access.key_of_component(stage), access.key_of_job(stage)} & {*S3_KEYS}
    for key in keys:
        assert may(key, "reads", "demo/takedowns/begun.json") and may(key, "reads", "demo/takedowns/_lease.json")
        assert not may(key, "reads", "demo/takedowns/pending.json")
        assert not may(key, "writes", "demo/takedowns/begun.json")


def test_what_only_looks_writes_nothing() -> None:
    assert {name for name, key in S3_KEYS.items() if not key.writes} == {"backup-s3", "component-show-s3"}
    assert not any(may("component-show-s3", "reads", place) for place in ("inputs/a", "indexes/a"))


def test_who_registers_reads_of_which_trials_a_model_was_chosen() -> None:
    held = [*access.copied_to_components(), *(access.key_of_job(stage) for stage in stages.JOBS)]
    reads = {name for name in held if name in S3_KEYS and may(name, "reads", "x/sweeps/a.json")}
    assert reads == {"component-register-s3", "component-run-s3"}


def test_who_makes_what_other_stages_make_too_may_end_their_attempts_and_write_nothing_else_of_theirs() -> None:
    """Features are made by both trainings, by the evaluation, and for the champion; packed sets by the filter too."""
    makers = ("filter", "pretrain", "finetune", "evaluate", "champion")
    claim, ended = "x/runs/first/attempts/{}/00001-a.json", "x/runs/first/attempts/{}/00001-a.taken-over.json"
    for stage in stages.JOBS:
        key, own = access.key_of_job(stage), {stage, *stages.of(stage).records}
        for record in (*stages.RECORDED, "champion"):
            together = stage in makers and record in makers
            assert may(key, "writes", ended.format(record)) == (record in own or together), (stage, record)
            assert may(key, "writes", claim.format(record)) == (record in own), (stage, record)


def test_no_component_and_no_pod_of_ray_has_the_whole_bucket() -> None:
    held = {*access.copied_to_components(), *(access.key_of_job(stage) for stage in stages.JOBS)}
    assert not held & {name for name, key in S3_KEYS.items() if access.EVERYTHING in key.writes}


def test_who_is_a_user_of_mlflow() -> None:
    """One component registers models; whatever trains logs to its experiment; what only looks has no user."""
    by_user: dict[str, set[str]] = {}
    for name in (*stages.RECORDED, "configure", "record_end", "find_manifest", "data_card", "results"):
        users = [secret for secret in access.secrets_of_component(name) if secret not in S3_KEYS]
        assert len(users) <= 1
        for user in users:
            by_user.setdefault(user, set()).add(name)
    assert by_user == {
        "wukong-mlflow": {"register"},
        "search-mlflow": {"configure"},
        "runs-mlflow": {*stages.RECORDED, "record_end"} - {"register"},
    }
    exchanged = {stage: access.secrets_of_job(stage)["wukong-mlflow"] for stage in stages.JOBS}
    assert exchanged == {stage: "runs-mlflow" if stage in stages.TRAININGS else None for stage in stages.JOBS}
