import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest
import timm.data
import torchvision
from torchvision.models import ResNet50_Weights

from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.errors import DataError
from wukong.evaluate import class_names
from wukong.runtime.installed import installed_file

COUNTS = {
    "cifar10": 10,
    "cifar100": 100,
    "caltech101": 101,
    "caltech256": 257,
    "sports": 100,
    "flowers102": 102,
    "food101": 101,
    "pets": 37,
    "sun397": 397,
    "imagenet": 1000,
    "imagenet-r": 200,
    "imagenet-a": 200,
    "imagenet-sketch": 1000,
    "dtd": 47,
    "dogs": 120,
    "eurosat": 10,
    "aircraft": 100,
}
EVERY_LIST = [(name, names) for name in class_names.SETS for names in class_names.lists(name)]


def ids(set_name: str) -> list[str]:
    return [name.id for name in class_names.of(set_name)]


def official() -> list[str]:
    carried = installed_file("cn_clip", "cn_clip/eval/imagenet_zeroshot_templates.py", "pip install cn-clip==1.6.0")
    return list(runpy.run_path(str(carried))["imagenet_classnames"])


def empty(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_every_set_has_as_many_classes_as_its_owner_says() -> None:
    assert {name: len(class_names.of(name)) for name in class_names.SETS} == COUNTS


@pytest.mark.parametrize("set_name", class_names.SETS)
def test_labels_count_up_and_ids_are_distinct(set_name: str) -> None:
    names = class_names.of(set_name)
    assert [name.label for name in names] == list(range(len(names)))
    assert len({name.id for name in names}) == len(names)


@pytest.mark.parametrize(("set_name", "names"), EVERY_LIST)
def test_names_are_clean(set_name: str, names: str) -> None:
    for name in class_names.of(set_name, names):
        for text in (name.id, name.english, name.chinese):
            assert text and text == text.strip() and "_" not in name.english and "{" not in text, name
        has_chinese = re.search("[\u4e00-\u9fff\u4d00-\u4dbf]", name.chinese)
        assert has_chinese or name.note, f"{name.chinese} has no Chinese character and no note says why"
        assert not re.search(r"[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a\u3000\ufeff\u200b]", name.chinese), name


@pytest.mark.parametrize(("set_name", "names"), EVERY_LIST)
def test_a_name_that_stands_twice_is_explained(set_name: str, names: str) -> None:
    found = class_names.of(set_name, names)
    twice = {name for name, count in Counter(name.chinese for name in found).items() if count > 1}
    assert all(name.note for name in found if name.chinese in twice)
    official_twice = names == "authors" and set_name in {"imagenet", "imagenet-sketch"}
    assert twice == ({"太阳镜"} if official_twice else set())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(packaged_vocabulary())


@pytest.mark.parametrize(("set_name", "names"), EVERY_LIST)
def test_a_model_can_tell_the_names_apart(set_name: str, names: str, tokenizer: Tokenizer) -> None:
    """Of the names that this project chose, no two have the same tokens; characters outside the vocabulary are said."""
    found = class_names.of(set_name, names)
    encoded = [tuple(ids) for ids in tokenizer.encode([name.chinese for name in found])]
    alike = {name.chinese for name, ids in zip(found, encoded, strict=True) if encoded.count(ids) > 1}
    if names == "authors" and set_name.startswith("imagenet"):
        # Written with characters outside the vocabulary: each is two unknown tokens.
        unknown = {"蝾螈", "鹟䴕", "猞猁", "犰狳"}
        expected = {"imagenet-r": set(), "imagenet-a": {"猞猁", "犰狳"}}.get(set_name, unknown | {"太阳镜"})
        assert alike == expected
    else:
        assert not alike
    for name, ids in zip(found, encoded, strict=True):
        assert tokenizer.unknown not in ids or name.mark != "ours" or name.note, f"{name} and no note says why"
    assert max(map(len, encoded)) <= 16  # half the paper's 32 tokens: a prompt has room


def test_english_names_stand_once() -> None:
    for set_name in class_names.SETS:
        english = [name.english for name in class_names.of(set_name)]
        assert len(set(english)) == len(english), set_name


def test_imagenet_has_the_names_that_cn_clip_carries() -> None:
    assert [name.chinese for name in class_names.of("imagenet")] == official()
    assert {name.mark for name in class_names.of("imagenet")} == {"official"}


def test_imagenet_follows_the_wordnet_ids_of_timm_and_the_names_of_torchvision() -> None:
    assert ids("imagenet") == timm.data.ImageNetInfo("imagenet-1k").label_names()
    assert [name.english for name in class_names.of("imagenet")] == ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert ids("imagenet-sketch") == ids("imagenet")


@pytest.mark.parametrize("letter", ["r", "a"])
def test_the_200_classes_are_those_of_timm(letter: str) -> None:
    """timm.data names them by the index among the 1,000; ``wukong`` has the WordNet ids."""
    place = Path(timm.data.__file__).parent / "_info" / f"imagenet_{letter}_indices.txt"
    of_imagenet = class_names.of("imagenet")
    expected = sorted((of_imagenet[int(index)] for index in place.read_text().split()), key=lambda name: name.id)
    found = class_names.of(f"imagenet-{letter}")
    assert [(name.id, name.english, name.chinese) for name in found] == [
        (name.id, name.english, name.chinese) for name in expected
    ]


def test_dogs_are_the_dogs_of_imagenet() -> None:
    """The 120 classes of Stanford Dogs are the ImageNet classes from the Chihuahua to the African hunting dog but for
    the wolves, the coyote and those that are no breed."""
    by_wnid = {name.id: name for name in class_names.of("imagenet", "corrected")}
    dogs = class_names.of("dogs")
    assert [name.id[:9] for name in dogs] == sorted(name.id[:9] for name in dogs)
    wolves = {"timber wolf", "white wolf", "red wolf", "coyote", "dalmatian"}
    between = [name for name in by_wnid.values() if dogs[0].id[:9] <= name.id <= dogs[-1].id[:9]]
    assert [name.id[:9] for name in dogs] == [name.id for name in between if name.english not in wolves]
    for name in dogs:
        of_imagenet = by_wnid[name.id[:9]]
        assert name.chinese == of_imagenet.chinese
        assert re.sub("[-_]", " ", name.id[10:]).lower() == of_imagenet.english.replace("-", " ").lower()
        assert name.mark == ("derived" if of_imagenet.mark == "official" else "ours")


def test_corrected_names_say_why() -> None:
    authors = class_names.of("imagenet")
    corrected = class_names.of("imagenet", "corrected")
    changed = [(old, new) for old, new in zip(authors, corrected, strict=True) if old.chinese != new.chinese]
    assert len(changed) > 200
    assert all(new.mark == "ours" and new.note and old.mark == "official" for old, new in changed)
    assert not [name.chinese for name in corrected if re.search("[；（(]", name.chinese)]


def test_an_unknown_set_or_list_is_refused_with_what_there_is() -> None:
    with pytest.raises(DataError, match=r"no class names of 'mnist'; the sets are: cifar10, .*aircraft"):
        class_names.of("mnist")
    with pytest.raises(DataError, match=r"pets has no class names 'corrected'; there are: authors$"):
        class_names.of("pets", "corrected")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\tid\tenglish\n", r"damaged.tsv, line 1: the columns are \('label', 'id', 'english'\)"),
        ("{header}\n0\ta\ta\t甲\tours\t\n2\tb\tb\t乙\tours\t\n", "line 3: this is not class 1: '2"),
        ("{header}\n0\ta\ta\t甲\tours\n", "line 2: this is not class 0"),
        ("{header}\n0\ta\ta\t甲\tmine\t\n", "line 2: this is not class 0"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str) -> None:
    header = "label\tid\tenglish\tchinese\tmark\tnote"
    (tmp_path / "damaged.tsv").write_text(content.replace("{header}", header), encoding="utf-8")
    monkeypatch.setattr(class_names, "SETS", ("damaged",))
    monkeypatch.setattr(class_names, "_FOLDER", tmp_path)
    class_names._rows.cache_clear()
    with pytest.raises(DataError, match=message):
        class_names.of("damaged")


def test_the_page_lists_what_differs_and_every_note() -> None:
    page = (Path(__file__).parents[3] / "docs/class-names.md").read_text(encoding="utf-8")
    for old, new in zip(class_names.of("imagenet"), class_names.of("imagenet", "corrected"), strict=True):
        row = f"| {old.label} | {old.english} | {old.chinese} | {new.chinese} | {new.note} |"
        assert (row in page) == (old.chinese != new.chinese), row
    for set_name in class_names.SETS:
        for name in class_names.of(set_name):
            if name.mark == "ours" and name.note and set_name != "dogs":
                assert f"| {set_name} | {name.english} | {name.chinese} | {name.note} |" in page


def test_sets_of_folders_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    """torchvision numbers the classes by reading the owner's folders or lists; it is shown ours."""
    data = torchvision.datasets
    for name in [*reversed(ids("caltech101")), "BACKGROUND_Google"]:
        empty(tmp_path / "caltech101/101_ObjectCategories" / name / "image_0001.jpg")
    assert data.Caltech101(str(tmp_path)).categories == ids("caltech101")
    for name in reversed(ids("caltech256")):
        empty(tmp_path / "caltech256/256_ObjectCategories" / name / f"{name[:3]}_0001.jpg")
    assert data.Caltech256(str(tmp_path)).categories == ids("caltech256")
    for name in reversed(ids("eurosat")):
        empty(tmp_path / "eurosat/2750" / name / f"{name}_1.jpg")
    assert data.EuroSAT(str(tmp_path)).classes == ids("eurosat")


def test_sets_of_lists_are_in_the_order_of_torchvision(tmp_path: Path) -> None:
    data = torchvision.datasets
    aircraft = tmp_path / "fgvc-aircraft-2013b/data"
    empty(aircraft / "variants.txt", "".join(f"{name}\n" for name in ids("aircraft")))
    empty(aircraft / "images_variant_test.txt", "".join(f"{i:07d} {n}\n" for i, n in enumerate(ids("aircraft"))))
    assert data.FGVCAircraft(str(tmp_path), "test").classes == ids("aircraft") == sorted(ids("aircraft"))
    (tmp_path / "food-101/images").mkdir(parents=True)
    empty(tmp_path / "food-101/meta/test.json", json.dumps({name: [f"{name}/1"] for name in reversed(ids("food101"))}))
    assert data.Food101(str(tmp_path), "test").classes == ids("food101")
    empty(tmp_path / "dtd/dtd/labels/test1.txt", "".join(f"{name}/{name}_0001.jpg\n" for name in reversed(ids("dtd"))))
    (tmp_path / "dtd/dtd/images").mkdir()
    assert data.DTD(str(tmp_path), "test").classes == ids("dtd")
    pets = [name.replace(" ", "_") for name in ids("pets")]
    (tmp_path / "oxford-iiit-pet/images").mkdir(parents=True)
    empty(tmp_path / "oxford-iiit-pet/annotations/test.txt", "".join(f"{n}_1 {i} 1 1\n" for i, n in enumerate(pets, 1)))
    assert data.OxfordIIITPet(str(tmp_path), "test").classes == ids("pets")
    assert sorted(pets, key=str.lower) == pets  # the owner's numbers are alphabetical
    empty(tmp_path / "SUN397/ClassName.txt", "".join(f"{name}\n" for name in ids("sun397")))
    for name in ids("sun397"):
        empty(tmp_path / f"SUN397{name}" / "sun_aaa.jpg")
    sun = data.SUN397(str(tmp_path))
    assert sun.classes == [name.removeprefix(name[:3]) for name in ids("sun397")] and len(sun) == 397


def test_flowers_are_numbered_as_torchvision_does() -> None:
    assert ids("flowers102") == torchvision.datasets.Flowers102.classes


@pytest.mark.parametrize("set_name", ["cifar10", "cifar100", "caltech101", "dtd", "eurosat", "sports", "sun397"])
def test_owners_that_number_alphabetically(set_name: str) -> None:
    assert ids(set_name) == sorted(ids(set_name))
