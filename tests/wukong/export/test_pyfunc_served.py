"""MLflow's own server and command line run the registered flavour from its own requirements, without this project."""

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from consumers import ENVIRONMENTS, only_by_hand
from packaging.requirements import Requirement
from PIL import Image

import wukong
from wukong.config.model import Model
from wukong.data.tokenizer import Tokenizer, packaged_vocabulary
from wukong.model import pyfunc, saved_model
from wukong.model.dual import DualEncoder
from wukong.model.image_encoder import ImageEncoder
from wukong.model.saved_model import SavedModel
from wukong.store import storage

mlflow = pytest.importorskip("mlflow")
scoring_server = pytest.importorskip("mlflow.pyfunc.scoring_server")
pytestmark = pytest.mark.slow

ENVIRONMENT = ENVIRONMENTS / "mlflow"
CAPTIONS = ["猫", "红色的苹果", "雪中的房子"]


def picture(seed: int, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, kind)
    return target.getvalue()


PICTURES = [picture(0, "JPEG"), picture(1, "PNG"), picture(2, "WEBP")]


@pytest.fixture(scope="module", params=["global", "token"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SavedModel]:
    """The folder of an MLflow model, and the model in it."""
    place = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    text = {"layers": 1, "heads": 2, "width": 16}
    settings = Model.model_validate(
        {"image": {"image_size": 64}, "text": text, "embedding": 8, "similarity": request.param}
    )
    tokenizer = Tokenizer(packaged_vocabulary())
    model = DualEncoder(settings, tokenizer, ImageEncoder(settings.image)).eval()
    saved_model.save(storage.from_path(place / "model"), model, tokenizer)
    pyfunc.save(place / "mlflow", place / "model", request.param)
    return place / "mlflow", wukong.load(place / "model")


def table() -> dict[str, Any]:
    """Rows with a caption, with a picture, and twice with both, as MLflow's server takes them."""
    encoded = [base64.b64encode(each).decode() for each in PICTURES]
    rows = [[CAPTIONS[0], ""], [None, encoded[0]], [CAPTIONS[1], encoded[1]], [CAPTIONS[2], encoded[2]]]
    return {"dataframe_split": {"columns": ["caption", "image"], "data": rows}}


def check(rows: list[dict[str, Any]], saved: SavedModel) -> None:
    """Check the answer to ``table``."""
    texts, images = saved.encode_text(CAPTIONS), saved.encode_image(PICTURES)
    wanted = [
        (each[counted] if each.ndim == 2 else each).numpy()
        for each, counted in zip(texts.vectors, texts.counted, strict=True)
    ]
    assert [row["caption_vector"] is None for row in rows] == [False, True, False, False]
    assert [row["image_vector"] is None for row in rows] == [True, False, False, False]
    for row, vector in zip((rows[0], rows[2], rows[3]), wanted, strict=True):
        np.testing.assert_allclose(row["caption_vector"], vector, atol=1e-5)
    for row, vector in zip(rows[1:], images, strict=True):
        np.testing.assert_allclose(row["image_vector"], vector, atol=1e-5)
    assert rows[0]["similarity"] is None and rows[1]["similarity"] is None
    pairs = saved.similarity(images, texts)
    np.testing.assert_allclose([rows[2]["similarity"], rows[3]["similarity"]], [pairs[1, 1], pairs[2, 2]], atol=1e-5)


def strictly(content: str | bytes) -> Any:
    """Read JSON as browsers do, which do not know NaN."""
    return json.loads(content, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def invoke(folder: Path, document: object) -> list[dict[str, Any]]:
    """Return the answer of MLflow's server, without its process."""
    model = mlflow.pyfunc.load_model(str(folder))
    schema = model.metadata.get_input_schema()
    answer = scoring_server.invocations(json.dumps(document), "application/json", model, schema)
    assert answer.status == 200, answer.response
    rows: list[dict[str, Any]] = strictly(answer.response)["predictions"]
    return rows


def test_the_saved_example_is_what_the_server_takes(model: tuple[Path, SavedModel]) -> None:
    folder, saved = model
    payload = (folder / "serving_input_example.json").read_text()
    ((caption, encoded),) = json.loads(payload)["dataframe_split"]["data"]
    example = base64.b64decode(encoded)
    assert Image.open(io.BytesIO(example)).format == "JPEG"
    (row,) = invoke(folder, json.loads(payload))
    image = saved.encode_image(example)
    np.testing.assert_allclose(row["image_vector"], image[0], atol=1e-5)
    np.testing.assert_allclose(row["similarity"], saved.similarity(image, saved.encode_text(caption)), atol=1e-5)
    table = mlflow.models.Model.load(folder).load_input_example(str(folder))
    assert mlflow.models.convert_input_example_to_serving_input(table) == payload


def test_a_served_answer_has_the_signatures_columns(model: tuple[Path, SavedModel]) -> None:
    folder, saved = model
    rows = invoke(folder, table())
    check(rows, saved)
    declared = mlflow.models.Model.load(folder).signature.outputs.to_dict()
    found = mlflow.models.infer_signature(model_output=pd.DataFrame(rows[2:])).outputs.to_dict()
    assert found == [
        {**column, "required": True, **({"items": doubles(column["items"])} if "items" in column else {})}
        for column in declared
    ]


def doubles(items: dict[str, Any]) -> dict[str, Any]:
    """The type of the numbers of a vector, or of those of its vectors, as MLflow infers it of Python's numbers."""
    return {"type": "array", "items": doubles(items["items"])} if "items" in items else {"type": "double"}


def isolated(requirements: str) -> Path:
    """Return the Python of an environment of these requirements alone; torch, of 8 GiB, is linked into it."""
    python, record = ENVIRONMENT / "bin" / "python", ENVIRONMENT / "packages.txt"
    if record.is_file() and record.read_text() == requirements:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    base = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
    own, shared = Path(sysconfig.get_path("purelib", vars=base)), Path(sysconfig.get_path("purelib"))
    linked, left = set(), ["torch", "torchvision"]
    while left:
        distribution = metadata.distribution(left.pop())
        linked |= {file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}
        asked = [Requirement(line) for line in distribution.requires or () if "extra ==" not in line]
        left += [each.name for each in asked if each.name.startswith(("cuda", "nvidia", "triton"))]
    for name in linked - {"__pycache__"}:
        (own / name).symlink_to(shared / name)
    listed = ENVIRONMENT / "requirements.txt"
    listed.write_text(requirements)
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", listed]
    subprocess.run(command, check=True, timeout=1800)
    record.write_text(requirements)
    return python


def activated(python: Path) -> dict[str, str]:
    """The variables of this process with those of an environment that is active, and no way to this project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "WUKONG_", "MLFLOW_"))}
    return {**kept, "PATH": f"{python.parent}:{kept['PATH']}", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


@contextmanager
def serving(python: Path, folder: Path, log: Path) -> Iterator[str]:
    """Run `mlflow models serve` in an environment, and give the address of its predictions."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "--env-manager", "local", "-m", folder, "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env=activated(python), start_new_session=True
        )
        try:
            for _ in range(600):
                assert server.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGTERM)
                server.wait(60)


