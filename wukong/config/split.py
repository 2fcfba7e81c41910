"""The section ``filter.split`` of an experiment."""

from typing import Literal

from pydantic import Field, model_validator

from wukong.config.section import Fraction, Strict


class Holdout(Strict):
    """A test set: pairs from some sources, whose captions training has seen or has not (see ``Split``)."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the test set; also its folder")
    title: str = Field("", description="how reports call it")
    source: str = Field(description="shell pattern on the image URL, for instance '*/fluent/*'")
    captions: Literal["seen", "unseen", "any"] = Field(
        "any", description="take pairs whose captions training has ('seen'), pairs whose captions are held out, or both"
    )


class Split(Strict):
    """Which pairs training must not see. The split is by caption and picture, never by file.

    A caption is held out when its salted hash is below the fraction; training sees no pair with that caption, whatever
    its source. Training also sees no pair whose URL matches the source of a hold-out without ``captions: unseen``, and
    no pair with the same picture (by SHA-256) as a pair that it must not see. Of all these pairs, a hold-out takes
    those of its source: with ``captions: unseen`` only those with held-out captions, with ``seen`` only those with
    captions that training sees. A pair that several hold-outs could take is in the first of them. The others are
    ``held_back``.
    """

    held_out_captions: Fraction = Field(0.0, description="share of the distinct captions that are held out")
    holdouts: tuple[Holdout, ...] = Field((), description="the test sets")

    @model_validator(mode="after")
    def _names_are_folders(self) -> "Split":
        names = [holdout.name for holdout in self.holdouts]
        for name in names:
            if name in ("train", "dropped", "pairs", "kept"):
                raise ValueError(f"a hold-out cannot be called {name!r}: that name has a meaning of its own")
            if names.count(name) > 1:
                raise ValueError(f"two hold-outs are called {name!r}; give each a name of its own")
        return self
