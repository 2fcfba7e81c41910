"""What is found before the first stage: each mistake named by its key, before anything is written."""

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wukong.config import documents
from wukong.config.experiment import Experiment
from wukong.config.section import Strict
from wukong.crawl.attempt import identity
from wukong.errors import ConfigError, StorageError
from wukong.model.cost import Shape, Size
from wukong.stages import preflight, preflight_model, run_paths
from wukong.stages.capacity import Machine
from wukong.store import storage
from wukong.store.manifest import Stage


@pytest.mark.parametrize("name", ["../../x", "..", "a/b", "", "/tmp/x", ".hidden", "名", "a" * 64, "a\n"])
def test_a_name_that_is_no_folder_is_refused(experiment: Callable[..., Experiment], name: str) -> None:
    with pytest.raises(ConfigError, match="--name: run name"):
        preflight.check_name(experiment(), name)


@pytest.mark.parametrize("name", ["../../x", "/tmp/somewhere-else"])
def test_a_refused_name_leaves_nothing_anywhere(tmp_path: Path, name: str) -> None:
    home = tmp_path / "a" / "b" / "home"
    command = [str(Path(sys.executable).with_name("wukong")), "run", "--config", "configs/demo.yaml", "--name", name]
    import os

    environment = {**os.environ, "WUKONG_HOME": str(home), "XDG_STATE_HOME": str(tmp_path / "state")}
    before = sorted(tmp_path.parent.rglob("*"))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: --name: run name {name!r}")
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_what_trains_needs_a_hold_out_and_a_data_set_does_not(experiment: Callable[..., Experiment]) -> None:
    bare = experiment("filter.split.holdouts=[]")
    with pytest.raises(ConfigError, match=r"filter\.split\.holdouts: there is none"):
        preflight.check_stages(bare)
    preflight.check_stages(bare, ("crawl", "filter", "validate", "release"))
    preflight.check_stages(
        experiment("filter.split.holdouts=[]", "evaluate.tasks=[coco-cn]", "evaluate.sets=file:///sets")
    )
    preflight.check_stages(experiment())


def test_a_worker_has_one_gpu_at_most(experiment: Callable[..., Experiment]) -> None:
    asked = experiment("pretrain.workers=4", "pretrain.gpus_per_worker=2", "finetune.gpus_per_worker=1")
    expected = r"pretrain\.gpus_per_worker: 2: a worker trains on one device; write 1, and pretrain\.workers: 8 "
    with pytest.raises(ConfigError, match=expected) as caught:
        preflight.check_stages(asked)
    assert "finetune" not in str(caught.value)
    preflight.check_stages(asked, ("crawl", "filter", "validate", "finetune", "evaluate"))


def _stage(tmp_path: Path, name: str) -> str:
    return Stage(storage.from_path(tmp_path), name, {}).commit([]).uri


MISSING: list[tuple[str, list[str]]] = [
    ("crawl.queries={}/none.txt", ["crawl.queries", "does not exist"]),
    ("crawl.queries={}", ["crawl.queries", "is a folder"]),
    ("crawl.politeness.opt_out={}/none", ["crawl.politeness.opt_out", "does not exist"]),
    ("release.opt_out={}/none", ["release.opt_out", "does not exist"]),
    ("crawl={{engine: urls, endpoint: '{}/none.csv'}}", ["crawl.endpoint", "no list of URLs", ".parquet"]),
    ("crawl={{engine: files, endpoint: '{}/none'}}", ["crawl.endpoint", "a folder of pictures or a list"]),
    (
        "crawl={{engine: published_set, endpoint: '{}/coco-cn'}}",
        ["crawl.endpoint", "has nothing", "evaluation-sets.md"],
    ),
    ("crawl.previous={}/none", ["crawl.previous", "not the manifest of a crawl stage"]),
    ("validation.reference={}/filter", ["validation.reference", "not the manifest of a validate stage"]),
    ("filter.sensitive_words={}/none", ["filter.sensitive_words", "holds no list"]),
    ("filter.forbidden.lists=[{}/none]", ["filter.forbidden.lists", "[0]", "does not exist"]),
    ("filter.similarity_model={}", ["filter.similarity_model", "lacks config.json, model.safetensors, vocab.txt"]),
    ("pretrain.from_model={}", ["pretrain.from_model", "lacks config.json, model.safetensors, vocab.txt"]),
    ("model.image.weights={}/none.safetensors", ["model.image.weights", "does not exist"]),
    ("model.text.vocabulary={}/none.txt", ["model.text.vocabulary", "does not exist"]),
    ("model.text.weights={}", ["model.text.weights", "lacks config.json, model.safetensors"]),
]


