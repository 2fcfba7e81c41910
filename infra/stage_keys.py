"""Gives each RayJob an S3 key of its own, and takes it away when the job has ended: ``python -m infra.stage_keys``.

This is the Deployment of ``k8s/components/stage-keys``. For each RayJob that has not ended there is a user in the
object store's IAM, who may do what the job's stage needs, for its own experiment and run alone
(``wukong.stages.access``), and a Secret with the user's key, without which the job's pods do not start. When the job
has ended or is gone, the user is deleted, and the store refuses the key from then on, and every further key that the
user may have made. The Secret belongs to the RayJob and is deleted with it.

The user gets a policy when the Secret is there. So a user without one is work that was cut short, which is done again.
A RayJob that is made anew under the name of one that was deleted has another user, and waits until the earlier one's
Secret is gone.

Who has stolen a component's token makes RayJobs too. One that is not as the launcher makes it gets no key, which is
logged once, and so does one for which the store or Kubernetes refuses a request; the others get theirs.
"""

import argparse
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra import s3_keys
from infra.cluster_api import Cluster, ClusterError
from wukong import stages
from wukong.errors import ConfigError
from wukong.runtime import logs
from wukong.stages import access
from wukong.stages.access import Access

_USER = "rayjob-"
_POLICY = "stage"
_SECONDS = 2.0
_TIMEOUT = (5, 30)
_ENDED = ("Complete", "Failed", "ValidationFailed")

log = logging.getLogger(__name__)


