"""Late interaction (ColBERT): the vectors of a text's tokens and of a picture's patches, for token-wise models.

The folder itself is PyLate's layout and holds the text tower, which PyLate and sentence-transformers open. PyLate reads
texts only, so the folder ``multi_vector`` inside holds both towers for sentence-transformers' MultiVectorEncoder.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wukong.export import parts
from wukong.export.target import Check, Options, Target
from wukong.export.targets import transformers
from wukong.export.targets.sentence_transformers import write_modules
from wukong.model.saved_model import SavedModel

BOTH = "multi_vector"
"""The folder inside with both towers."""
_PICTURES, _CAPTIONS = 4, 32


def refuse(saved: SavedModel, options: Options) -> str | None:
    """Refuse models with one vector for each picture and text."""
    if saved.model.token_wise:
        return None
    return (
        "it gives one vector for each picture and text, and late interaction compares several; export it with --to "
        "sentence-transformers"
    )


def write(saved: SavedModel, folder: Path, options: Options | None = None) -> list[Check]:
    """Write the text tower for PyLate, and both towers for sentence-transformers; open both with the latter; compare.

    Args:
        saved: the token-wise model, on the CPU.
        folder: an empty folder.
        options: unused.

    Raises:
        DataError: what transformers or sentence-transformers opens is not equal to the model.
    """
    import sentence_transformers
    from sentence_transformers import MultiVectorEncoder

    _write_texts(saved, folder)
    _write_both(saved, folder / BOTH)
    captions, pictures = parts.sample_captions(_CAPTIONS), parts.sample_pictures(_PICTURES)
    ours, image = saved.encode_text(captions, strict=False), saved.encode_image(pictures)
    matched = _matched(saved, ours.counted)
    checks = transformers.check_model(saved, folder / BOTH)
    by = f"sentence-transformers {sentence_transformers.__version__}"
    texts: Any = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True)
    both: Any = MultiVectorEncoder(str(folder / BOTH), device="cpu", trust_remote_code=True, local_files_only=True)
    queries, documents, seen = both.encode_query(captions), both.encode_document(captions), both.encode(pictures)
    # Without a mask of its own, PyLate's layout keeps [CLS], the first token, in a query.
    plain = [vectors[1:] for vectors in texts.encode_query(captions)]
    difference = "largest difference"
    own = [
        Check(f"tokens of {_CAPTIONS} captions as queries", difference, _rows(ours.vectors, ours.counted, queries), by),
        Check(f"tokens of {_CAPTIONS} captions as documents", difference, _rows(ours.vectors, matched, documents), by),
        Check(f"{_PICTURES} pictures", "lowest cosine", float((image * torch.stack(seen)).sum(2).min()), by),
        Check(
            f"similarities of {_CAPTIONS} captions to {_PICTURES} pictures, equal vectors",
            difference,
            _largest(both.similarity(queries, list(image)).T, saved.similarity(image, ours, "text")),
            by,
        ),
        Check(
            f"similarities of {_PICTURES} pictures to {_CAPTIONS} captions, equal vectors",
            difference,
            _largest(both.similarity(list(image), documents), saved.similarity(image, ours)),
            by,
        ),
        Check("tokens as queries, PyLate's layout", difference, _rows(ours.vectors, ours.counted, plain), by),
        Check(
            "tokens as documents, PyLate's layout",
            difference,
            _rows(ours.vectors, matched, texts.encode_document(captions)),
            by,
        ),
    ]
    transformers.refuse_unequal(own)
    return checks + own


def _write_texts(saved: SavedModel, folder: Path) -> None:
    """Write the text tower as PyLate saves a ColBERT: BERT, and a projection of each token."""
    model, longest = saved.model, saved.tokenizer.max_tokens
    parts.write_tokenizer(saved.tokenizer, folder)
    parts.write_json(folder / "config.json", parts.bert_config(model, saved.tokenizer))
    save_file(parts.bert_state(model.text), folder / "model.safetensors", {"format": "pt"})
    # BERT's pooling layer, which transformers would add, is not used.
    module = {"max_seq_length": longest, "do_lower_case": False, "model_args": {"add_pooling_layer": False}}
    parts.write_json(folder / "sentence_bert_config.json", module)
    about: dict[str, Any] = {
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        "prompts": {},
        "default_prompt_name": None,
        "query_prefix": "",
        "document_prefix": "",
        "query_length": longest,
        "document_length": longest,
        "do_query_expansion": False,
        "attend_to_expansion_tokens": False,
        # Only tokens of documents are left out by it: of captions that patches look for a match in.
        "skiplist_words": [] if model.settings.match_text_cls else ["[CLS]"],
    }
    parts.write_json(folder / "config_sentence_transformers.json", about)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    parts.write_json(folder / "modules.json", modules)
    # PyLate adds a random projection to a model without one.
    weight, bias = torch.eye(model.width), torch.zeros(model.width)
    if isinstance(model.text_head, nn.Linear):
        weight, bias = model.text_head.weight.detach().cpu(), model.text_head.bias.detach().cpu()
    dense = folder / "1_Dense"
    dense.mkdir()
    described = {
        "in_features": weight.shape[1],
        "out_features": weight.shape[0],
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    parts.write_json(dense / "config.json", described)
    save_file({"linear.weight": weight, "linear.bias": bias}, dense / "model.safetensors", {"format": "pt"})


def _write_both(saved: SavedModel, folder: Path) -> None:
    folder.mkdir()
    transformers.write_model(saved, folder, with_masks=True)
    features = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "token_embeddings"} for kind in ("text", "image")
    }
    mask, unit = (
        "sentence_transformers.multi_vector_encoder.modules.MultiVectorMask",
        "sentence_transformers.base.modules.Normalize",
    )
    write_modules(folder, "token_embeddings", features, [mask, unit])
    tasks = ["query"] if saved.model.settings.match_text_cls else ["query", "document"]
    parts.write_json(
        folder / "1_MultiVectorMask" / "config.json", {"skiplist_words": ["[CLS]"], "skiplist_tasks": tasks}
    )
    parts.write_json(folder / "2_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
    # The mean, not the sum, over a query's tokens is this project's similarity.
    about: dict[str, Any] = {"model_type": "MultiVectorEncoder", "similarity_fn_name": "meanmaxsim", "prompts": {}}
    parts.write_json(folder / "config_sentence_transformers.json", about)


def _matched(saved: SavedModel, counted: Tensor) -> Tensor:
    """Return the tokens of captions that a patch may match."""
    matched = counted.clone()
    matched[:, 0] = saved.model.settings.match_text_cls
    return matched


def _rows(vectors: Tensor, kept: Tensor, theirs: list[Any]) -> float:
    """Return the largest difference of the vectors of each caption's kept tokens; infinite if they are not as many."""
    ours = [own[mask] for own, mask in zip(vectors, kept, strict=True)]
    if [len(rows) for rows in ours] != [len(rows) for rows in theirs]:
        return float("inf")
    return _largest(torch.cat(ours), torch.cat(theirs))


def _largest(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max())


TARGET = Target(
    name="late-interaction",
    about="vectors of tokens and patches: ColBERT of PyLate, and MultiVectorEncoder of sentence-transformers",
    needs=("transformers", "sentence_transformers"),
    refuse=refuse,
    write=write,
)
