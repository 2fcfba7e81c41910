"""The rule over pictures on lists; ``tests/ray_jobs/test_forbidden_pictures.py`` runs it in the filter."""

import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pdqhash
import polars as pl
import pydantic
import pytest
from PIL import Image, ImageFilter

from wukong.config.filter import Filter
from wukong.curate import rules
from wukong.curate.rule import PictureBatch
from wukong.curate.rules.forbidden import RULE
from wukong.errors import ConfigError
from wukong.store import storage


def picture(seed, quality=95, turn=None, size=(256, 256)):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((256, 256), Image.Resampling.BICUBIC).resize(size)
    image = image if turn is None else image.transpose(turn)
    target = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(1)).save(target, "JPEG", quality=quality)
    return target.getvalue()


def pdq_of(data):
    with Image.open(io.BytesIO(data)) as image:
        bits, _ = pdqhash.compute(np.asarray(image.convert("RGB")))
    return np.packbits(bits).tobytes().hex()


def md5_of(data):
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def settings_of(tmp_path, *texts):
    uris = []
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
        uris.append(storage.from_path(tmp_path / f"{number}.txt"))
    return Filter(forbidden={"lists": uris})


def judge(settings, pictures):
    batch = PictureBatch(pictures, [""] * len(pictures), [str(n) for n in range(len(pictures))])
    columns = {each.column: each.compute(batch, settings) for each in RULE.from_pictures(settings)}
    rows = pl.DataFrame({"key": [str(n) for n in range(len(pictures))], "dropped_by": None, **columns})
    rows = rules.look_up(rows.cast({"dropped_by": pl.String}), settings, rules.load(settings, late=True))
    decided = rows.with_columns(rules.decide(rows, settings, "pictures"))
    return decided["dropped_by"].to_list(), rules.counts(decided, settings)


def test_a_listed_picture_is_dropped_however_it_was_changed(tmp_path):
    settings = settings_of(tmp_path, f"{pdq_of(picture(1))}\n", f"{md5_of(picture(2))}\n")
    changed = [
        picture(1, quality=30),
        picture(1, size=(128, 100)),
        *(picture(1, turn=turn) for turn in Image.Transpose),
    ]
    found, counts = judge(settings, [picture(0), picture(1), picture(2), picture(2, quality=94), *changed])
    assert found == [None, "forbidden", "forbidden", None] + ["forbidden"] * len(changed)
    assert counts == {"unread/forbidden": 0}


def test_the_distance_decides(tmp_path):
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(pdq_of(picture(1))), np.uint8))
    found = []
    for cleared in (31, 1):
        bits[np.flatnonzero(bits)[:cleared]] = 0
        found += judge(settings_of(tmp_path, np.packbits(bits).tobytes().hex()), [picture(1)])[0]
    assert found == ["forbidden", None]


def test_a_picture_with_nothing_in_it_is_counted_and_compared_by_its_bytes_alone(tmp_path):
    target = io.BytesIO()
    Image.new("RGB", (256, 256), "white").save(target, "JPEG")
    white = target.getvalue()
    settings = settings_of(tmp_path, f"{pdq_of(white)}\n{pdq_of(picture(1))}\n")
    assert judge(settings, [white, picture(1)]) == ([None, "forbidden"], {"unread/forbidden": 1})
    settings = settings_of(tmp_path, f"{md5_of(white)}\n")
    assert judge(settings, [white, picture(1)])[0] == ["forbidden", None]


def test_pairs_that_another_rule_dropped_before_stay_as_they_are(tmp_path):
    settings = settings_of(tmp_path, f"{pdq_of(picture(1))}\n")
    rows = pl.DataFrame(
        {"key": ["0"], "dropped_by": ["size"], "pdq_forms": [None], "pdq_quality": [None], "md5": [None]},
        schema_overrides={"pdq_forms": pl.Binary, "pdq_quality": pl.UInt8, "md5": pl.Binary},
    )
    rows = rules.look_up(rows, settings, rules.load(settings, late=True))
    assert rules.decide(rows, settings, "pictures").to_list() == ["size"]


def test_it_decides_before_every_other_rule_over_pictures_and_is_never_shown():
    assert next(rule.name for rule in rules.REGISTRY if rule.decided == "pictures") == "forbidden"
    assert rules.never_shown() == ("forbidden",)


def test_whoever_reads_tables_of_dropped_pairs_leaves_out_what_nobody_may_see():
    """A new reader is found here: it shows nothing of the pairs, or asks which of them may be seen."""
    root = Path(rules.__file__).parents[3]
    shows_nothing = {
        "wukong/report/gallery.py",  # passes them over
        "wukong/serve/collection.py",  # passes them over
    }
    of_later_rules = {"ray_jobs/validate.py", "wukong/publish/release.py"}  # by wukong/report/removed.py
    readers = {
        path.relative_to(root).as_posix(): text
        for folder in ("wukong", "ray_jobs", "cli", "components", "notebooks")
        for suffix in ("py", "ipynb")
        for path in (root / folder).rglob(f"*.{suffix}")
        if re.search(r'\bdropped/\\?"', text := path.read_text(encoding="utf-8"))
    }
    asking = {name for name, text in readers.items() if "never_shown()" in text}
    assert {*readers} - asking == (shows_nothing | of_later_rules) - asking
    assert "rule.never_shown" in (root / "wukong/report/removed.py").read_text(encoding="utf-8")


def test_another_list_makes_another_filter_and_reads_no_picture_again(tmp_path):
    first = settings_of(tmp_path, f"{pdq_of(picture(1))}\n")
    digests = rules.digests(first)
    second = settings_of(tmp_path, f"{pdq_of(picture(2))}\n")
    assert digests != rules.digests(second) and first == second
    assert rules.digests(Filter()) == {}
    look = [
        rules.config_of(each, exclude=rules.picture_thresholds()) for each in (first, settings_of(tmp_path, "x", "y"))
    ]
    assert look[0] == look[1]


def test_a_list_that_is_not_there_or_is_none_is_refused(tmp_path):
    missing = Filter(forbidden={"lists": [storage.from_path(tmp_path / "none.txt")]})
    assert list(rules.uris(missing)) == ["forbidden.lists[0]"]
    with pytest.raises(ConfigError, match="is no hash that can be compared"):
        rules.load(settings_of(tmp_path, "no hash\n"), late=True)
    for wrong in ({"lists": 1}, {"list": "x"}):
        with pytest.raises(pydantic.ValidationError):
            Filter(forbidden=wrong)
