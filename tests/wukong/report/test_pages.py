from wukong.report import pages
from wukong.store.manifest import Manifest


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
    ways = ("text_to_image", "image_to_text")
    entry = {
        **{"model": "finetuned", "kind": "retrieval", "title": "Unseen", "protocol": "own"},
        "results": {f"{way}_r{k}": {"value": v} for way in ways for k, v in ((1, 0.5), (5, 0.75), (10, 1.0))},
        "chance": {f"{way}_r{k}": k / 100 for way in ways for k in (1, 5, 10)},
    }
    text_only = {**entry, "title": "MUGE", "results": {k: v for k, v in entry["results"].items() if k.startswith("t")}}
    task = {
        **{"model": "finetuned", "kind": "classification", "title": "衣服", "protocol": "paper"},
        "sizes": {"images": 2000},
        "results": {"top1": {"value": 0.3}, "top5": {"value": 0.8}},
        "chance": {"top1": 0.1},
    }
    page = pages.scores({"tasks": [entry, text_only, task, {**task, "model": "pretrained", "title": "before"}]})
    assert "| Unseen | text to image | 0.500 | 0.750 | 1.000 | 0.0100 | own |" in page
    assert "| 衣服 | 2,000 | 0.300 | 0.800 | 0.100 | paper |" in page
    assert page.count("| MUGE |") == 1 and "before" not in page
    for table in page.split("\n\n"):
        widths = {line.count("|") for line in table.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, "every row has its table's columns"


def test_what_was_not_measured_has_no_table() -> None:
    assert "|" not in pages.scores({"tasks": []})


def test_a_list_of_urls_is_no_query() -> None:
    crawl = manifest("crawl", {"urls": 3}, {})
    assert pages.funnel([crawl]).startswith("# From query to pair")
    listed = crawl.model_copy(update={"config": {"engine": "urls"}})
    assert pages.funnel([listed]).startswith("# From list to pair")


def test_what_heads_a_page_is_bilingual() -> None:
    page = pages.funnel([manifest("filter", {"train": 900}, {"size": 100})])
    assert page.startswith("# From query to pair 从查询词到图文对\n")
    assert "| stage 阶段 |  | rows 行数 |" in page and "| filter | *left out 剔除: size* | 100 |" in page
    assert pages.scores({"tasks": []}) == "# What was measured 评测结果\n"


def test_a_confusion_matrix_is_drawn_where_there_is_one() -> None:
    one = {"model": "finetuned", "kind": "classification", "candidates": [], "confusion": []}
    drawn = {**one, "candidates": ["猫", "狗"], "confusion": [[3, 1], [0, 4]]}
    assert pages.confusions({"tasks": [one, drawn]}) == (["猫", "狗"], [[3, 1], [0, 4]])
    large = {**one, "candidates": ["x"] * 1000, "confusion": [[0]] * 1000}
    assert pages.confusions({"tasks": [large]}) is None
