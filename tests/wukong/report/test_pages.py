from wukong.manifest import Manifest
from wukong.report import pages


def manifest(stage: str, counts: dict[str, int], dropped: dict[str, int]) -> Manifest:
    return Manifest(stage=stage, uri=f"s3://b/demo/{stage}/1", config={}, counts=counts, dropped=dropped)


def test_the_funnel_reads_from_top_to_bottom() -> None:
    manifests = [
        manifest("crawl", {"urls": 1234, "success": 1000}, {"http_404": 234}),
        manifest("filter", {"train": 900}, {"max_aspect_ratio": 100}),
    ]
    page = pages.funnel(manifests)
    order = ["1,234", "1,000", "http 404", "900", "max aspect ratio", manifests[0].digest[:16]]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert pages.numbers(manifests)["filter.dropped.max_aspect_ratio"] == 100.0


def test_scores_stand_beside_chance() -> None:
    recall = {"r1": 0.5, "r5": 0.75, "r10": 1.0}
    chance = {"r1": 0.01, "r5": 0.05, "r10": 0.1}
    both = ("text_to_image", "image_to_text")
    entry = {"title": "Unseen", "chance": dict.fromkeys(both, chance)} | dict.fromkeys(both, recall)
    task = {"title": "衣服", "images": 2000, "top1": 0.3, "top5": 0.8, "chance": 0.1}
    page = pages.scores({"retrieval": [entry], "classification": [task]})
    assert "| Unseen | text to image | 0.500 | 0.750 | 1.000 | 0.0100 |" in page
    assert "| 衣服 | 2,000 | 0.300 | 0.800 | 0.100 |" in page
    for table in page.split("\n\n"):
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, "every row has its table's columns"


def test_what_was_not_measured_has_no_table() -> None:
    assert "|" not in pages.scores({"retrieval": [], "classification": []})


def test_a_list_of_urls_is_no_query() -> None:
    crawl = manifest("crawl", {"urls": 3}, {})
    assert pages.funnel([crawl]).startswith("# From query to pair")
    listed = crawl.model_copy(update={"config": {"engine": "urls"}})
    assert pages.funnel([listed]).startswith("# From list to pair")


def test_a_confusion_matrix_is_drawn_where_there_is_one() -> None:
    drawn = {"candidates": ["猫", "狗"], "confusion": [[3, 1], [0, 4]]}
    assert pages.confusions({"classification": [{}, drawn]}) == (["猫", "狗"], [[3, 1], [0, 4]])
    large = {"candidates": ["x"] * 1000, "confusion": [[0]] * 1000}
    assert pages.confusions({"classification": [large]}) is None
