"""Write ``docs/configuration.md`` from the types in ``wukong.config``: ``python -m tools.config_reference``.

The page has every key of an experiment.
"""

import html
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wukong.config.experiment import Experiment

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
_HEAD = """# Configuration

Every key of an experiment, with its type, its default value, what is allowed and what it does. An experiment is one
YAML file; `configs/` has examples. `--set pretrain.epochs=3` sets one key on the command line. An unknown key or a
value that is not allowed is an error that names the key, the value and what is allowed. `wukong config --config FILE`
checks a file and prints it with all defaults.

A file may name another one as its base, `base: FILE`, a path relative to its own folder, and then holds only what
differs: mappings are merged key by key, lists and values are replaced. A base may have a base; of several bases,
`base: [FILE, FILE]`, the later one counts more. What is printed,
submitted and stored is the merged experiment, so a stage's key depends on the values and not on the files.
`configs/paper/` is made so.

The two objectives want other settings. A file may have `by_similarity`, with values for the experiments of one
objective below `global` and `token`. Those of the experiment's `model.similarity` count more than the file's other
values, and less than `--set` and than a file that has it as its base:

```yaml
model: {similarity: token}
by_similarity:
  global: {model: {temperature: 0.125}}
  token: {model: {temperature: 0.08, image: {tokens: 4}}, pretrain: {learning_rate: 0.02}}
```

This page is written from `wukong/config/experiment.py` by `make generate`; change the descriptions there.
"""


def reference() -> str:
    """Return the page: a table for each section of an experiment, in Markdown."""
    schema = Experiment.model_json_schema()
    models = schema["$defs"]
    parts = [_HEAD, *_section([""], "The top level", schema, models)]
    for name, places in _places([""], schema, models, {}).items():
        title = ", ".join(f"`{place}`" for place in places)
        parts += _section([f"{place}." for place in places], title, models[name], models)
    return "\n".join(parts).rstrip() + "\n"


def _places(
    paths: list[str], model: dict[str, Any], models: dict[str, Any], found: dict[str, list[str]]
) -> dict[str, list[str]]:
    """The dotted names of each section below a section, by the name of its JSON schema."""
    inner: dict[str, list[str]] = {}
    for key, value in model["properties"].items():
        if name := _section_name(value):
            inner.setdefault(name, []).extend(f"{path}{key}{'[]' if 'items' in value else ''}" for path in paths)
    for name, places in inner.items():
        found.setdefault(name, []).extend(places)
        _places([f"{place}." for place in places], models[name], models, found)
    return found


def _section(paths: list[str], title: str, model: dict[str, Any], models: dict[str, Any]) -> Iterator[str]:
    """A section's heading, text and table.

    Args:
        paths: dotted names of the section, each with a dot at its end; one that is empty for the top level.
        title: the title of the heading.
        model: JSON schema of the section.
        models: JSON schemas of all sections by name.
    """
    yield f"## {title}\n\n{_text(model.get('description', ''))}\n"
    yield "| key | type | default | allowed | meaning |\n|---|---|---|---|---|"
    required = model.get("required", [])
    for key, value in model["properties"].items():
        if "$ref" in value:
            continue
        name = _section_name(value)
        names = ", ".join(f"`{path}{key}`" for path in paths)
        cells = (names, _type(value), _default(key, value, required), _allowed(value))
        meaning = _text(value.get("description", ""))
        if name:
            kind = "a list" if "items" in value else "null, or a section"
            meaning = f"{meaning or _first_sentence(models[name])}: {kind} with the keys below"
        yield "| " + " | ".join(map(_cell, (*cells, meaning))) + " |"
    yield ""


def _section_name(value: dict[str, Any]) -> str:
    """The name of the section that a key holds, one, one or null, or a list of them; empty if it holds values."""
    references = (entry.get("$ref") or entry.get("items", {}).get("$ref", "") for entry in _variants(value))
    return str(next(references)).rpartition("/")[2]


def _variants(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The types that a key's value may have, null last."""
    return sorted(value.get("anyOf", [value]), key=lambda variant: variant.get("type") == "null")


def _type(value: dict[str, Any]) -> str:
    names = []
    for variant in _variants(value):
        match variant.get("type"):
            case "array" if "prefixItems" in variant:
                names.append(f"list of {len(variant['prefixItems'])} {_type(variant['prefixItems'][0])}s")
            case "array":
                names.append(f"list of {_type(variant['items'])}s" if "$ref" not in variant["items"] else "list")
            case "object":
                names.append("mapping")
            case "null":
                names.append("null")
            case None:
                names.append("section")
            case kind:
                names.append({"string": "text", "boolean": "true or false"}.get(str(kind), str(kind)))
    return " or ".join(dict.fromkeys(names))


def _default(key: str, value: dict[str, Any], required: list[str]) -> str:
    if key in required:
        return "none, must be set"
    default = value.get("default")
    return "empty" if default in ("", [], {}) else f"`{json.dumps(default, ensure_ascii=False)}`"


def _allowed(value: dict[str, Any]) -> str:
    limits = []
    for variant in _variants(value):
        entry = variant.get("items", variant.get("additionalProperties", variant))
        entry = entry if isinstance(entry, dict) else variant
        limits += [f"`{choice}`" for choice in entry.get("enum", [entry["const"]] if "const" in entry else [])]
        bounds = [
            f"{sign} {_number(entry[name])}"
            for name, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
            if name in entry
        ]
        limits += [" and ".join(bounds)] if bounds else []
        limits += [f"`{entry['pattern']}`"] if "pattern" in entry else []
    return ", ".join(limits)


def _number(value: float) -> str:
    return f"{value:g}"


def _first_sentence(model: dict[str, Any]) -> str:
    return _text(model.get("description", "")).partition(".")[0].partition(":")[0]


def _text(description: str) -> str:
    """A docstring or description as one paragraph of Markdown, values as code."""
    text = re.sub(r"\s+", " ", description).replace("``", "`").strip()
    return re.sub(r"(?<!\w)'([^'\s]+)'(?!\w)", r"`\1`", text)


def _cell(text: str) -> str:
    """Write a bar so that it ends no cell, neither in the repository's page nor on the site, also inside code."""
    text = re.sub(r"`([^`]*\|[^`]*)`", lambda code: f"<code>{html.escape(code[1])}</code>", text)
    return text.replace("|", "&#124;")


def main() -> int:
    """Write the page."""
    PAGE.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
