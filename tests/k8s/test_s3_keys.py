"""What each S3 key opens: the identities that the setup job makes, with the real object store on loopback."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import boto3
import pytest
import store_server
from botocore.exceptions import ClientError
from stolen_keys import (
    PLACES,
    ROOT,
    allowed,
    begins_with_its_key,
    crawls_with_its_key,
    fill,
    opened_by,
    rows,
    takes_over_with_its_key,
)

from infra import cluster
from wukong.stages import access
from wukong.store import storage

KEYS = {
    name: {"AWS_ACCESS_KEY_ID": f"{name}-access-key", "AWS_SECRET_ACCESS_KEY": f"{name}-secret"}
    for name in (*access.S3_KEYS, "mlflow-s3", "setup-s3")
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with store_server.running(tmp_path_factory.mktemp("store"), cluster._identities([], KEYS)) as url:
        for bucket in ("wukong", "mlflow"):
            client(url, "setup-s3").create_bucket(Bucket=bucket)
        yield url


def client(url: str, name: str) -> Any:
    key = KEYS[name]
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=key["AWS_SECRET_ACCESS_KEY"],
    )


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "own", "other"), [("wukong-s3", "wukong", "mlflow"), ("mlflow-s3", "mlflow", "wukong")]
)
def test_a_key_opens_its_bucket_and_no_other(address: str, name: str, own: str, other: str) -> None:
    store = client(address, name)
    store.put_object(Bucket=own, Key="a/b", Body=b"x", IfNoneMatch="*")
    assert store.get_object(Bucket=own, Key="a/b")["Body"].read() == b"x"
    assert [entry["Key"] for entry in store.list_objects_v2(Bucket=own)["Contents"]] == ["a/b"]
    store.head_bucket(Bucket=own)
    store.delete_object(Bucket=own, Key="a/b")
    client(address, "setup-s3").put_object(Bucket=other, Key="theirs", Body=b"x")
    refused: dict[str, Callable[[], Any]] = {
        "put": lambda: store.put_object(Bucket=other, Key="a/b", Body=b"x"),
        "get": lambda: store.get_object(Bucket=other, Key="theirs"),
        "list": lambda: store.list_objects_v2(Bucket=other),
        "delete": lambda: store.delete_object(Bucket=other, Key="theirs"),
        "copy": lambda: store.copy_object(Bucket=own, Key="c", CopySource={"Bucket": other, "Key": "theirs"}),
        "make": lambda: store.create_bucket(Bucket="more"),
        "drop": lambda: store.delete_bucket(Bucket=own),
    }
    for what, ask in refused.items():
        with pytest.raises(ClientError) as error:
            ask()
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403, what
    client(address, "setup-s3").delete_object(Bucket=other, Key="theirs")


@pytest.mark.long
def test_the_search_pages_key_reads_and_writes_nothing_but_indexes(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (KEYS["search-s3"] | {"AWS_ENDPOINT_URL_S3": address, "AWS_REGION": "us-east-1"}).items():
        monkeypatch.setenv(name, value)
    owner, page = client(address, "wukong-s3"), client(address, "search-s3")
    for key in ("demo/filter/KEY/manifest.json", "experiments/a.json", "indexes-of-others/a"):
        owner.put_object(Bucket="wukong", Key=key, Body=b"{}")
    assert storage.read_json("s3://wukong/demo/filter/KEY/manifest.json") == {}
    assert storage.list_files("s3://wukong/demo") == ["s3://wukong/demo/filter/KEY/manifest.json"]
    storage.write_json("s3://wukong/indexes/KEY/manifest.json", {"made": "here"})
    assert storage.read_json("s3://wukong/indexes/KEY/manifest.json") == {"made": "here"}
    client(address, "setup-s3").put_object(Bucket="mlflow", Key="theirs", Body=b"x")
    refused: dict[str, Callable[[], Any]] = {
        "put": lambda: page.put_object(Bucket="wukong", Key="demo/filter/KEY/manifest.json", Body=b"x"),
        "put more": lambda: page.put_object(Bucket="wukong", Key="more", Body=b"x"),
        "put beside": lambda: page.put_object(Bucket="wukong", Key="indexes-of-others/a", Body=b"x"),
        "delete": lambda: page.delete_object(Bucket="wukong", Key="experiments/a.json"),
        "delete many": lambda: page.delete_objects(
            Bucket="wukong", Delete={"Objects": [{"Key": "experiments/a.json"}]}
        ),
        "copy": lambda: page.copy_object(
            Bucket="wukong", Key="demo/b", CopySource={"Bucket": "wukong", "Key": "experiments/a.json"}
        ),
        "upload": lambda: page.create_multipart_upload(Bucket="wukong", Key="demo/b"),
        "drop": lambda: page.delete_bucket(Bucket="wukong"),
        "policy": lambda: page.put_bucket_policy(Bucket="wukong", Policy="{}"),
        "get": lambda: page.get_object(Bucket="mlflow", Key="theirs"),
        "list": lambda: page.list_objects_v2(Bucket="mlflow"),
    }
    for what, ask in refused.items():
        try:
            answer = ask()
        except ClientError as error:
            assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 403, what
        else:
            assert [each["Code"] for each in answer["Errors"]] == ["AccessDenied"], what
    assert owner.get_object(Bucket="wukong", Key="demo/filter/KEY/manifest.json")["Body"].read() == b"{}"
    assert owner.get_object(Bucket="wukong", Key="experiments/a.json")["Body"].read() == b"{}"


@pytest.fixture(scope="module")
def filled(address: str) -> str:
    """The store with an object in each place."""
    fill(client(address, "setup-s3"))
    return address


def test_the_page_has_a_row_for_each_key() -> None:
    assert rows().keys() == KEYS.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", KEYS)
def test_a_stolen_key_can_do_what_the_page_says_and_nothing_else(filled: str, name: str) -> None:
    """Each action on each place, against the real store."""
    thief = client(filled, name)
    assert opened_by(thief) == rows()[name]
    others = {
        "make a bucket": partial(thief.create_bucket, Bucket=f"of-{name}"),
        "change a bucket": partial(thief.put_bucket_versioning, Bucket="wukong", VersioningConfiguration=OFF),
        "open a bucket": partial(thief.put_bucket_policy, Bucket="wukong", Policy=OPEN),
    }
    # Who may write to a whole bucket may change its versioning: SeaweedFS knows no less.
    more = {"setup-s3": set(others), "wukong-s3": {"change a bucket"}}
    assert {what for what, ask in others.items() if allowed(ask)} == more.get(name, set())
    if name == "setup-s3":
        thief.delete_bucket_policy(Bucket="wukong")


OFF = {"Status": "Suspended"}
OPEN = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::wukong/*"}],
    }
)


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "does"),
    [
        ("job-crawl-s3", crawls_with_its_key),
        ("job-finetune-s3", takes_over_with_its_key),
        ("component-run-s3", begins_with_its_key),
    ],
)
def test_what_pods_do_with_files_their_keys_allow(
    address: str, monkeypatch: pytest.MonkeyPatch, key: str, does: Callable[[], None]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name, value in KEYS[key].items():
        monkeypatch.setenv(name, value)
    does()


@pytest.mark.long
def test_a_path_that_climbs_out_of_a_prefix_is_refused(filled: str) -> None:
    thief, owner = client(filled, "job-crawl-s3"), client(filled, "wukong-s3")
    secret, into = PLACES["finetune/data"], {"Bucket": "wukong", "Key": f"{ROOT}/crawl/KEY/b"}
    model = secret.removeprefix(f"{ROOT}/")
    for climbing in (f"{ROOT}/crawl/../{model}", f"{ROOT}/crawl/KEY/../../{model}", f"{ROOT}/crawl//../{model}"):
        for ask in (
            partial(thief.get_object, Bucket="wukong", Key=climbing),
            partial(thief.put_object, Bucket="wukong", Key=climbing, Body=b"stolen"),
            partial(thief.copy_object, **into, CopySource={"Bucket": "wukong", "Key": climbing}),
        ):
            with pytest.raises(ClientError) as error:
                ask()
            assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 403, 404)
    with pytest.raises(ClientError):
        thief.copy_object(**into, CopySource={"Bucket": "wukong", "Key": secret})
    answer = thief.delete_objects(Bucket="wukong", Delete={"Objects": [{"Key": secret}]})
    assert [each["Code"] for each in answer["Errors"]] == ["AccessDenied"]
    assert owner.get_object(Bucket="wukong", Key=secret)["Body"].read() == b"x"
