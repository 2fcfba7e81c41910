"""sentence-transformers: texts and pictures to unit vectors, with what ``transformers`` opens inside."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wukong.export import parts
from wukong.export.target import Check, Options, Target
from wukong.export.targets import transformers
from wukong.model.saved_model import SavedModel

_PICTURES, _CAPTIONS = 4, 64


def refuse(saved: SavedModel, options: Options) -> str | None:
    """Refuse token-wise models: an encoder of sentences gives one vector."""
    if not saved.model.token_wise:
        return None
    return (
        "it compares all of a picture's patches with all of a text's tokens, and a SentenceTransformer gives one "
        "vector; export it with --to late-interaction, or --to transformers"
    )


def write(saved: SavedModel, folder: Path, options: Options | None = None) -> list[Check]:
    """Write a model for ``SentenceTransformer(FOLDER)``, open it, and compare.

    Args:
        saved: the model, on the CPU, with one vector for each picture and text.
        folder: an empty folder.
        options: unused.

    Raises:
        DataError: what sentence-transformers opens is not equal to the model.
    """
    import sentence_transformers
    from sentence_transformers import SentenceTransformer

    transformers.write_model(saved, folder)
    features = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
    }
    write_modules(folder, "sentence_embedding", features, ["sentence_transformers.models.Normalize"])
    about = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}}
    parts.write_json(folder / "config_sentence_transformers.json", about)
    checks = transformers.check_model(saved, folder)
    trusted = transformers.has_code(folder)
    model = SentenceTransformer(str(folder), device="cpu", trust_remote_code=trusted, local_files_only=True)
    captions, pictures = parts.sample_captions(_CAPTIONS), parts.sample_pictures(_PICTURES)
    text, image = (
        model.encode(given, convert_to_tensor=True, show_progress_bar=False) for given in (captions, pictures)
    )
    ours = saved.encode_text(captions, strict=False).vectors, saved.encode_image(pictures)
    by = f"sentence-transformers {sentence_transformers.__version__}"
    own = [
        Check(f"vectors of {_CAPTIONS} captions", "largest difference", _largest(text, ours[0]), by),
        Check(f"vectors of {_PICTURES} pictures", "lowest cosine", float((image * ours[1]).sum(1).min()), by),
        Check(
            f"similarities of {_PICTURES} pictures to {_CAPTIONS} captions, equal vectors",
            "largest difference",
            _largest(model.similarity(image, text), image @ text.T),
            by,
        ),
    ]
    transformers.refuse_unequal(own)
    return checks + own


def write_modules(folder: Path, output: str, features: dict[str, Any], others: list[str]) -> None:
    """Write the files that say which of a model's methods is called, and what follows it.

    Args:
        folder: where ``transformers.write_model`` wrote a model.
        output: what sentence-transformers calls the result: ``sentence_embedding`` or ``token_embeddings``.
        features: by kind of input the model's method, and the field of what it returns.
        others: the classes of the modules that follow, whose settings the caller writes.
    """
    module = {
        "transformer_task": "feature-extraction",
        "modality_config": features,
        "module_output_name": output,
    }
    parts.write_json(folder / "sentence_bert_config.json", module)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, kind in enumerate(others, 1):
        path = f"{number}_{kind.rsplit('.', 1)[-1]}"
        (folder / path).mkdir()
        modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
    parts.write_json(folder / "modules.json", modules)


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float(torch.max(torch.abs(ours - theirs)))


TARGET = Target(
    name="sentence-transformers",
    about="SentenceTransformer of sentence-transformers, for texts and pictures; mteb evaluates it",
    needs=("transformers", "sentence_transformers"),
    refuse=refuse,
    write=write,
)
