"""Validate RayJobs and RayClusters against KubeRay's own schemas, as strictly as `kubectl --validate=strict`."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

FOLDER = Path(__file__).parent / "schemas"


@cache
def _validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / f"{kind.lower()}.json").read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(_strict(schema))


def errors(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest or a status: one line an error, with its place."""
    found = _validator(manifest["kind"]).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in found]


def _strict(schema: Any) -> Any:
    """OpenAPI v3 as JSON schema in which unknown fields are errors, as they are for the API server."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        result["properties"] = {name: _strict(value) for name, value in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    return result
