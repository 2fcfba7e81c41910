"""Weights from a hub on loopback and from files: what is stored, what is checked, and what is refused."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from transformers import BertConfig, BertModel

from infra.stack import processes, services
from infra.stack.ports import choose_ports
from infra.stack.state import Stack
from wukong.config import documents
from wukong.config import model as sections
from wukong.data.tokenizer import packaged_vocabulary
from wukong.errors import ConfigError, DataError, WukongError
from wukong.model import image_encoder, published_weights, weights
from wukong.model.image_encoder import ImageEncoder
from wukong.store import storage

ROOT = Path(__file__).parents[3]
TINY = "test_vit.r160_in1k"


def tower() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {name: value.contiguous() for name, value in timm.create_model("test_vit").state_dict().items()}


@contextmanager
def hub(files: dict[str, bytes], digest: str = "") -> Iterator[str]:
    """Serve files as the hub does, as far as its client asks: ``/OWNER/NAME/resolve/main/FILE``.

    ``digest`` is said to be that of all files; else each has its own.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path.strip("/").replace("/resolve/main", ""))
            self.send_response(200 if content is not None else 404)
            self.send_header("Content-Length", str(len(content or b"")))
            if content is not None:
                self.send_header("ETag", f'"{digest or hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "1" * 40)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET  # noqa: N815 - http.server calls it so

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def get(endpoint: str, home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command; the hub's client reads its address when it is imported."""
    variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "WUKONG_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "weights", "get", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.long
def test_the_hub_gives_a_tower_which_an_experiment_then_loads(tmp_path: Path) -> None:
    content = save(tower())
    with hub({f"timm/{TINY}/model.safetensors": content}) as endpoint:
        done = get(endpoint, tmp_path, TINY, "--to", str(tmp_path / "weights"), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (file,) = told["files"]
    assert told["value"] == file["uri"] == storage.from_path(tmp_path / "weights" / f"{TINY}.safetensors")
    assert (file["size"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (file["compared_with"], told["licence"]) == ("hub", "apache-2.0")
    image = {"name": TINY, "weights": told["value"], "image_size": 160}
    crawl = {"queries": "file:///q", "endpoint": "http://site.test"}
    loaded = ImageEncoder(documents.parse({"name": "x", "crawl": crawl, "model": {"image": image}}).model.image)
    assert torch.equal(loaded.backbone.state_dict()["blocks.0.attn.qkv.weight"], tower()["blocks.0.attn.qkv.weight"])


def test_what_a_hub_does_not_give_or_gives_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = storage.from_path(tmp_path / "weights")
    with hub({f"timm/{TINY}/model.safetensors": save(tower())}, digest="a" * 64) as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        address = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        with pytest.raises(DataError, match=rf"model\.safetensors is not the published one: .* instead of {'a' * 64}"):
            published_weights.get(published_weights.of(TINY), to)
        with pytest.raises(ConfigError, match=r"the hub does not give model\.safetensors of .*--from FILE"):
            published_weights.get(published_weights.of("test_vit2.r160_in1k"), to)
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"the hub does not give .* Without a network, fetch the file"):
        published_weights.get(published_weights.of(TINY), to)
    assert time.monotonic() - start < 10 and not (tmp_path / "weights").exists(), "nobody waits for repetitions"


def test_a_file_is_stored_byte_for_byte_once(tmp_path: Path) -> None:
    save_file(tower(), tmp_path / "mine.safetensors")
    source, to = storage.from_path(tmp_path / "mine.safetensors"), storage.from_path(tmp_path / "weights")
    (stored,) = published_weights.get(published_weights.of(TINY), to, source)
    lying = tmp_path / "weights" / f"{TINY}.safetensors"
    assert lying.read_bytes() == (tmp_path / "mine.safetensors").read_bytes()
    assert stored.sha256 == hashlib.sha256(lying.read_bytes()).hexdigest() and stored.size == lying.stat().st_size
    before = lying.stat().st_mtime_ns
    assert published_weights.get(published_weights.of(TINY), to, source) == [stored]
    assert lying.stat().st_mtime_ns == before, "it was there"
    save_file({name: value * 2 for name, value in tower().items()}, tmp_path / "mine.safetensors")
    with pytest.raises(DataError, match=r"is there with another content .* name another folder by --to"):
        published_weights.get(published_weights.of(TINY), to, source)
    assert lying.stat().st_mtime_ns == before


@pytest.mark.long
def test_a_bucket_gets_a_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    stack = Stack.load_or_new(tmp_path / "home")
    stack = stack.with_changes(ports=choose_ports(stack, (), {}))
    services.start(stack, [services.ObjectStore()])
    try:
        for name, value in stack.variables().items():
            monkeypatch.setenv(name, value)
        config = BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        BertModel(config).save_pretrained(tmp_path / "bert")
        published, to = published_weights.of("bert-base-chinese"), "s3://weights/inputs"
        stored = published_weights.get(published, to, storage.from_path(tmp_path / "bert"))
        assert stored == published_weights.get(published, to, storage.from_path(tmp_path / "bert"))
        for each in stored:
            assert hashlib.sha256(storage.read_bytes(each.uri)).hexdigest() == each.sha256
    finally:
        processes.stop(lambda: processes.find(stack.identity, services.scratch(stack.home)))


def test_weights_of_another_tower_are_refused(tmp_path: Path) -> None:
    other = {name: value.contiguous() for name, value in timm.create_model("test_vit2").state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="does not fit"):
        published_weights.get(
            published_weights.of(TINY),
            storage.from_path(tmp_path / "w"),
            storage.from_path(tmp_path / "other.safetensors"),
        )
    assert not (tmp_path / "w").exists()


def test_a_file_is_checked_by_names_and_sizes_without_reading_it(tmp_path: Path) -> None:
    def check(state: dict[str, torch.Tensor], name: str = TINY, block: int | None = None) -> None:
        path = tmp_path / "tower.safetensors"
        save_file(state, path)
        with path.open("r+b") as stream:  # what follows the names is not needed
            stream.truncate(8 + int.from_bytes(stream.read(8), "little"))
        settings = {"name": name, "weights": storage.from_path(path), "image_size": 160, "block": block}
        image_encoder.check_file(sections.ImageEncoder.model_validate(settings))

    check(tower())
    check(tower(), block=1)
    check({f"visual.trunk.{name}": value for name, value in tower().items()} | {"text.x": torch.ones(2)})
    with pytest.raises(DataError, match="does not fit"):
        check(tower(), "test_vit2.r160_in1k")
    with pytest.raises(DataError, match=r"of another size are blocks\.0\.attn\.qkv\.bias"):
        check(tower() | {"blocks.0.attn.qkv.bias": torch.ones(3)})
    for content in (b"", b"x" * 40, (2).to_bytes(8, "little") + b"[]", (2**40).to_bytes(8, "little") + b"{}"):
        (tmp_path / "tower.safetensors").write_bytes(content)
        with pytest.raises(DataError, match="is damaged, or not a safetensors file"):
            weights.read_shapes(storage.from_path(tmp_path / "tower.safetensors"))


class Script(torch.nn.Module):
    """A module that TorchScript can store."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what came."""
        return x


@pytest.mark.parametrize("kind", ["script", "checkpoint", "pickle", "damaged"])
def test_nothing_is_unpickled(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.pt"
    if kind == "script":
        torch.jit.script(Script()).save(str(path))
    elif kind == "damaged":
        path.write_bytes(save(tower())[:-10])
    else:
        torch.save(tower(), path, _use_new_zipfile_serialization=kind == "checkpoint")
    message = "damaged, or not a safetensors file" if kind == "damaged" else r"is an archive of torch, .*save_file"
    with pytest.raises(DataError, match=message):
        published_weights.get(published_weights.of(TINY), storage.from_path(tmp_path / "w"), storage.from_path(path))


def test_a_text_encoder_is_a_folder_that_is_checked(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    folder = tmp_path / "bert"
    BertModel(config).save_pretrained(folder)
    published, to = published_weights.of("bert-base-chinese"), storage.from_path(tmp_path / "weights")
    stored = published_weights.get(published, to, storage.from_path(folder))
    assert [each.uri.removeprefix(to) for each in stored] == [
        "/bert-base-chinese/config.json",
        "/bert-base-chinese/model.safetensors",
    ]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "weights" / "bert-base-chinese" / name).read_bytes() == (folder / name).read_bytes()
    changed = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=r"lacks the weight encoder\.layer\.2"):
        published_weights.get(published, storage.from_path(tmp_path / "other"), storage.from_path(folder))
    (folder / "config.json").write_text(json.dumps({"vocab_size": "many"}))
    with pytest.raises(DataError, match="is not that of a BERT"):
        published_weights.get(published, storage.from_path(tmp_path / "other"), storage.from_path(folder))


def test_a_vocabulary_is_the_one_whose_digest_is_known(tmp_path: Path) -> None:
    published, to = published_weights.of("vocab-bert-base-chinese"), storage.from_path(tmp_path / "weights")
    path = tmp_path / "vocab.txt"
    path.write_text(packaged_vocabulary(), encoding="utf-8")
    (stored,) = published_weights.get(published, to, storage.from_path(path))
    assert (
        stored.compared_with == "table"
        and stored.size == published.sizes["vocab.txt"]
        and stored.uri == f"{to}/{published.name}.txt"
    )
    path.write_text(packaged_vocabulary() + "猫猫\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"vocab\.txt is not the published one: .* SHA-256 .*: fetch it again"):
        published_weights.get(published, storage.from_path(tmp_path / "other"), storage.from_path(path))


def test_the_papers_towers_are_named_and_counted() -> None:
    for name in ("rn50", "rn101", "vit-b-32", "vit-b-16", "vit-l-14", "swin-l"):
        published = published_weights.of(name)
        assert published.repository.startswith("timm/") and published.licence in ("mit", "apache-2.0")
        with torch.device("meta"):
            model = timm.create_model(published.name, num_classes=0)
        assert published.weights == sum(parameter.numel() for parameter in model.parameters())
        assert published_weights.of(published.name) == published
    for config in (ROOT / "configs" / "paper").glob("[!b]*.yaml"):
        experiment = documents.load(config)
        named = published_weights.of(experiment.model.image.name)
        assert experiment.model.image.weights == f"s3://wukong/inputs/weights/{named.target(named.files[0])}"


@pytest.mark.parametrize("name", ["vit-l-15", "vit_large_patch14_clip_quickgelu_224.nobody", "lite0"])
def test_an_unknown_name_is_refused(name: str) -> None:
    if name == "lite0":
        assert published_weights.of(name).name == "tf_efficientnet_lite0"
        return
    with pytest.raises(ConfigError, match="the hub has no weights of this name; write an architecture"):
        published_weights.of(name)


def test_a_place_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(WukongError, match=r"none\.safetensors"):
        published_weights.get(
            published_weights.of(TINY),
            storage.from_path(tmp_path / "w"),
            storage.from_path(tmp_path / "none.safetensors"),
        )
