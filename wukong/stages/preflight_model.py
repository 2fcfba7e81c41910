"""Checks before the first stage that need torch: the model, its weights, and the published sets.

``wukong.stages.preflight`` has the others. Every message names the key, the value, and what is allowed.
"""

from collections.abc import Iterator

from wukong import stages
from wukong.config.experiment import Experiment
from wukong.config.model import ImageEncoder, TextEncoder
from wukong.errors import ConfigError, DataError, WukongError
from wukong.evaluate import set_folders
from wukong.model.cost import Size, empty_tower
from wukong.stages.preflight import refuse
from wukong.store import storage

_CONNECT_SECONDS = 10.0


def check_model(experiment: Experiment) -> Size:
    """Check that the model can be built and that its image tower's weights are available; return its size.

    The model is built without memory for its weights. This needs torch.

    Raises:
        ConfigError: it cannot be built, or weights are missing; the message names the key.
    """
    from wukong.model import weights

    model = experiment.model
    tower = empty_tower(model)
    size = Size.of(model, tower)
    if experiment.pretrain.from_model:
        pass  # it has its weights
    elif model.image.weights == "package":
        weights.packaged(model.image.name, grid=1)
    elif model.image.weights == "hub":
        _check_hub(model.image.name)
    for name in stages.TRAININGS:
        settings = stages.training_of(experiment, name)
        try:
            tower.lock(settings.lock)
            tower.checkpoint_activations = settings.checkpoint_activations
            tower.train()
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from error
        tower.checkpoint_activations = False
    return size


def check_weights(experiment: Experiment) -> None:
    """Compare the weights that lie at URIs with the model's towers, by names and sizes; what is not there is left out.

    This needs torch, if there is anything to compare.

    Raises:
        ConfigError: they are damaged, or of another tower or vocabulary; the message names the key.
        StorageError: the object store cannot be reached.
    """
    model, uris, problems = experiment.model, experiment.uris(), list[str]()
    if "model.image.weights" in uris:
        problems += _misfit_of_tower(model.image)
    if "model.text.weights" in uris:
        problems += _misfit_of_text(model.text)
    refuse(problems)


def _misfit_of_tower(settings: ImageEncoder) -> Iterator[str]:
    if storage.exists(settings.weights):
        from wukong.model import image_encoder

        try:
            image_encoder.check_file(settings)
        except DataError as error:
            yield (
                f"model.image.weights: {error}. `wukong weights get {settings.name} --to FOLDER` brings this tower's; "
                "or name the tower of these in model.image.name"
            )


def _misfit_of_text(settings: TextEncoder) -> Iterator[str]:
    """Say where a text encoder's weights do not fit; they have a row for each entry of the vocabulary."""
    if storage.exists(storage.join(settings.weights, "config.json")):
        import torch

        from wukong.data.tokenizer import Tokenizer
        from wukong.model import bert, text_encoder, weights

        try:
            entries = len(Tokenizer.of(settings))
            with torch.device("meta"):
                encoder = text_encoder.TextEncoder.of(settings, entries)
            bert.start_from(encoder, settings.weights, weights.read_shapes)
        except DataError as error:
            yield (
                f"model.text.weights: {error}. Name the vocab.txt that belongs to them in model.text.vocabulary, and "
                "their sizes in model.text; or take other weights"
            )


def check_sets(experiment: Experiment) -> None:
    """Check that the published sets in folders of this machine are complete; those in an object store its job reads.

    Ids, labels and captions are read, no pictures. This needs torch.

    Raises:
        ConfigError: a set is missing, damaged, or not the published one; or the protocol's prompts are not installed.
    """
    from wukong.evaluate import prompts, sets
    from wukong.evaluate.protocol import named

    asked, problems = experiment.evaluate, []
    if asked.tasks:
        prompts.of(named(asked.protocol).prompts)
    parts: list[tuple[str, str, str | None]] = [
        ("evaluate.tasks", name, named(asked.protocol).split(name)) for name in asked.tasks
    ]
    for training in stages.TRAININGS:
        chosen = stages.training_of(experiment, training).validation
        published = [name for name in chosen.tasks if name in experiment.published_sets and chosen.split]
        parts += [(f"{training}.validation.split", name, chosen.split) for name in published]
    parts += [("filter.decontaminate.sets", name, None) for name in experiment.decontaminated_sets]
    for key, name, split in parts if asked.sets.startswith("file://") else ():
        with set_folders.local(asked.sets, name) as folder:
            try:
                sets.of(name).read(folder, split)
            except WukongError as error:
                problems.append(f"{key}: {error}")
    refuse(problems)


def _check_hub(name: str) -> None:
    """Check that the hub, or its cache on this machine, has the weights of a timm model; this downloads nothing."""
    import huggingface_hub
    import timm

    known = timm.get_pretrained_cfg(name)
    repository, file = getattr(known, "hf_hub_id", None), "model.safetensors"
    if not repository:
        raise ConfigError(f"model.image.weights: the hub has none of {name}; name the URI of a safetensors file")
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str):
        return
    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file), timeout=_CONNECT_SECONDS)
    except Exception as error:  # the errors depend on the HTTP client of the hub's package
        raise ConfigError(
            f"model.image.weights: 'hub' does not give {repository} ({' '.join(str(error).split())}); without a "
            "network name the URI of a safetensors file"
        ) from error
