"""SeaweedFS's volumes, its growth and its vacuum fit the claim, in every way to install."""

import math
from typing import Any

import pytest
from manifests import BUILDS, installation, named

GIB = 2**30
FASTEST = 31e6
"""Bytes a second of checkpoints that were deleted again, which filled a store of 20 GiB in four minutes."""
COLLECTIONS = ("", "wukong", "mlflow")
"""The buckets, and SeaweedFS's own files, which are in none."""
GROWN_BY_DEFAULT = 7


def store(name: str) -> tuple[dict[str, str], dict[str, str], int]:
    """Arguments and environment of SeaweedFS, and the bytes of its claim."""
    made = named(installation(name), "StatefulSet").get("object-store")
    if made is None:
        pytest.skip("another store")
    container: dict[str, Any] = made["spec"]["template"]["spec"]["containers"][0]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    arguments = {}
    for argument in container["args"]:
        name, _, value = argument.partition("=")
        for variable, given in environment.items():  # as Kubernetes does it
            value = value.replace(f"$({variable})", given)
        arguments[name] = value
    claim = made["spec"]["volumeClaimTemplates"][0]["spec"]["resources"]["requests"]["storage"]
    assert claim.endswith("Gi")
    return arguments, environment, int(claim.removesuffix("Gi")) * GIB


@pytest.mark.parametrize("name", ["plain", *BUILDS])
def test_volumes_leave_the_room_without_which_nothing_is_vacuumed(name: str) -> None:
    arguments, _, claim = store(name)
    volume = int(arguments["-master.volumeSizeLimitMB"]) * 2**20
    volumes = int(arguments["-volume.max"])
    at_once = int(arguments["-master.maxParallelVacuumPerServer"])
    assert volumes > 0, "0 fills the disk with volumes"
    assert volumes * volume >= 0.6 * claim, "most of the claim is of use"
    # Of the claim, ext4 takes a twentieth. A volume is copied where it is vacuumed, and may have outgrown its limit.
    left = 0.95 * claim - 1.01 * volumes * volume
    assert left >= (1 + at_once) * volume + GIB, "for what is vacuumed, and for the names of the objects"


@pytest.mark.parametrize("name", ["plain", *BUILDS])
def test_a_bucket_takes_few_volumes_at_once(name: str) -> None:
    arguments, environment, _ = store(name)
    grown = int(environment.get("WEED_MASTER_VOLUME_GROWTH_COPY_1", GROWN_BY_DEFAULT))
    assert len(COLLECTIONS) * grown <= int(arguments["-volume.max"]) / 4


@pytest.mark.parametrize("name", ["plain", *BUILDS])
def test_the_vacuum_is_faster_than_checkpoints_that_are_written_and_deleted(name: str) -> None:
    arguments, _, _ = store(name)
    volumes, at_once = int(arguments["-volume.max"]), int(arguments["-master.maxParallelVacuumPerServer"])
    # Seen with 4.48: up to 120 s are added by chance, and a sweep pauses for 10 s after each group of volumes.
    seconds = int(arguments["-master.vacuumIntervalSeconds"]) + 120 + 10 * math.ceil(volumes / at_once)
    room = volumes * int(arguments["-master.volumeSizeLimitMB"]) * 2**20
    kept = float(arguments["-master.garbageThreshold"]) * room
    assert FASTEST * seconds + kept <= 0.65 * room, "most of the store is left for what is not deleted"
