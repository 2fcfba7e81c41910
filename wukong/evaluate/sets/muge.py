"""MUGE: queries of a shop and pictures of its products; only images are searched by text."""

from pathlib import Path

from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import chinese_clip
from wukong.evaluate.formats.folders import find
from wukong.evaluate.published import Captioned

_NAMES = {"train": "train", "val": "valid", "test": "test"}


def _read(folder: Path, split: str) -> Captioned:
    name = f"MR_{_NAMES[split]}"
    source = find(folder, f"{name}_imgs.tsv", f"Multimodal_Retrieval/{name}_imgs.tsv")
    ids, images = chinese_clip.read_images(source)
    queries = source.parent / f"{name}_queries.jsonl"
    return Captioned(ids, chinese_clip.read_texts(queries, ids, text="query_text", images="item_ids"), images)


SET = Retrieval(
    name="muge",
    title="MUGE",
    splits={"train": Counts(129_380, 248_786), "val": Counts(29_806, 5_008), "test": Counts(30_399, 5_004)},
    split="val",
    apart=("val",),
    note=(
        "The validation part, as in the paper: the owner keeps the answers of the test part. A query has about six "
        "images."
    ),
    how_to_get=HowToGet(
        ("Multimodal_Retrieval.zip of https://tianchi.aliyun.com/muge (an account is needed)",),
        "MR_valid_imgs.tsv and MR_valid_queries.jsonl",
        "research only, see the address",
    ),
    read_published=_read,
    text_to_image_only=True,
)
