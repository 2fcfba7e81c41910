"""The description of a release in Croissant 1.0, a JSON-LD format that dataset search engines and loaders read.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html
"""

import json
from collections.abc import Sequence
from typing import Any

from wukong.config.experiment import Experiment
from wukong.store.manifest import Part

PATH = "croissant.json"
"""Where a release stores its description."""


def describe(experiment: Experiment, parts: Sequence[Part], *, several: bool = False) -> dict[str, Any]:
    """Describe a release: its name, version and licence, its files with their digests, its columns.

    Args:
        experiment: its name, ``about`` and ``release`` section are used.
        parts: files of the release; the description lists the CSV files among them.
        several: whether pairs have several captions.

    Returns:
        A JSON value.
    """
    value: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": experiment.name,
        "description": experiment.about or f"{experiment.name}: Chinese image-text pairs.",
        "inLanguage": "zh",
        "version": experiment.release.version,
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "pairs",
                "name": "pairs",
                "description": "One row a pair: the address of a picture and its caption, person names masked.",
                "field": [_field("url", "sc:URL"), _field("caption", "sc:Text")],
            }
        ],
    }
    if several:
        pairs = value["recordSet"][0]
        pairs["description"] += " ``captions`` has all captions of a picture that was found with several."
        all_captions = "All captions with their counts, a JSON list of {caption, count}; empty where there is one."
        pairs["field"].append(_field("captions", "sc:Text") | {"description": all_captions})
    if experiment.release.licence:
        value["license"] = experiment.release.licence
    return with_files(value, parts)


def with_files(description: dict[str, Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Returns a copy of a description that lists these CSV files, with their sizes and digests."""
    files = [
        {
            "@type": "cr:FileObject",
            "@id": part.path,
            "name": part.path,
            "contentUrl": part.path,
            "contentSize": f"{part.bytes} B",
            "encodingFormat": "text/csv",
            "sha256": part.sha256,
        }
        for part in sorted(parts, key=lambda part: part.path)
        if part.path.endswith(".csv")
    ]
    members = {
        "@type": "cr:FileSet",
        "@id": "files",
        "name": "files",
        "encodingFormat": "text/csv",
        "includes": "*.csv",
    }
    return {**description, "distribution": [*files, members]}


def _field(name: str, kind: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"pairs/{name}",
        "name": f"pairs/{name}",
        "dataType": kind,
        "source": {"fileSet": {"@id": "files"}, "extract": {"column": name}},
    }


_CONTEXT = json.loads("""{
  "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
  "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
  "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
  "dct": "http://purl.org/dc/terms/", "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
  "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
  "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
  "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
  "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
  "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
  "transform": "cr:transform"
}""")
"""The JSON-LD context that the Croissant specification prescribes."""