class StageKeys:
    """The keys of the RayJobs of a namespace; credentials of Kubernetes and of the store come from the environment.

    Args:
        namespace: the RayJobs'.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace, self._cluster = namespace, Cluster()
        settings = Config(connect_timeout=_TIMEOUT[0], read_timeout=_TIMEOUT[1], retries={"total_max_attempts": 1})
        self._iam = boto3.Session().client(
            "iam",
            endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"],
            region_name=os.environ.get("AWS_REGION", "us-east-1"),
            config=settings,
        )
        self._complete: set[str] = set()
        self._odd: set[str] = set()

    def look(self) -> None:
        """Give keys to the jobs that have none, and take those of jobs that have ended."""
        jobs = dict(filter(None, map(self._looked_at, self._cluster.items("ray.io/v1", "RayJob", self._namespace))))
        users = self._users()
        for user in users - jobs.keys():
            with self._others_go_on(user):
                self._take(user)
        self._complete &= jobs.keys() & users
        for user in sorted(jobs.keys() - self._complete):
            with self._others_go_on(user):
                has_policy = user in users and self._iam.list_user_policies(UserName=user)["PolicyNames"]
                if has_policy or self._give(user, *jobs[user], begun=user in users):
                    self._complete.add(user)

    def _looked_at(self, job: Mapping[str, Any]) -> tuple[str, tuple[Mapping[str, Any], Access]] | None:
        """The user of a job that needs a key, with the job and what its key may do; None for any other."""
        try:
            asked = access_of(job)
        except ConfigError as error:
            name = f"{job['metadata'].get('name')} ({job['metadata'].get('uid')})"
            if name not in self._odd:
                log.warning("RayJob %s gets no S3 key: %s", name, error)
            self._odd.add(name)
            return None
        return None if asked is None else (_user_of(job), (job, asked))

    @contextmanager
    def _others_go_on(self, user: str) -> Iterator[None]:
        """Log what the store or Kubernetes refuses for one user; whoever comes next is served."""
        try:
            yield
        except (ClusterError, ClientError) as error:
            log.warning("%s: this is not done now, and is tried again: %s", user, error)

    def _users(self) -> set[str]:
        pages = self._iam.get_paginator("list_users").paginate()
        names = (user["UserName"] for page in pages for user in page["Users"])
        return {name for name in names if name.startswith(_USER)}

    def _give(self, user: str, job: Mapping[str, Any], allowed: Access, *, begun: bool) -> bool:
        """Give a job its key; return False if that must wait."""
        before: list[str] = []
        if begun:
            before = [key["AccessKeyId"] for key in self._iam.list_access_keys(UserName=user)["AccessKeyMetadata"]]
        else:
            self._iam.create_user(UserName=user)
        key = self._iam.create_access_key(UserName=user)["AccessKey"]
        made = self._make_secret(job, key)
        # Who has had a key before has the Secret that is there: the work was cut short after it was made.
        for other in before if made else [key["AccessKeyId"]]:
            self._iam.delete_access_key(UserName=user, AccessKeyId=other)
        name = job["metadata"]["name"]
        if not (made or before):
            log.info("RayJob %s waits until the Secret of an earlier one is gone", name)
            return False
        policy = json.dumps(s3_keys.policy_of(allowed))
        self._iam.put_user_policy(UserName=user, PolicyName=_POLICY, PolicyDocument=policy)
        log.info("RayJob %s has an S3 key", name)
        return True

    def _make_secret(self, job: Mapping[str, Any], key: Mapping[str, str]) -> bool:
        """Make the Secret of a job's key; return False if there is one of that name."""
        name = job["metadata"]["name"]
        owner = {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": job["metadata"]["uid"]}
        metadata = {
            "name": access.key_of_ray_job(name),
            "namespace": self._namespace,
            "labels": {"app.kubernetes.io/name": "wukong", "app.kubernetes.io/component": "stage-keys"},
            "ownerReferences": [owner],
        }
        value = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": value}
        return self._cluster.create(secret | {"type": "Opaque", "immutable": True}) is not None

    def _take(self, user: str) -> None:
        for policy in self._iam.list_user_policies(UserName=user)["PolicyNames"]:
            self._iam.delete_user_policy(UserName=user, PolicyName=policy)
        self._iam.delete_user(UserName=user)
        log.info("%s has no S3 key any more", user)


def _user_of(job: Mapping[str, Any]) -> str:
    return f"{_USER}{job['metadata']['name']}-{job['metadata']['uid'][:8]}"


def access_of(job: Mapping[str, Any]) -> Access | None:
    """What the key of a RayJob may do, by its stage, run, and the URI of its experiment.

    Args:
        job: the RayJob, as anybody may have made it who may make RayJobs.

    Returns:
        None if it gets no key: it has ended, or its pods start from no Secret of its own.

    Raises:
        ConfigError: it is not as the launcher makes one.
    """
    try:
        metadata, spec = job["metadata"], job["spec"]
        stage = (metadata.get("labels") or {}).get("wukong/stage")
        if stage not in stages.JOBS or metadata.get("deletionTimestamp") or has_ended(job.get("status") or {}):
            return None
        container = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        held = [(source.get("secretRef") or {}).get("name") for source in container.get("envFrom") or []]
        if access.key_of_ray_job(metadata["name"]) not in held:
            return None
        arguments = shlex.split(spec["entrypoint"].strip())  # of None, shlex would read standard input
        experiment, run = arguments[arguments.index("--experiment") + 1], metadata["annotations"]["wukong/run"]
        bucket, _, place = experiment.removeprefix("s3://").partition("/")
        root, separator, _ = place.partition("/experiments/")
        if bucket != access.BUCKET or not separator:
            raise ConfigError(f"its experiment {experiment!r} is not in s3://{access.BUCKET}")
        return access.of_ray_job(stage, root, run)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"it is not as Wukong makes one ({type(error).__name__}: {error})") from error


def has_ended(status: Mapping[str, Any]) -> bool:
    """Whether a RayJob has ended, by its status: the launcher asks no more of it then."""
    return status.get("jobStatus") == "SUCCEEDED" or status.get("jobDeploymentStatus") in _ENDED


def main(arguments: list[str] | None = None) -> int:
    """Look every two seconds, for ever."""
    logs.start(formatter=logs.PLAIN)
    parser = argparse.ArgumentParser(prog="python -m infra.stage_keys", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--namespace", required=True)
    keys = StageKeys(parser.parse_args(arguments).namespace)
    while True:
        try:
            keys.look()
        except (ClusterError, BotoCoreError, ClientError) as error:
            log.warning("keys are not given and taken now, which is tried again: %s", error)
        time.sleep(_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
