"""The Hub: a repository's folder that several projects open, with a model card and this project's own files."""

import re
from dataclasses import replace
from pathlib import Path

from wukong.export import card
from wukong.export.target import Check, Options, Target
from wukong.model import saved_model
from wukong.model.saved_model import SavedModel
from wukong.store import storage

PREFERRED = {
    "open_clip": """\
With open_clip:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("hf-hub:{name}")
tokenizer = open_clip.get_tokenizer("hf-hub:{name}")
tokenizer.clean_fn = str  # the model was trained on texts as they are
```""",
    "transformers": """\
With transformers:

```python
from huggingface_hub import snapshot_download
from transformers import AutoModel, AutoProcessor

folder = snapshot_download("{name}"){below}
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
```""",
}
"""Targets whose files the folder gets, and how they are opened. The first that can hold a model lies at the root, the
others in folders of their names: what is at the root must find its files by the repository's name alone."""
OWN = "wukong"
_OWN_USE = """\
With Wukong:

```python
import wukong
from huggingface_hub import snapshot_download

model = wukong.load(snapshot_download("{name}") + "/wukong")
```"""
_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def refuse(saved: SavedModel, options: Options) -> str | None:
    """Refuse a name that no repository can have; a model that no other target holds is there as Wukong's."""
    if not _REPOSITORY.fullmatch(options.name):
        return f"{options.name!r} is not the name of a repository: give --name OWNER/NAME"
    return None


def write(saved: SavedModel, folder: Path, options: Options) -> list[Check]:
    """Write the files of every preferred target that can hold the model, the saved model, and the card.

    Raises:
        ConfigError: a target's packages are not installed, or the results are of another model.
        DataError: an exported model is not equal to the model.
    """
    others = {name: options.targets[name] for name in PREFERRED if name in options.targets}
    held = {name: target for name, target in others.items() if target.refuse(saved, options) is None}
    checks, uses = [], []
    for number, (name, target) in enumerate(held.items()):
        target.refuse_missing()
        below = folder / name if number else folder
        below.mkdir(exist_ok=True)
        checks += target.write(saved, below, replace(options, hub=options.name))
        uses.append(PREFERRED[name].format(name=options.name, below=f' + "/{name}"' if number else ""))
    saved_model.save(storage.from_path(folder / OWN), saved.model, saved.tokenizer)
    uses.append(_OWN_USE.format(name=options.name))
    card.write(folder, saved, options.name, options.about, uses, next(iter(held), None))
    return checks


TARGET = Target(
    name="hub",
    about="a repository of the Hugging Face Hub, for several libraries, with a model card",
    needs=("huggingface_hub",),
    refuse=refuse,
    write=write,
)
