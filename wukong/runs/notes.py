"""What people write on a run: a note and tags. They lie in the run's folder, in ``note.json``."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from wukong.errors import ConfigError
from wukong.store import storage

FILE = "note.json"

_KEY = re.compile(r"[\w][\w. -]{0,62}")
_OTHERS = ("wukong.", "mlflow.")


class Note(BaseModel):
    """What is written on a run.

    Attributes:
        text: one text.
        tags: values by key; a value may be empty.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = ""
    tags: dict[str, str] = {}


def parse_tags(entries: Sequence[str]) -> dict[str, str]:
    """Return tags that are given as ``KEY=VALUE``, or as ``KEY`` with an empty value.

    Raises:
        ConfigError: a key cannot be one.
    """
    tags = {key.strip(): value.strip() for key, _, value in (entry.partition("=") for entry in entries)}
    for key in tags:
        if not _KEY.fullmatch(key) or key.startswith(_OTHERS):
            raise ConfigError(
                f"--tag {key!r}: a key has up to 63 letters, digits, '.', '_', '-' and spaces, begins with a letter or "
                f"digit, and not with {' or '.join(_OTHERS)}, for instance --tag purpose=baseline"
            )
    return tags


def in_words(tags: Mapping[str, str]) -> list[str]:
    """Return tags as ``parse_tags`` takes them."""
    return [f"{key}={value}" if value else key for key, value in tags.items()]


def read(run: str) -> Note:
    """Return what is written on a run.

    Args:
        run: URI of the run's folder.
    """
    uri = storage.join(run, FILE)
    return Note.model_validate(storage.read_json(uri)) if storage.exists(uri) else Note()


def write(run: str, text: str | None, tags: Mapping[str, str], removed: Collection[str]) -> Note:
    """Change what is written on a run, and return it.

    Args:
        run: URI of the run's folder.
        text: the note. None to leave it as it is, empty to take it away.
        tags: are added, or get another value.
        removed: keys of tags that are taken away.
    """

    def changed(known: Any) -> dict[str, Any]:
        before = Note.model_validate(known or {})
        kept = {key: value for key, value in sorted({**before.tags, **tags}.items()) if key not in removed}
        return Note(text=before.text if text is None else text, tags=kept).model_dump(mode="json")

    return Note.model_validate(storage.update(storage.join(run, FILE), changed))
