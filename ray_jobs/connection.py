"""The connection of a driver to its Ray cluster."""

import os

import ray

from wukong.runtime import forwarded


def connect() -> None:
    """Connect to the Ray cluster that ``RAY_ADDRESS`` names, or start Ray on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # The first error of a task ends a stage and is told. Others follow from it, such as files that are gone; Ray would
    # write them after it.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    variables = {name: os.environ[name] for name in forwarded.TO_WORKERS if name in os.environ}
    ray.init(
        address=os.environ.get("RAY_ADDRESS") or "local",
        runtime_env={"env_vars": variables},
        configure_logging=False,
        log_to_driver=True,
        include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None,
    )


def is_this_machine() -> bool:
    """Whether Ray has no other machine: ``connect`` started it, or it listens on 127.0.0.1, as a stack's does."""
    if not os.environ.get("RAY_ADDRESS"):
        return True
    return {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}
