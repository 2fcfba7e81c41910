"""The page of what is near a picture that somebody wants to be taken down: a contact sheet, blurred unless asked."""

import base64
import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageFilter

from wukong.publish.alike import Match
from wukong.report import template

_SIDE, _BLUR = 192, 14


def render(matches: Sequence[Match], pictures: Mapping[str, Image.Image], *, blurred: bool) -> str:
    """Return the page.

    Args:
        matches: what is near, the nearest first.
        pictures: their pictures by key; one that is missing cannot be read, or nobody may see it.
        blurred: whether the pictures are blurred, in the page's own bytes.
    """
    shown = [
        {
            "key": match.hit.key,
            "level": match.hit.level,
            "bits": int(match.hit.distance),
            "cosine": f"{1 - match.hit.distance:.3f}",
            "caption": match.caption,
            "url": match.url,
            "where": match.where,
            "src": _source(pictures[match.hit.key], blurred=blurred) if match.hit.key in pictures else "",
        }
        for match in matches
    ]
    return template.fill("near_pictures.html.j2", {"matches": shown, "blurred": blurred})


def _source(picture: Image.Image, *, blurred: bool) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE))
    target = io.BytesIO()
    (small.filter(ImageFilter.GaussianBlur(_BLUR)) if blurred else small).save(target, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
