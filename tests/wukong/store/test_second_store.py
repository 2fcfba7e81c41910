"""What an operator's store may differ in, on SeaweedFS with TLS, and on Ceph's gateway where that is installed."""

import io
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore.auth
import pytest
import rados_gateway
import yaml
from authority import certified
from botocore.config import Config
from free_ports import free_port
from mlflow.store.artifact import s3_artifact_repo
from object_store import ObjectStore
from rados_gateway import RadosGateway
from stolen_keys import begins_with_its_key, crawls_with_its_key

from infra import s3_keys
from wukong.commands import gc
from wukong.config import documents
from wukong.errors import StorageError
from wukong.stages import access, preflight
from wukong.store import address, fence, patience, s3_requests, storage
from wukong.store.conditional_store import ChangedError

pytestmark = pytest.mark.long

BUCKET = "wukong-test"
SETTINGS = Path(__file__).parents[3] / "k8s" / "base" / "settings.yaml"
DOCUMENT = Path(__file__).parents[3] / "docs" / "store.md"


class Store(NamedTuple):
    """A server with TLS: its name, and the environment of a client."""

    name: str
    variables: dict[str, str]
    gateway: RadosGateway | None


@pytest.fixture(scope="module", params=["seaweedfs", "radosgw"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "radosgw":
        rados_gateway.require()
        gateway = RadosGateway(folder, f"{BUCKET}.localhost")
        try:
            gateway.start()
            yield Store("radosgw", gateway.variables(), gateway)
        finally:
            gateway.stop()
        return
    authority, certificate, key = certified(folder, "localhost", f"{BUCKET}.localhost")
    tls = (f"-s3.port.https={(port := free_port())}", f"-s3.cert.file={certificate}", f"-s3.key.file={key}")
    server = ObjectStore(folder / "weed", *tls, "-s3.domainName=localhost")
    server.start()
    try:
        server.wait_ready("ready")
        own = {"AWS_ENDPOINT_URL_S3": f"https://127.0.0.1:{port}", "AWS_CA_BUNDLE": str(authority)}
        yield Store("seaweedfs", server.variables() | own, None)
    finally:
        server.kill()


@pytest.fixture
def root(store: Store, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own in a bucket; the environment leads to the store."""
    for name, value in store.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(patience.VARIABLE, "60")
    storage.make_bucket(BUCKET)
    return f"s3://{BUCKET}/{request.node.originalname}"


def oracle(store: Store) -> Any:
    """boto3's own client, as an operator uses it."""
    variables = store.variables
    return boto3.Session().client(
        "s3",
        endpoint_url=variables["AWS_ENDPOINT_URL_S3"],
        verify=variables["AWS_CA_BUNDLE"],
        aws_access_key_id=variables["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=variables["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
    )


def test_what_is_written_is_read_listed_and_deleted(store: Store, root: str) -> None:
    """One object of several parts, and more objects than a page of a listing has."""
    large = os.urandom(1 << 20) * 26
    storage.write_bytes(f"{root}/large", large)
    assert storage.read_bytes(f"{root}/large") == large
    assert (
        oracle(store).head_object(Bucket=BUCKET, Key=f"{root.partition(BUCKET + '/')[2]}/large")["ETag"].endswith('-3"')
    )
    names = [f"{root}/many/{number:03}" for number in range(120)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda uri: storage.write_bytes(uri, b"1"), names))
    assert storage.list_files(f"{root}/many") == names
    storage.delete(f"{root}/many")
    assert storage.list_files(f"{root}/many") == [] and storage.list_names(root) == ["large"]


@pytest.mark.parametrize("content", [b"seen", os.urandom(1 << 20) * 26], ids=["small", "of several parts"])
def test_of_many_who_replace_what_they_saw_one_succeeds(root: str, content: bytes) -> None:
    for number, there in enumerate((True, False)):
        uri = f"{root}/{len(content)}/{number}"
        if there:
            storage.write_bytes(uri, content)
        seen = storage.version(uri)

        def write(writer: int, uri: str = uri, seen: str | None = seen) -> bool:
            try:
                storage.write_if(uri, io.BytesIO(str(writer).encode()), seen)
            except ChangedError:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            done = list(threads.map(write, range(8)))
        assert sum(done) == 1 and storage.read_bytes(uri) == str(done.index(True)).encode()
    storage.delete(uri)
    with pytest.raises(ChangedError):
        storage.write_if(uri, b"gone", '"0123456789abcdef0123456789abcdef"')


def test_conditions_are_found_to_be_heeded_and_the_file_stays(root: str) -> None:
    storage.write_bytes(f"{root}/claim", b"as it was")
    assert fence.why_unconditional(f"{root}/claim") == ""
    assert storage.read_bytes(f"{root}/claim") == b"as it was"


@pytest.mark.parametrize("ask", [storage.version, storage.exists, storage.read_bytes])
@pytest.mark.parametrize("trusted", ["", None])
def test_an_authority_that_is_not_named_is_named_at_once(
    root: str, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], Any], trusted: str | None
) -> None:
    """Also where the variable is empty, which boto3 by itself takes for "check nothing"."""
    monkeypatch.setenv(address.CERTIFICATES, "") if trusted == "" else monkeypatch.delenv(address.CERTIFICATES)
    began = time.monotonic()
    with pytest.raises(
        StorageError, match=r"The certificate of https://127\.0\.0\.1:\d+ is not trusted, or is for another"
    ):
        ask(f"{root}/file")
    assert time.monotonic() - began < 30


def test_a_bucket_is_made_in_a_region_that_the_store_does_not_know(
    store: Store, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    storage.write_bytes("s3://wukong-elsewhere/file", b"1")
    assert oracle(store).list_objects_v2(Bucket="wukong-elsewhere")["KeyCount"] == 1
    storage.make_bucket("wukong-elsewhere")


def test_a_bucket_can_be_a_part_of_the_hosts_name(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """curl looks for names below localhost at loopback itself; Python asks the system, which does so here."""
    ask, hosts = socket.getaddrinfo, []

    def look_up(host: str, *arguments: Any, **named: Any) -> Any:
        hosts.append(host)
        return ask("127.0.0.1" if host.endswith(".localhost") else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", os.environ["AWS_ENDPOINT_URL_S3"].replace("127.0.0.1", "localhost"))
    monkeypatch.setenv(address.ADDRESSING, "virtual")
    storage.write_bytes(f"{root}/file", b"1")
    storage.write_if(f"{root}/file", b"2", storage.version(f"{root}/file"))
    assert storage.read_bytes(f"{root}/file") == b"2" and hosts == [f"{BUCKET}.localhost"] * len(hosts) and hosts


def test_a_clock_that_is_wrong_is_named(store: Store, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = botocore.auth.get_current_datetime

    def late(*arguments: Any, **named: Any) -> datetime:
        moment: datetime = now(*arguments, **named)
        return moment - timedelta(hours=1)

    monkeypatch.setattr(botocore.auth, "get_current_datetime", late)
    storage.write_bytes(f"{root}/file", b"1")
    with pytest.raises(StorageError, match=r"The clocks of this machine and of https://\S+ differ by more than"):
        storage.read_version(f"{root}/file")


def experiment_at(place: str) -> Any:
    crawl = {"queries": f"{place}/queries.txt", "endpoint": "http://search.invalid"}
    return documents.parse({"name": "x", "storage": place, "crawl": crawl})


def test_a_run_is_told_of_a_bucket_that_keeps_versions(
    store: Store, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And of what it has no longer where the store heeds no conditions in it, as Ceph's gateway does."""
    client, bucket = oracle(store), "wukong-versions"
    client.create_bucket(Bucket=bucket)
    there = address.of_environment()
    with caplog.at_level(logging.WARNING):
        preflight.check_access(experiment_at(f"s3://{bucket}"))
    assert not caplog.records and not s3_requests.keeps_versions(there, bucket)
    assert gc._when_free(f"s3://{bucket}/x").startswith("An object store frees their space later")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    assert s3_requests.keeps_versions(there, bucket) and not s3_requests.expires_versions(there, bucket)
    with caplog.at_level(logging.WARNING):
        preflight.check_access(experiment_at(f"s3://{bucket}"))
    assert gc._when_free(f"s3://{bucket}/x").startswith(f"The bucket {bucket} keeps versions, and no lifecycle rule")
    assert f"the bucket {bucket} keeps what is deleted or overwritten" in caplog.text
    assert ("has no conditional writes (it ignores If-None-Match)" in caplog.text) == (store.name == "radosgw")
    storage.write_bytes(f"s3://{bucket}/a/file", b"1")
    storage.write_bytes(f"s3://{bucket}/a/file", b"2")
    storage.delete(f"s3://{bucket}/a")
    assert storage.list_files(f"s3://{bucket}/a") == [] and not storage.exists(f"s3://{bucket}/a/file")
    kept = client.list_object_versions(Bucket=bucket, Prefix="a/file")["Versions"]
    assert len(kept) == 2, "deleting frees nothing"
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert not s3_requests.keeps_versions(there, bucket)
    storage.write_bytes(f"s3://{bucket}/claim", b"1")
    assert fence.why_unconditional(f"s3://{bucket}/claim") == ""


def test_mlflow_keeps_files_there_with_the_settings_of_a_cluster(
    root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its server's own client, which is told by the ConfigMap and by the Deployment's variable."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["data"]
    for name in ("AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_RESPONSE_CHECKSUM_VALIDATION"):
        monkeypatch.setenv(name, settings[name])
    monkeypatch.setenv("MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE", settings[address.ADDRESSING])
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL_S3"])
    content = os.urandom(1 << 20) * 9
    (tmp_path / "weights").write_bytes(content)
    s3_artifact_repo._cached_get_s3_client.cache_clear()  # of the other store, as boto3's own session is
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    files = s3_artifact_repo.S3ArtifactRepository(f"{root}/1/artifacts")
    files.log_artifact(str(tmp_path / "weights"))
    assert [(each.path, each.file_size) for each in files.list_artifacts()] == [("weights", len(content))]
    assert Path(files.download_artifacts("weights", str(tmp_path))).read_bytes() == content
    files.delete_artifacts()
    assert storage.list_files(root) == []


# --- what only Ceph's gateway has


@pytest.fixture
def gateway(store: Store) -> RadosGateway:
    if store.gateway is None:
        pytest.skip("SeaweedFS has no bucket policies, and none of these rules")
    return store.gateway


def test_the_rule_of_the_documentation_deletes_versions(gateway: RadosGateway, store: Store, root: str) -> None:
    """A day of the rule is two seconds of this gateway."""
    text = DOCUMENT.read_text(encoding="utf-8").partition('{"Rules"')[2].partition("```")[0]
    rules = json.loads('{"Rules"' + text)
    client, bucket = oracle(store), "wukong-rule"
    client.create_bucket(Bucket=bucket)
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=rules)
    assert s3_requests.expires_versions(address.of_environment(), bucket)
    assert "once its lifecycle rule deletes them" in gc._when_free(f"s3://{bucket}")
    storage.write_bytes(f"s3://{bucket}/kept", b"1")
    storage.write_bytes(f"s3://{bucket}/gone", b"1")
    storage.delete(f"s3://{bucket}/gone")
    until = time.monotonic() + 120
    while (listed := client.list_object_versions(Bucket=bucket)) and any(
        entry["Key"] == "gone" for kind in ("Versions", "DeleteMarkers") for entry in listed.get(kind, [])
    ):
        assert time.monotonic() < until, listed
        time.sleep(1)
    assert storage.read_bytes(f"s3://{bucket}/kept") == b"1"


ON_OBJECTS = ("s3:GetObject", "s3:PutObject", "s3:DeleteObject")


@pytest.fixture
def as_limited(gateway: RadosGateway, store: Store, root: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that says what the key ``limited`` may do in a bucket of another's; all else is done with that key."""

    def let(bucket: str, *statements: dict[str, Any]) -> None:
        who = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam:::user/limited"]}}
        policy = {"Version": "2012-10-17", "Statement": [{**who, **statement} for statement in statements]}
        client = oracle(store)
        client.create_bucket(Bucket=bucket)
        client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
        for name, value in gateway.variables("limited").items():
            monkeypatch.setenv(name, value)

    return let


def test_a_key_for_a_prefix_suffices(as_limited: Callable[..., None]) -> None:
    """It may list below the prefix alone, so the store refuses to say that an object is not there."""
    arn, place = "arn:aws:s3:::wukong-team", "s3://wukong-team/team"
    below = {"StringLike": {"s3:prefix": ["team", "team/*"]}}
    as_limited(
        "wukong-team",
        {"Action": list(ON_OBJECTS), "Resource": [f"{arn}/team/*"]},
        {"Action": ["s3:ListBucket"], "Resource": [arn], "Condition": below},
    )
    preflight.check_access(experiment_at(place))
    storage.write_bytes(f"{place}/a/file", b"1")
    assert (
        storage.exists(f"{place}/a/file") and not storage.exists(f"{place}/a/fil") and not storage.exists(f"{place}/a")
    )
    assert storage.version(f"{place}/none") is None and storage.read_version(f"{place}/none") is None
    storage.write_if(f"{place}/new", b"1", None)
    assert storage.sizes(place) == {f"{place}/a/file": 1, f"{place}/new": 1}
    storage.delete(f"{place}/a")
    storage.delete(f"{place}/new")
    storage.delete(f"{place}/none")
    assert storage.list_files(place) == []
    refused = r"answers, and refuses that to the key limited\. It needs s3:ListBucket on wukong-team, and s3:GetObject"
    for ask in (
        lambda: storage.write_bytes("s3://wukong-team/other/file", b"1"),
        lambda: storage.list_files("s3://wukong-team/other"),
        lambda: storage.write_if("s3://wukong-team/other/file", b"1", None),
        lambda: storage.make_bucket("wukong-others"),
    ):
        with pytest.raises(StorageError, match=refused.replace("wukong-team", r"wukong-\w+")):
            ask()


def test_the_policy_that_we_print_for_the_crawls_key_suffices(as_limited: Callable[..., None]) -> None:
    as_limited("wukong", *s3_keys.policy_of(access.S3_KEYS["job-crawl-s3"])["Statement"])
    crawls_with_its_key()


def test_the_policy_that_we_print_for_the_first_components_key_suffices(as_limited: Callable[..., None]) -> None:
    as_limited("wukong", *s3_keys.policy_of(access.S3_KEYS["component-run-s3"])["Statement"])
    begins_with_its_key()


@pytest.mark.parametrize("missing", ["s3:ListBucket", "s3:PutObject", "s3:DeleteObject"])  # who wrote may read
def test_a_run_that_lacks_a_right_is_refused_before_its_work(as_limited: Callable[..., None], missing: str) -> None:
    bucket = f"wukong-without-{missing.partition(':')[2].lower()}"
    arn = f"arn:aws:s3:::{bucket}"
    lists = {"Action": ["s3:ListBucket"], "Resource": [arn]}
    acts = {"Action": [action for action in ON_OBJECTS if action != missing], "Resource": [f"{arn}/*"]}
    as_limited(bucket, acts, *([lists] if missing != "s3:ListBucket" else []))
    with pytest.raises(StorageError, match="refuses that to the key limited"):
        preflight.check_access(experiment_at(f"s3://{bucket}"))


def test_a_key_that_nobody_knows_is_named(gateway: RadosGateway, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    with pytest.raises(StorageError, match="does not know the key nobody, or its secret is another one"):
        storage.list_files(root)


def test_what_is_deleted_is_freed(gateway: RadosGateway, root: str) -> None:
    before = gateway.used()
    storage.write_bytes(f"{root}/file", os.urandom(1 << 20) * 6)
    assert gateway.used() >= before + (6 << 20)
    storage.delete(root)
    assert gateway.used() < before + (1 << 20)


def test_the_gateway_is_spoken_to_without_tls(
    gateway: RadosGateway, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the SDK signs what it sends in another way."""
    for name, value in gateway.variables(tls=False).items():
        monkeypatch.setenv(name, value)
    storage.write_bytes(f"{root}/file", b"1")
    storage.write_if(f"{root}/file", b"2", storage.version(f"{root}/file"))
    assert storage.read_bytes(f"{root}/file") == b"2"
