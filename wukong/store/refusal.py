"""What a person does about an error of the object store, by what its two clients say."""

import re

from wukong.store import address

_CERTIFICATE = re.compile(r"curlCode: (51|53|54|58|59|60|66|77|80|82|83|90|91),|SSL validation failed|CERTIFICATE_")
_CLOCK = re.compile(r"TIME_?TOO_?SKEWED", re.I)
_NOBODY = re.compile(r"INVALID_?ACCESS_?KEY_?ID|SIGNATURE_?DOES_?NOT_?MATCH|INVALID_?SIGNATURE", re.I)
_DENIED = re.compile(r"AWS Error ACCESS_DENIED\b|\(HTTP status 403\)|\((AccessDenied|403)\)")
_REGION = re.compile(r"AuthorizationHeaderMalformed|PermanentRedirect|\(HTTP status 301\)|\(301\)")
_NO_BUCKET = re.compile(r"NO_?SUCH_?BUCKET", re.I)


def is_denial(error: BaseException) -> bool:
    """Return whether the store refuses something to this key, or does not know it."""
    return bool(_DENIED.search(str(error)))


def lacks_bucket(error: BaseException) -> bool:
    """Return whether there is no bucket of the name that an address has."""
    return bool(_NO_BUCKET.search(str(error)))


def remedy(uri: str, error: BaseException) -> str:
    """Return what to do about an error at an ``s3://`` address."""
    text, store = str(error), address.of_environment()
    where, key = store.endpoint or "AWS", store.access_key or "that the environment names"
    bucket = uri.removeprefix("s3://").partition("/")[0]
    if _CERTIFICATE.search(text):
        return (
            f"The certificate of {where} is not trusted, or is for another name: let AWS_CA_BUNDLE name a file with "
            "the certificate of the authority that has signed it. On a cluster that is the ConfigMap wukong-store-ca "
            "(docs/cluster.md, Bring your own S3)"
        )
    if _CLOCK.search(text):
        return f"The clocks of this machine and of {where} differ by more than it allows: set this one right"
    if _NOBODY.search(text):
        return (
            f"{where} does not know the key {key}, or its secret is another one: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    if _REGION.search(text):
        return f"{where} has {bucket} in another region than {store.region}: set AWS_REGION"
    if _DENIED.search(text):
        return (
            f"{where} answers, and refuses that to the key {key}. It needs s3:ListBucket on {bucket}, and "
            "s3:GetObject, s3:PutObject and s3:DeleteObject on what is below the experiments' storage. On a cluster "
            "each stage has a key of its own, which opens the outputs before its own, and of people's files those "
            "below s3://wukong/inputs (docs/security.md). A team's keys open what is below its own storage, "
            "s3://wukong/teams/NAME, and nothing else (docs/teams.md)"
        )
    if _NO_BUCKET.search(text):
        return f"There is no bucket {bucket} at {where}, and this key may make none: make it there"
    return (
        f"Is the object store at {where} running and are its credentials in the environment? "
        "On one machine, `wukong status` shows the embedded one and `wukong up` starts it."
    )