@pytest.mark.parametrize(("override", "named"), MISSING, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_there_is_named_with_its_key(
    experiment: Callable[..., Experiment], tmp_path: Path, override: str, named: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight.check_world(experiment(override.format(storage.from_path(tmp_path))))
    for text in named:
        assert text in str(caught.value)


def test_every_key_that_is_a_uri_is_looked_at() -> None:
    """A new key is found here: every one whose description speaks of a URI has a case above."""

    def keys(model: Any, prefix: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, Strict):
                found += keys(inner, f"{prefix}{name}.")
            elif "URI" in (field.description or ""):
                found.append(f"{prefix}{name}")
        return found

    covered = {named[0] for _, named in MISSING} | {"evaluate.sets", "finetune.from_model"}  # of tests of their own
    assert set(keys(Experiment, "")) == covered


def test_all_that_is_missing_is_said_at_once(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    none = storage.from_path(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"(?s)crawl\.queries.*crawl\.politeness\.opt_out"):
        preflight.check_world(experiment(f"crawl.queries={none}", f"crawl.politeness.opt_out={none}"))


def test_what_is_there_passes(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "vocab.txt", "words/a.txt", "opt.txt"):
        storage.write_bytes(storage.from_path(tmp_path / name), b"x")
    base = storage.from_path(tmp_path)
    preflight.check_world(
        experiment(
            f"crawl.previous={_stage(tmp_path, 'crawl')}",
            f"validation.reference={_stage(tmp_path, 'validate')}",
            f"crawl.politeness.opt_out={base}/opt.txt",
            f"filter.sensitive_words={base}/words",
            f"filter.similarity_model={base}",
            f"model.image.weights={base}/model.safetensors",
            f"model.text.vocabulary={base}/vocab.txt",
            f"model.text.weights={base}",
        )
    )
    with pytest.raises(ConfigError, match=r"validation\.reference: .* is the manifest of a crawl stage"):
        preflight.check_world(experiment(f"validation.reference={_stage(tmp_path, 'crawl')}"))


def test_lists_that_say_nothing_are_named(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    (tmp_path / "opt.txt").write_text("example.org\n# a comment\nno domain here\n")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("# none\n")
    base = storage.from_path(tmp_path)
    with pytest.raises(ConfigError) as caught:
        preflight.check_lists(
            experiment(
                f"crawl.politeness.opt_out={base}/opt.txt",
                f"release.opt_out={base}/opt.txt",
                f"filter.sensitive_words={base}/words",
            )
        )
    for named in ("crawl.politeness.opt_out: ", "release.opt_out: ", "line 3: 'no domain", "filter.sensitive_words: "):
        assert named in str(caught.value)
    (tmp_path / "opt.txt").write_text("example.org\n")
    preflight.check_lists(experiment(f"crawl.politeness.opt_out={base}/opt.txt"))


def test_a_list_of_forbidden_pictures_that_cannot_be_obeyed_is_named(
    experiment: Callable[..., Experiment], tmp_path: Path
) -> None:
    (tmp_path / "good.txt").write_text("0" * 64)
    (tmp_path / "bad.txt").write_text("# one\nno hash\n")
    lists = [storage.from_path(tmp_path / name) for name in ("good.txt", "bad.txt")]
    asked = experiment(f"filter.forbidden.lists=[{', '.join(lists)}]")
    preflight.check_world(asked)
    with pytest.raises(ConfigError, match=r"filter\.forbidden\.lists\[1\]: .*bad\.txt, line 2: 'no hash' is no hash"):
        preflight.check_lists(asked)


def test_weights_are_no_matter_of_a_data_set(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    named = experiment(f"model.image.weights={storage.from_path(tmp_path)}/none")
    preflight.check_world(named, ("crawl", "filter", "validate"))


def test_an_engine_that_does_not_answer_is_named(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("WUKONG_CONNECT_TO", f"site.test=127.0.0.1:{port}")
        preflight.check_world(experiment(), connect=True)
    with pytest.raises(ConfigError, match=r"crawl\.endpoint: nothing answers at http://site\.test/search"):
        preflight.check_world(experiment(), connect=True)
    preflight.check_world(experiment(), connect=False)


@pytest.mark.parametrize("engine", ["urls", "files"])
def test_hosts_of_a_list_that_will_be_refused_are_named_with_the_setting_that_opens_them(
    engine: str,
    experiment: Callable[..., Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("WUKONG_CONNECT_TO", raising=False)
    urls = ["http://localhost:8123/1.jpg", "https://127.0.0.1/2.jpg", "https://1.1.1.1/3.jpg", "http://a b/4.jpg"]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *(f"{url},一只猫" for url in urls)]), encoding="utf-8")
    listed = f"crawl.endpoint={(tmp_path / 'list.csv').as_uri()}"
    asked = experiment(f"crawl.engine={engine}", listed)
    preflight.check_world(asked, connect=True)
    assert "DNS" not in caplog.text and "refused" not in caplog.text, "nothing is looked up by a pod"
    preflight.warn_of_hosts(asked.crawl)
    said = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert sorted(line.rpartition("export ")[2] for line in said) == [
        "WUKONG_CONNECT_TO=127.0.0.1=127.0.0.1:443",
        "WUKONG_CONNECT_TO=localhost=127.0.0.1:8123",
    ]
    caplog.clear()
    monkeypatch.setenv("WUKONG_CONNECT_TO", "127.0.0.1=127.0.0.1:443,localhost=127.0.0.1:8123")
    preflight.warn_of_hosts(asked.crawl)
    assert "refused" not in caplog.text


@pytest.mark.parametrize(
    "contact", ["crawl.politeness.contact=me@example.org", "crawl.politeness.user_agent=x/1 (https://example.org/)"]
)
def test_an_engine_of_others_is_asked_by_somebody_who_can_be_reached(
    experiment: Callable[..., Experiment], contact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WUKONG_CONNECT_TO", raising=False)
    public = "crawl.endpoint=https://image.baidu.com/search/acjson"
    with pytest.raises(ConfigError, match=r"crawl\.politeness\.contact: image\.baidu\.com would be asked"):
        preflight.check_world(experiment(public))
    preflight.check_world(experiment(public, contact))
    preflight.check_world(experiment(public), ("evaluate",))
    monkeypatch.setenv("WUKONG_CONNECT_TO", "image.baidu.com=127.0.0.1:9")
    preflight.check_world(experiment(public))
    assert identity(experiment(public).crawl, ["猫"]) == identity(
        experiment(public, "crawl.politeness.contact=me@example.org").crawl, ["猫"]
    ), "another address is no other crawl"


def test_a_contact_that_would_break_the_header_is_refused(experiment: Callable[..., Experiment]) -> None:
    for wrong in ("me (at) example.org", '"a\\nHost: b"', "例子"):
        with pytest.raises(ConfigError, match=r"crawl\.politeness\.contact"):
            experiment(f"crawl.politeness.contact={wrong}")


def test_an_object_store_that_does_not_answer_says_so(
    experiment: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("WUKONG_STORE_PATIENCE", "0")
    with pytest.raises(StorageError, match=f"127.0.0.1:{port}"):
        preflight.check_world(experiment("crawl.queries=s3://wukong/queries.txt"))


GIB = 2**30
ROOMY = Machine(memory=64 * GIB, cores=8, gpus=8, free=500 * GIB)


def test_a_batch_has_no_more_pairs_than_there_are(experiment: Callable[..., Experiment]) -> None:
    asked = experiment("pretrain.batch_size=300", "finetune.batch_size=200")
    preflight.check_batches(asked, 300, "pictures")
    expected = r"cannot be run:\n  pretrain\.batch_size: 300 is more than the 299 pictures: give at most so many$"
    with pytest.raises(ConfigError, match=expected):
        preflight.check_batches(asked, 299, "pictures")
    with pytest.raises(ConfigError, match=r"(?s)pretrain\.batch_size: 300 .*finetune\.batch_size: 200 is more than"):
        preflight.check_batches(asked, 100, "pictures")


@pytest.mark.parametrize(
    ("machine", "overrides", "named"),
    [
        (Machine(64 * GIB, 8, 0, GIB), [], [r"storage: file:.* needs about 2\.0 GiB .* 1\.0 GiB are free"]),
        (Machine(64 * GIB, 1, 0, 500 * GIB), [], [r"pretrain\.workers: 2 workers .* has 1", r"finetune\.workers: 2"]),
        (Machine(64 * GIB, 8, 1, 500 * GIB), ["pretrain.gpus_per_worker=1"], [r"pretrain\.gpus_per_worker: .* need 2"]),
        (
            Machine(2 * GIB, 8, 0, 500 * GIB),
            ["pretrain.lock=none"],
            [r"pretrain\.workers: 2 workers with a model of 100,000,000 weights.* hold 3\.0 GiB.* has 2\.0 GiB"],
        ),
        (
            Machine(2 * GIB, 8, 0, 500 * GIB),
            ["pretrain.lock=none", "pretrain.shard_optimizer=true"],
            [r"pretrain\.workers: 2 workers .* hold 2\.2 GiB"],
        ),
    ],
)
def test_a_machine_that_is_too_small_is_named(
    experiment: Callable[..., Experiment], machine: Machine, overrides: list[str], named: list[str]
) -> None:
    for pattern in named:
        with pytest.raises(ConfigError, match=pattern):
            preflight.check_machine(
                experiment(*overrides), machine, 2 * GIB, Size(100_000_000, 80_000_000, 1e9, Shape(1, 768))
            )
    preflight.check_machine(experiment(*overrides), ROOMY, 2 * GIB, Size(100_000_000, 80_000_000, 1e9, Shape(1, 768)))


def of_list(tmp_path: Path, rows: int) -> Experiment:
    """An experiment that would write to S3 what a list of so many rows names."""
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": [f"http://a.test/{row}.jpg" for row in range(rows)]}), file)
    crawl = {"engine": "urls", "endpoint": storage.from_path(file)}
    return documents.parse({"name": "x", "storage": "s3://wukong", "crawl": crawl})


def test_a_run_that_the_store_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = of_list(tmp_path, 2_000)  # 60 KB each
    preflight.check_store(large)
    monkeypatch.setenv("WUKONG_STORE_CAPACITY", "115Mi")
    preflight.check_store(large)
    monkeypatch.setenv("WUKONG_STORE_CAPACITY", "114Mi")
    with pytest.raises(
        ConfigError, match=r"storage: the store holds 119\.5 MB and 120\.0 MB are needed: .*docs/store\.md"
    ):
        preflight.check_store(large)
    monkeypatch.setenv("WUKONG_STORE_CAPACITY", "plenty")
    with pytest.raises(ConfigError, match="'plenty' is no amount as Kubernetes writes it"):
        preflight.check_store(large)
    preflight.check_store(large.model_copy(update={"storage": storage.from_path(tmp_path)}))


def test_a_search_that_may_find_more_than_the_store_holds_is_told(
    experiment: Callable[..., Experiment],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage.write_bytes(storage.from_path(tmp_path / "queries.txt"), "".join(f"词{n}\n" for n in range(100)).encode())
    search = experiment(f"crawl.queries={storage.from_path(tmp_path / 'queries.txt')}").model_copy(
        update={"storage": "s3://wukong"}
    )
    monkeypatch.setenv("WUKONG_STORE_CAPACITY", "1Gi")  # 12 MB at least, 5 GB at most
    with caplog.at_level("WARNING"):
        preflight.check_store(search)
    assert "finds as much as it may, the store holds 1.1 GB and 5.0 GB are needed" in caplog.text


def test_a_locked_tower_that_is_not_run_takes_no_memory(experiment: Callable[..., Experiment]) -> None:
    small = Machine(2 * GIB, 8, 0, 500 * GIB)
    preflight.check_machine(experiment(), small, 0, Size(10_000_000_000, 9_990_000_000, 1e9, Shape(1, 768)))
    with pytest.raises(ConfigError, match=r"finetune\.workers"):
        preflight.check_machine(
            experiment("finetune.store_features=false"),
            small,
            0,
            Size(10_000_000_000, 9_990_000_000, 1e9, Shape(1, 768)),
        )


def test_this_machine_is_measured(tmp_path: Path) -> None:
    here = Machine.here(tmp_path / "not" / "yet")
    assert here.memory > 2**28 and here.cores >= 1 and here.free > 0


def test_a_run_of_that_name_is_looked_for_where_records_lie(experiment: Callable[..., Experiment]) -> None:
    assert run_paths.uri_of(experiment(), "first", "x.json").endswith("/data/x/runs/first/x.json")


def test_published_sets_must_have_names_and_be_there(experiment: Callable[..., Experiment], tmp_path: Path) -> None:
    folder = f"evaluate.sets={storage.from_path(tmp_path)}"
    with pytest.raises(ConfigError, match=r"evaluate\.tasks: there is no evaluation set 'coco'; .*coco-cn"):
        preflight.check_stages(experiment("evaluate.tasks=[coco]", folder))
    with pytest.raises(ConfigError, match="'dtd' is the name of a published set"):
        preflight.check_stages(experiment("filter.split.holdouts=[{name: dtd, source: '*', captions: unseen}]"))
    named = experiment("evaluate.tasks=[coco-cn, dtd]", folder)
    preflight.check_stages(named)
    with pytest.raises(ConfigError, match=r"evaluate\.sets: .* has nothing in coco-cn/, dtd/; docs/evaluation-sets"):
        preflight.check_world(named)
    preflight.check_world(named, ("crawl", "filter", "validate"))
    for name in ("coco-cn", "dtd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README").touch()
    preflight.check_world(named)
    with pytest.raises(ConfigError, match=r"evaluate\.tasks: COCO-CN: (?s:.*)Download(?s:.*)evaluate\.tasks: .*DTD"):
        preflight_model.check_sets(named)


def test_a_gate_that_no_list_can_pass_is_told_before_the_crawl(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = of_list(tmp_path, 1_200)
    preflight.warn_of_few(listed)
    assert not caplog.messages
    held = {"held_out_captions": 0.25, "holdouts": [{"name": "held", "source": "*", "captions": "unseen"}]}
    preflight.warn_of_few(documents.parse(listed.model_dump() | {"filter": {"split": held}}))
    assert "the gate asks for 1,000 pairs and there are 900 at most" in caplog.messages.pop()
    storage.write_bytes(storage.from_path(tmp_path / "queries.txt"), "猫\n狗\n".encode())
    words = {"queries": storage.from_path(tmp_path / "queries.txt"), "endpoint": "http://site.test"}
    for each, is_told in ((500, True), (700, False)):  # of which 83 % are distinct
        caplog.clear()
        crawl = words | {"max_results_per_query": each}
        preflight.warn_of_few(documents.parse({"name": "x", "storage": "s3://wukong", "crawl": crawl}))
        assert bool(caplog.messages) == is_told
