"""The description of a release in Croissant 1.1, a JSON-LD format that dataset search engines and loaders read.

https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html, and its vocabulary for responsible AI,
https://docs.mlcommons.org/croissant/docs/croissant-rai-spec.html.
"""

import json
from collections.abc import Sequence
from typing import Any

from wukong.config.experiment import Experiment
from wukong.publish import collection
from wukong.report import checks
from wukong.store.manifest import Manifest, Part

PATH = "croissant.json"
"""Where a release stores its description."""

_VERSIONS = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]


def describe(
    experiment: Experiment, crawl: Manifest, filtered: Manifest, parts: Sequence[Part], *, several: bool = False
) -> dict[str, Any]:
    """Describe a release: its name, version and licence, its files with their digests, its columns, how it came about.

    Args:
        experiment: its name, ``about`` and ``release`` section are used.
        crawl: the crawl stage's manifest.
        filtered: the filter stage's manifest.
        parts: files of the release; the description lists the CSV files among them.
        several: whether pairs have several captions.

    Returns:
        A JSON value.
    """
    settings = experiment.release
    value: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _VERSIONS,
        "name": experiment.name,
        "description": experiment.about or f"{experiment.name}: Chinese image-text pairs.",
        "inLanguage": "zh",
        "version": settings.version,
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "pairs",
                "name": "pairs",
                "description": "One row a pair: the address of a picture and its caption, person names masked.",
                "field": [_field("url", "sc:URL"), _field("caption", "sc:Text")],
            }
        ],
        "prov:wasDerivedFrom": [{"@id": f"urn:sha256:{each.digest}"} for each in (crawl, filtered)],
        **_responsible(experiment, crawl, filtered),
    }
    if several:
        pairs = value["recordSet"][0]
        pairs["description"] += " ``captions`` has all captions of a picture that was found with several."
        all_captions = "All captions with their counts, a JSON list of {caption, count}; empty where there is one."
        pairs["field"].append(_field("captions", "sc:Text") | {"description": all_captions})
    if settings.licence:
        value["license"] = settings.licence
    if settings.address:
        value["url"] = settings.address
    if settings.published:
        value["datePublished"] = settings.published.isoformat()
    if settings.publisher:
        value["creator"] = {"@type": "sc:Organization", "name": settings.publisher}
        value["citeAs"] = _citation(experiment)
    return with_files(value, parts)


def _citation(experiment: Experiment) -> str:
    """Return how to cite the set, in BibTeX."""
    settings = experiment.release
    facts = {
        "author": f"{{{settings.publisher}}}",  # the name of an organisation is not taken apart
        "title": f"{experiment.name}, version {settings.version}",
        "year": str(settings.published.year) if settings.published else "",
        "url": settings.address,
    }
    told = ", ".join(f"{name} = {{{value}}}" for name, value in facts.items() if value)
    return f"@misc{{{experiment.name}, {told}}}"


def _responsible(experiment: Experiment, crawl: Manifest, filtered: Manifest) -> dict[str, Any]:
    """Return the properties for responsible AI. What manifests do not know is not there."""
    contact = experiment.release.contact
    failed = sum(crawl.dropped.values())
    value = {
        "dataCollection": " ".join([collection.origin(crawl), *collection.manners(crawl)]),
        "dataCollectionType": ["Web Scraping"],
        "dataCollectionRawData": "Addresses of pictures on the web and the texts beside them; no picture is released.",
        "dataCollectionMissingData": f"{failed:,} of {crawl.counts.get('urls', 0):,} addresses gave no picture.",
        "dataPreprocessingProtocol": [*collection.rules(filtered), *collection.edits(filtered)],
        "dataAnnotationProtocol": ["Nobody annotated the pairs. Captions are texts that stood beside the pictures."],
        "dataUseCases": ["Training of models that relate pictures to Chinese text, and their evaluation."],
        "dataLimitations": [
            *checks.unchecked(filtered),
            *checks.found(filtered),
            "Pictures change and vanish: an address need not show any longer what its caption says.",
        ],
        "dataBiases": [
            "What is in the set follows from the words or lists that pictures were found by, from the order of a "
            "search engine's results, and from who publishes pictures with Chinese text.",
            *([experiment.about] if experiment.about else []),
        ],
        "personalSensitiveInformation": [*collection.personal(filtered)],
        "dataSocialImpact": "Persons on pictures and owners of pictures were not asked. They may have theirs left out; "
        "the maintenance plan says how.",
        "dataReleaseMaintenancePlan": f"Write to {contact or 'the publisher of the set'} to have a pair removed. It is "
        "taken out of every copy that the publisher holds, and a record under takedowns/ names it by a hash, so that "
        "holders of other copies can remove it too.",
    }
    if (during := collection.period(crawl)) is not None:
        value["dataCollectionTimeFrame"] = [each.date().isoformat() for each in during]
    return {f"rai:{name}": each for name, each in value.items()}


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
  "@language": "en", "@vocab": "https://schema.org/", "annotation": "cr:annotation", "arrayShape": "cr:arrayShape",
  "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
  "cr": "http://mlcommons.org/croissant/", "data": {"@id": "cr:data", "@type": "@json"},
  "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
  "description": {"@container": "@language"}, "equivalentProperty": "cr:equivalentProperty",
  "examples": {"@id": "cr:examples", "@type": "@json"}, "excludes": "cr:excludes", "extract": "cr:extract",
  "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
  "format": "cr:format", "includes": "cr:includes", "isArray": "cr:isArray", "isLiveDataset": "cr:isLiveDataset",
  "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "name": {"@container": "@language"},
  "parentField": "cr:parentField", "path": "cr:path", "prov": "http://www.w3.org/ns/prov#",
  "rai": "http://mlcommons.org/croissant/RAI/", "readLines": "cr:readLines", "recordSet": "cr:recordSet",
  "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
  "samplingRate": "cr:samplingRate", "sc": "https://schema.org/", "sdVersion": "cr:sdVersion",
  "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
  "unArchive": "cr:unArchive", "value": "cr:value"
}""")
"""The JSON-LD context of the specification's appendix, with what MLCommons' reader expects besides."""