def post(address: str, document: object) -> Any:
    """Post a document and return the answer."""
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(document).encode(), headers)) as answer:
        return strictly(answer.read())


@only_by_hand
def test_mlflow_serves_it_without_this_project(model: tuple[Path, SavedModel], tmp_path: Path) -> None:
    folder, saved = model
    python = isolated((folder / "requirements.txt").read_text())
    absent = "import importlib.util as u; print(*map(u.find_spec, ('wukong', 'ray', 'open_clip')))"
    shown = subprocess.run(
        [python, "-c", absent], check=True, capture_output=True, text=True, env=activated(python), cwd=tmp_path
    )
    assert shown.stdout.split() == ["None"] * 3, "the environment is not of the model's requirements alone"
    with serving(python, folder, tmp_path / "log") as address:
        check(post(address, table())["predictions"], saved)
        captions = post(address, {"dataframe_split": {"columns": ["caption"], "data": [["猫"]]}})["predictions"]
        images = [{"image": base64.b64encode(each).decode()} for each in PICTURES]
        pictures = post(address, {"dataframe_records": images})["predictions"]
        example = json.loads((folder / "serving_input_example.json").read_text())
        (answer,) = post(address, example)["predictions"]
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(address, {"dataframe_records": [{"image": base64.b64encode(b"no picture").decode()}]})
    one = saved.encode_text("猫")
    vector = one.vectors[0][one.counted[0]] if one.vectors.ndim == 3 else one.vectors[0]
    np.testing.assert_allclose(captions[0]["caption_vector"], vector, atol=1e-5)
    np.testing.assert_allclose([row["image_vector"] for row in pictures], saved.encode_image(PICTURES), atol=1e-5)
    assert answer["similarity"] is not None


@only_by_hand
def test_mlflow_predicts_without_this_project(model: tuple[Path, SavedModel], tmp_path: Path) -> None:
    folder, saved = model
    python = isolated((folder / "requirements.txt").read_text())
    asked, given = tmp_path / "asked.json", tmp_path / "given.json"
    asked.write_text(json.dumps(table()))
    command = ["models", "predict", "--env-manager", "local", "-m", folder, "-i", asked, "-t", "json", "-o", given]
    subprocess.run(["mlflow", *command], check=True, cwd=tmp_path, env=activated(python))
    check(json.loads(given.read_text())["predictions"], saved)
    loads = (
        "import sys, mlflow, pandas\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "found = model.predict(pandas.read_pickle(sys.argv[2]))\n"
        "print(found.to_json(orient='records', double_precision=15))\n"
    )
    pd.DataFrame({"caption": CAPTIONS, "image": PICTURES}).to_pickle(tmp_path / "table")
    loaded = subprocess.run(
        [python, "-I", "-c", loads, folder, tmp_path / "table"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    rows = json.loads(loaded.stdout)
    np.testing.assert_allclose([row["image_vector"] for row in rows], saved.encode_image(PICTURES), atol=1e-5)
