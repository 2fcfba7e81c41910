"""DCI-CN (FG-CLIP 2): the long captions of Densely Captioned Images, translated into Chinese, one an image."""

from pathlib import Path, PurePosixPath

from wukong.errors import DataError
from wukong.evaluate.data_set import Counts, HowToGet, Retrieval
from wukong.evaluate.formats.folders import find, lines, names_in, require
from wukong.evaluate.published import Caption, Captioned

_CAPTIONS = "image_caption_trans.txt"


def _read(folder: Path, _split: str) -> Captioned:
    source = find(folder, _CAPTIONS, f"txtfile/{_CAPTIONS}")
    places = _places(find(folder, "images"))
    paths: list[str] = []
    captions: list[Caption] = []
    for number, line in enumerate(lines(source), 1):
        if not line.strip():
            continue
        path, tab, text = line.partition("\t")
        if not tab or not path.strip() or not text.strip() or "\t" in text:
            raise DataError(f"line {number} of {source} is not PATH<TAB>CAPTION but {line[:60]!r}: download it again")
        name = PurePosixPath(path.strip()).name  # the owner's folders are others
        captions.append(Caption(text.strip(), (len(paths),)))
        paths.append(places.get(name, name))
    return Captioned([PurePosixPath(path).stem for path in paths], captions, require(folder / "images", paths, source))


def _places(root: Path) -> dict[str, str]:
    """The path of each image below a folder, by its name: both archives may have a folder of their own."""
    inner = sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith("."))
    below = {name: f"{part}/{name}" for part in inner for name in names_in(root / part)}
    return below | {name: name for name in names_in(root)}


SET = Retrieval(
    name="dci-cn",
    title="DCI-CN",
    splits={"test": Counts(7_805, 7_805)},
    apart=("test",),
    note=(
        "Not in the paper. Captions are long: FG-CLIP 2 reads 196 tokens of them, and reports R@1 in both directions. "
        "A protocol's context, or the model's, may be shorter; the sizes of the result then say how many captions were "
        "cut. The numbers of images and captions are those of DCI, as FG-CLIP 2 states none for DCI-CN: a model "
        "translated the captions and people checked them."
    ),
    how_to_get=HowToGet(
        (
            "image_caption_trans.txt, images/images_1.zip and images/images_2.zip of "
            "https://huggingface.co/datasets/qihoo360/DCI-CN",
        ),
        "image_caption_trans.txt, and images/ with what both archives have",
        "Apache 2.0 (FG-CLIP 2); DCI is CC BY-NC 4.0, its images have the licence of SA-1B",
    ),
    read_published=_read,
)
