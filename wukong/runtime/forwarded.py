"""Names of the environment variables that one process of a run forwards to another, by who gets them.

A component starts a job, which may run on another machine, and the job starts workers there. A job on the same machine
inherits all variables. What a machine of the cluster has in its own environment is not forwarded to it: addresses of
services to jobs, credentials to anybody but components, whose pods are of another namespace.
"""

_SERVICES = ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI")

BY_A_STACK = (
    "AWS_ENDPOINT_URL_S3",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_EC2_METADATA_DISABLED",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER",
    "RAY_USAGE_STATS_ENABLED",
    "WUKONG_CONNECT_TO",
    "NO_PROXY",
    "no_proxy",
    "DO_NOT_TRACK",
    "GX_ANALYTICS_ENABLED",
    "HF_HUB_DISABLE_TELEMETRY",
    "MLFLOW_DISABLE_TELEMETRY",
)
"""By the embedded stack's file to whoever uses the stack; no other variable is taken from it."""

TO_JOBS = ("MLFLOW_RUN_ID", "WUKONG_CONNECT_TO", "WUKONG_EVENTS")
"""To a job on another machine: which run it belongs to. Never credentials: Ray's dashboard and the RayJob show them."""

TO_WORKERS = (
    *TO_JOBS,
    "WUKONG_S3_ADDRESSING",
    "MLFLOW_WORKSPACE",
    *_SERVICES,  # a driver that the embedded stack's file has connected has them from nowhere else
    "WUKONG_STORE_PATIENCE",  # a driver's own, which a stage sets
    "WUKONG_ATTEMPT",  # made by the driver
)
"""To a job's workers. Never credentials: every Ray node has those, and Ray writes these variables into its logs."""

TO_COMPONENTS = (
    *_SERVICES,
    "WUKONG_S3_ADDRESSING",
    "MLFLOW_PUBLIC_URL",  # components alone show links to people
    "WUKONG_CLUSTER",  # and start RayJobs
    "WUKONG_STORE_CAPACITY",  # the first one refuses what does not fit
    "WUKONG_PRICES",  # they say what a run has cost
    "WUKONG_CURRENCY",
    "DO_NOT_TRACK",
    "NO_COLOR",
    "RAY_COLOR_PREFIX",
)
"""To components on a cluster, which have no run and no attempt yet: keys of the ConfigMap ``wukong-settings``."""

OPTIONAL_TO_COMPONENTS = ("AWS_CA_BUNDLE", "MLFLOW_WORKSPACE")
"""The same of keys that the ConfigMap may lack: of a store with a CA of its own, and of a team."""

STORE_CA = ("wukong-store-ca", "/etc/wukong/store-ca")
"""The ConfigMap, which need not exist, with the certificates that ``AWS_CA_BUNDLE`` names, and its folder in pods."""

S3_KEY = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
MLFLOW_USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
"""To components and Ray's pods on a cluster: the keys of a Secret with an S3 key, and of one with a user of MLflow.
Which Secrets a pod gets, ``wukong.stages.access`` says."""

OPTIONAL_SECRETS = {
    "register": {"wukong-signing": ("WUKONG_SIGNING_KEY_FILE", "WUKONG_SIGNING_PASSWORD")},
}
"""To single stages' components on a cluster: Secrets that need not exist, by the stage."""

SECRET_FILES = {"register": {"wukong-signing": "/etc/wukong/signing"}}
"""Secrets whose keys are also files in such a component's pod, by the stage: the folder of each."""
