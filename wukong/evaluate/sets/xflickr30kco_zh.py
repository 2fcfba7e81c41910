"""XFlickr30kCo (xFlickr&CO of IGLUE), the Chinese captions: one for each of 1,000 Flickr30K and 1,000 COCO pictures."""

from pathlib import Path, PurePosixPath

from wukong.errors import DataError
from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats import json_lines
from wukong.evaluate.formats.folders import find, require
from wukong.evaluate.published import Caption, Captioned

_ANNOTATIONS = "annotations/zh/test.jsonl"


def _read(folder: Path, _split: str) -> Captioned:
    source = find(folder, _ANNOTATIONS, f"datasets/xFlickrCO/{_ANNOTATIONS}")
    paths: list[str] = []
    captions: list[Caption] = []
    for where, row in json_lines.rows(source):
        name, texts = row.get("img_path"), row.get("sentences")
        if not isinstance(name, str) or not json_lines.are_texts(texts):
            raise DataError(f"{where} has no 'img_path', or no list 'sentences' with captions: download the file again")
        captions += [Caption(text.strip(), (len(paths),)) for text in texts or ()]
        # The numbers in `id` are those of two sets of pictures; the names are of one kind each.
        paths.append(f"{'val2014' if name.startswith('COCO_val2014_') else 'flickr30k-images'}/{name}")
    return Captioned([PurePosixPath(path).stem for path in paths], captions, require(folder, paths, source))


SET = Retrieval(
    name="xflickr30kco-zh",
    title="XFlickr30kCo-zh",
    splits={"test": Counts(2_000, 2_000)},
    apart=("test",),
    note=(
        "Not in the paper. One caption an image: the 2,000 Chinese queries of MTEB's XFlickr30kCoT2IRetrieval, whose "
        "main number is nDCG@10, text to image; IGLUE has R@1 in both directions. The images are also in Flickr30K-CN "
        "and COCO-CN, partly in their training parts."
    ),
    how_to_get=HowToGet(
        (
            "datasets/xFlickrCO/annotations of https://github.com/e-bug/iglue",
            "flickr30k-images.tar.gz, asked for at https://forms.illinois.edu/sec/229675",
            "val2014.zip of https://cocodataset.org/#download",
        ),
        "annotations/zh/test.jsonl, flickr30k-images/ and val2014/ (a link to those of another set will do)",
        "MIT (IGLUE); CC BY-SA 4.0 by MTEB; the images are of their authors",
    ),
    read_published=_read,
)
