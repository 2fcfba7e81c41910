"""A RayJob's own S3 key, with the real store and a Kubernetes API on loopback: what it opens, and for how long."""

import itertools
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import api_server
import boto3
import pytest
import store_server
import yaml
from api_server import ApiServer
from botocore.exceptions import ClientError
from manifests import plain, ray_jobs
from stolen_keys import allowed, fill, opened_by, rows

from infra import cluster, s3_keys
from infra.stage_keys import StageKeys, has_ended
from ray_jobs.launch.kuberay.manifest import named
from ray_jobs.launch.kuberay.status import verdict
from wukong.stages import access

COMPONENT = Path(__file__).parents[2] / "k8s" / "components" / "stage-keys"
ADMIN = {"AWS_ACCESS_KEY_ID": "setup", "AWS_SECRET_ACCESS_KEY": "secret-of-setup"}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store with the arguments that the component adds."""
    patches = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text(encoding="utf-8"))["patches"]
    (patch,) = [each["patch"] for each in patches if each["target"]["kind"] == "StatefulSet"]
    further = [change["value"] for change in yaml.safe_load(patch)]
    credentials = [{"accessKey": ADMIN["AWS_ACCESS_KEY_ID"], "secretKey": ADMIN["AWS_SECRET_ACCESS_KEY"]}]
    identities = [{"name": "setup-s3", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}]
    with store_server.running(tmp_path_factory.mktemp("store"), identities, *further) as url:
        client(url, ADMIN).create_bucket(Bucket="wukong")
        yield url


def client(url: str, key: Mapping[str, str], service: str = "s3") -> Any:
    names = {name.lower(): value for name, value in key.items()}
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **names)


@pytest.fixture
def server(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """A cluster in which the program may do what its Role says."""
    documents = yaml.safe_load_all((COMPONENT / "stage-keys.yaml").read_text(encoding="utf-8"))
    (role,) = [document for document in documents if document["kind"] == "Role"]
    for name, value in {**ADMIN, "AWS_ENDPOINT_URL_S3": store, "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with api_server.running(tmp_path, monkeypatch) as api:
        api.rules = {"wukong": role["rules"]}
        yield api
        api.jobs.clear()
        StageKeys("wukong").look()


def begin(server: ApiServer, name: str, uid: str = "", stage: str = "crawl") -> None:
    """A RayJob that the launcher has made for the run `nightly` of the experiment `demo`."""
    body = named(ray_jobs(plain())[stage], name, "wukong", own_key=True)
    experiment = "s3://wukong/demo/experiments/0.json"
    body["spec"]["entrypoint"] = f"python -m ray_jobs {stage} --experiment {experiment} --run nightly"
    server.jobs[name] = body
    body["metadata"]["uid"] = uid or f"1d0f-of-{name}"


def key_of(server: ApiServer, name: str) -> dict[str, str]:
    return server.secrets[f"wukong/{name}-s3"]


def users_of_jobs(store: str) -> list[str]:
    users = client(store, ADMIN, "iam").list_users()["Users"]
    return [user["UserName"] for user in users if user["UserName"].startswith("rayjob-")]


def opens(store: str, key: Mapping[str, str], place: str) -> bool:
    return allowed(partial(client(store, key).put_object, Bucket="wukong", Key=place, Body=b"x"))


def test_a_key_opens_what_its_job_needs_until_the_job_has_ended(server: ApiServer, store: str) -> None:
    keys = StageKeys("wukong")
    begin(server, "one")
    begin(server, "two")
    keys.look()
    one, two = key_of(server, "one"), key_of(server, "two")
    (owner,) = server.named("secrets", "wukong")["one-s3"]["metadata"]["ownerReferences"]
    assert owner["uid"] == server.jobs["one"]["metadata"]["uid"]
    for place in ("crawl/KEY/a", "runs/nightly/crawl.json", "runs/other/attempts/crawl/1.json"):
        assert opens(store, one, f"demo/{place}"), place
    for place in (
        *("demo/runs/other/crawl.json", "demo/runs/nightly/filter.json", "demo/filter/KEY/a", "inputs/a", "notes"),
        *("other/crawl/KEY/a", "demo/x/crawl/KEY/a", "other/demo/crawl/KEY/a"),
    ):
        assert not opens(store, one, place), place
    admin, thief = client(store, ADMIN), client(store, one)
    for place, reads in (("inputs/a", True), ("other/crawl/KEY/a", True), ("demo/finetune/KEY/model", False)):
        admin.put_object(Bucket="wukong", Key=place, Body=b"x")
        assert allowed(partial(thief.get_object, Bucket="wukong", Key=place)) == reads, place
        prefix = place.rpartition("/")[0] + "/"
        assert allowed(partial(thief.list_objects_v2, Bucket="wukong", Prefix=prefix)) == reads, place
    another = client(store, one, "iam").create_access_key()["AccessKey"]  # SeaweedFS lets each user do that
    stolen = {"AWS_ACCESS_KEY_ID": another["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": another["SecretAccessKey"]}
    assert opens(store, stolen, "demo/crawl/KEY/a")
    server.jobs["one"]["status"] = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"}
    keys.look()
    assert not opens(store, one, "demo/crawl/KEY/a") and not opens(store, stolen, "demo/crawl/KEY/a")
    assert not allowed(partial(thief.get_object, Bucket="wukong", Key="demo/crawl/KEY/a"))
    assert opens(store, two, "demo/crawl/KEY/a"), "the other job goes on"
    del server.jobs["two"]
    keys.look()
    assert not opens(store, two, "demo/crawl/KEY/a")


def test_an_odd_job_keeps_no_other_from_its_key(
    server: ApiServer, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight odd ones before and after it, a run that is a pattern among them; also when the program starts again."""
    odd: list[tuple[str, tuple[str, ...], Any]] = [
        ("entrypoint", ("spec", "entrypoint"), "python"),
        ("quote", ("spec", "entrypoint"), "python -m 'ray_jobs"),
        ("last", ("spec", "entrypoint"), "python --experiment"),
        ("labels", ("metadata", "labels"), None),
        ("annotations", ("metadata", "annotations"), None),
        ("spec", ("spec", "rayClusterSpec"), None),
        ("containers", ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers"), []),
        ("all", ("metadata", "annotations", "wukong/run"), "*"),
        ("user", ("metadata", "annotations", "wukong/run"), "${aws:username}"),
    ]
    begin(server, "one")
    for name, (*path, last), value in odd:
        for before in ("a", "z"):
            begin(server, f"{before}-{name}")
            inner = server.jobs[f"{before}-{name}"]
            for key in path:
                inner = inner[key]
            inner[last] = value
    begin(server, "two")
    for _ in range(2):
        keys = StageKeys("wukong")
        caplog.clear()
        for _ in range(2):
            keys.look()
            assert opens(store, key_of(server, "one"), "demo/crawl/KEY/a")
            assert opens(store, key_of(server, "two"), "demo/crawl/KEY/a")
        said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(said) == len(set(said)) == 2 * (len(odd) - 1), "once each; without a stage a RayJob is none of ours"
    assert len(users_of_jobs(store)) == 2


def test_a_job_has_ended_for_the_key_when_it_has_for_the_launcher() -> None:
    jobs = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")
    going_on = ("", "Initializing", "Running", "Suspending", "Suspended", "Retrying", "Waiting")
    for job, deployment in itertools.product(jobs, (*going_on, "Complete", "Failed", "ValidationFailed")):
        status = {"jobStatus": job, "jobDeploymentStatus": deployment}
        assert has_ended(status) == (verdict(status) is not None), status


def test_nobody_gives_himself_more(server: ApiServer, store: str) -> None:
    begin(server, "one")
    StageKeys("wukong").look()
    iam = client(store, key_of(server, "one"), "iam")
    everything = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    (user,) = [
        each["UserName"] for each in client(store, ADMIN, "iam").list_users()["Users"] if "one" in each["UserName"]
    ]
    for ask in (
        partial(iam.list_users),
        partial(iam.create_user, UserName="more"),
        partial(iam.put_user_policy, UserName=user, PolicyName="stage", PolicyDocument=everything),
        partial(iam.create_access_key, UserName="setup-s3"),
        partial(iam.delete_user, UserName=user),
    ):
        with pytest.raises(ClientError) as error:
            ask()
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


@pytest.mark.parametrize("cut_after", ["create_user", "create_access_key", "_make_secret"])
def test_work_that_was_cut_short_is_done_again(
    server: ApiServer, store: str, monkeypatch: pytest.MonkeyPatch, cut_after: str
) -> None:
    class CutError(Exception):
        pass

    begin(server, "one")
    keys = StageKeys("wukong")
    owner = keys if cut_after == "_make_secret" else keys._iam
    real = getattr(owner, cut_after)

    def cut(*given: Any, **more: Any) -> None:
        real(*given, **more)
        raise CutError

    monkeypatch.setattr(owner, cut_after, cut)
    with pytest.raises(CutError):
        keys.look()
    for _ in range(2):
        StageKeys("wukong").look()
        assert opens(store, key_of(server, "one"), "demo/crawl/KEY/a")
    (user,) = users_of_jobs(store)
    assert len(client(store, ADMIN, "iam").list_access_keys(UserName=user)["AccessKeyMetadata"]) == 1


def test_a_job_of_the_same_name_waits_for_the_end_of_the_earlier_ones_secret(server: ApiServer, store: str) -> None:
    keys = StageKeys("wukong")
    begin(server, "one", uid="11111111-a")
    keys.look()
    earlier = key_of(server, "one")
    begin(server, "one", uid="22222222-b")
    for _ in range(2):
        keys.look()
        assert key_of(server, "one") == earlier and not opens(store, earlier, "demo/crawl/KEY/a")
    del server.secrets["wukong/one-s3"]  # by Kubernetes' garbage collector
    keys.look()
    assert opens(store, key_of(server, "one"), "demo/crawl/KEY/a")


def test_a_job_that_starts_from_its_stages_key_gets_none(server: ApiServer) -> None:
    server.jobs["one"] = named(ray_jobs(plain())["crawl"], "one", "wukong", own_key=False)
    StageKeys("wukong").look()
    assert not server.secrets


@pytest.mark.parametrize("name", ["job-crawl-s3", "component-register-s3", "search-s3", "backup-s3"])
def test_a_policy_opens_what_the_page_says(store: str, name: str) -> None:
    """Which is also what `s3-policy` prints for other stores."""
    admin = client(store, ADMIN)
    if "mlflow" not in [bucket["Name"] for bucket in admin.list_buckets()["Buckets"]]:
        admin.create_bucket(Bucket="mlflow")
    fill(admin)
    iam, policy = client(store, ADMIN, "iam"), s3_keys.policy_of(access.S3_KEYS[name])
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="stage", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    held = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
    assert opened_by(client(store, held)) == rows()[name]


def test_the_policy_that_is_printed_is_a_keys_own(capsys: pytest.CaptureFixture[str]) -> None:
    cluster.main(["s3-policy", "job-crawl-s3"])
    printed = json.loads(capsys.readouterr().out)
    assert printed == s3_keys.policy_of(access.S3_KEYS["job-crawl-s3"])
    (listing,) = [each for each in printed["Statement"] if each["Action"] == ["s3:ListBucket"]]
    assert listing["Resource"] == ["arn:aws:s3:::wukong"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": [*access.S3_KEYS["job-crawl-s3"].reads]}}
