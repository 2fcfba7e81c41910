"""Models as ONNX files, run by onnxruntime: folders of ``wukong model export --to onnx``, and those of transformers.js.

The package is imported when such a model is loaded.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wukong.config.model import Model as Settings
from wukong.data.tokenizer import PACKAGED_DIGEST, Tokenizer
from wukong.errors import OF_PARSERS, ConfigError, DataError
from wukong.evaluate.adapters import transformers
from wukong.evaluate.foreign import LOADING, ForeignModel, Kind, imported, reason, refuse_unusable
from wukong.evaluate.model import Model, token_ids, tokens_cut

_OURS = ("image.onnx", "text.onnx")
_THEIRS = ("vision_model.onnx", "text_model.onnx")


def _onnx(name: str, uri: str, device: torch.device) -> Model:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{uri}: there is no folder {name!r}")
    if all((folder / file).is_file() for file in _OURS):
        found = _exported(folder, uri, device)
    elif at := next((at for at in (folder, folder / "onnx") if all((at / file).is_file() for file in _THEIRS)), None):
        found = _of_transformers(folder, at, uri, device)
    else:
        raise ConfigError(
            f"{uri}: a folder has {' and '.join(_OURS)}, as `wukong model export --to onnx` writes them, or "
            f"{' and '.join(_THEIRS)} in it or in its folder onnx, as transformers.js reads them; this one has neither"
        )
    refuse_unusable(found)
    return found


def _exported(folder: Path, uri: str, device: torch.device) -> ForeignModel:
    """Load a model of this project, whose graphs take pixels as they are and give unit vectors.

    Raises:
        ConfigError: onnxruntime is not installed, or cannot compute there.
        DataError: a file is damaged, or the vocabulary is not the model's.
    """
    try:
        settings = Settings.model_validate(json.loads((folder / "config.json").read_text("utf-8")))
        vocabulary = (folder / "vocab.txt").read_text("utf-8")
    except OF_PARSERS as error:
        raise DataError(f"{uri}: its settings or its vocabulary cannot be read ({reason(error)})") from error
    tokenizer = Tokenizer(vocabulary, settings.text.max_tokens)
    if settings.text.vocabulary == "package" and tokenizer.digest != PACKAGED_DIGEST:
        raise DataError(
            f"{uri}: the model was trained with the packaged vocabulary, and its vocab.txt is another one of "
            f"{len(tokenizer)} entries: export the model again"
        )
    image, text = (_Graph(folder / file, uri, device) for file in _OURS)
    return ForeignModel(
        _Exported(image, text),
        lambda texts, context: tokenizer.collate(token_ids(tokenizer, texts, context)),
        uri,
        "\n".join(["onnx", settings.model_dump_json(), vocabulary, image.digest, text.digest]),
        1.0,  # no graph scales similarities, and no file has the trained factor
        settings.image.image_size,
        mean=None,
        token_wise=settings.is_token_wise,
        match_text_cls=settings.match_text_cls,
        pad=tokenizer.pad,
        view=settings.image.view,
        count_cut=lambda texts, context: tokens_cut(tokenizer, texts, context),
    )


def _of_transformers(folder: Path, at: Path, uri: str, device: torch.device) -> ForeignModel:
    """Load a model of transformers, whose tokenizer and image processor lie beside its graphs.

    Raises:
        ConfigError: its type is not supported, or a file cannot be read.
        DataError: a graph is damaged.
    """
    package: Any = imported("transformers", "pip install transformers")
    try:
        config, tokenizer, processor = (
            each.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            for each in (package.AutoConfig, package.AutoTokenizer, package.AutoImageProcessor)
        )
    except LOADING as error:
        raise ConfigError(f"transformers {package.__version__} does not load {uri!r} ({reason(error)})") from error
    family = transformers.FAMILIES.get(config.model_type)
    if family is None or family.patches:
        supported = ", ".join(kind for kind, each in transformers.FAMILIES.items() if not each.patches)
        raise ConfigError(f"{uri}: its model_type is {config.model_type!r}; supported in this form are {supported}")
    texts, (mean, std) = transformers.Texts(tokenizer, family, config), transformers.normalisation(processor, uri)
    image, text = (_Graph(at / file, uri, device) for file in _THEIRS)
    return ForeignModel(
        _Pair(image, text, texts),
        texts,
        uri,
        "\n".join(["onnx", texts.digested(), f"{mean} {std}", image.digest, text.digest]),
        1.0,
        transformers.side_of(processor, config, family, uri),
        mean,
        std,
        pad=texts.pad,
        count_cut=texts.count_cut,
    )


class _Graph:
    """A graph with the session that runs it.

    Attributes:
        digest: SHA-256 of its file, and of the file beside it that has the weights of a large one.
    """

    def __init__(self, file: Path, uri: str, device: torch.device) -> None:
        runtime: Any = imported("onnxruntime", "pip install onnxruntime")
        state: Any = imported("onnxruntime.capi.onnxruntime_pybind11_state", "pip install onnxruntime")
        self._errors: tuple[type[Exception], ...] = (
            *(state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf),
            *(state.NoSuchFile, state.NotImplemented, state.RuntimeException),
            ValueError,  # an input is missing
        )
        self._uri, self._name = uri, file.name
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in (there := runtime.get_available_providers()):
            raise ConfigError(
                f"{uri}: this onnxruntime has no {provider}, it has {', '.join(there)}: "
                "pip install onnxruntime-gpu, or leave out --device"
            )
        try:
            self._session = runtime.InferenceSession(file, providers=[provider])
        except self._errors as error:
            raise DataError(f"{uri}: onnxruntime does not load {file.name} ({reason(error)})") from error
        self._inputs = {each.name for each in self._session.get_inputs()}
        digest = hashlib.sha256()
        for part in (file, Path(f"{file}_data"), Path(f"{file}.data")):
            if part.is_file():
                digest.update(part.read_bytes())
        self.digest = digest.hexdigest()

    def __call__(self, outputs: tuple[str, ...], **inputs: Tensor) -> Tensor:
        """Run it, on those inputs that it takes, and return the first of some outputs that it has.

        Raises:
            DataError: it has none, or the inputs are not its own.
        """
        names = [each.name for each in self._session.get_outputs()]
        output = next((name for name in outputs if name in names), None)
        if output is None:
            raise DataError(f"{self._uri}: {self._name} gives {', '.join(names)}, and none of {', '.join(outputs)}")
        given = {name: value.cpu().numpy() for name, value in inputs.items() if name in self._inputs}
        try:
            found = self._session.run([output], given)[0]
        except self._errors as error:
            raise DataError(f"{self._uri}: onnxruntime does not run {self._name} ({reason(error)})") from error
        return torch.from_numpy(found)


class _Exported(nn.Module):
    """Both graphs of a model of this project, as ``ForeignModel`` calls them."""

    def __init__(self, image: _Graph, text: _Graph) -> None:
        super().__init__()
        self._image, self._text = image, text

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode uint8 pixels [images, 3, size, size]."""
        return self._image(("vectors",), pixels=pixels.contiguous())

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids [texts, tokens]."""
        return self._text(("vectors",), ids=ids)


class _Pair(nn.Module):
    """Both graphs of a model of transformers, as ``ForeignModel`` calls them."""

    def __init__(self, image: _Graph, text: _Graph, texts: transformers.Texts) -> None:
        super().__init__()
        self._image, self._text, self._texts = image, text, texts

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels [images, 3, size, size]."""
        return self._image(("image_embeds", "pooler_output"), pixel_values=pixels.contiguous())

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids [texts, tokens]."""
        masks = self._texts.masked(ids) or {"attention_mask": torch.ones_like(ids)}
        names = ("text_embeds", "pooler_output")
        return self._text(names, input_ids=ids, token_type_ids=torch.zeros_like(ids), **masks)


KIND = Kind("onnx", _onnx)
