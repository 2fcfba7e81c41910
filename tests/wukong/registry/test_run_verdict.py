"""What is said at the end of a run: the decision of the gate, and the change against the champion's run."""

import io
import shutil

import pytest
from registered import HARD, Registered

from cli import summary
from components import stage as components
from wukong.commands.output import Console
from wukong.registry import aliases, comparison
from wukong.runs.run import Run
from wukong.store import storage
from wukong.tracking.mlflow_rest import Server
from wukong.tracking.mlflow_runs import pipeline_run


def said(register: Registered, run: str) -> str:
    stream = io.StringIO()
    summary.print_verdict(Console(file=stream, width=200), Run.of(register.experiment, run))
    return stream.getvalue()


@pytest.mark.slow
def test_a_run_says_what_was_decided_and_what_changed(register: Registered) -> None:
    register(0.5, "first")
    found = aliases.verdict_of(register.experiment, "1")
    assert found is not None
    assert aliases.compare(register.experiment, "run-first", found) is None, "nobody to compare with"
    assert (found.promoted, found.holder, found.heading) == (True, "", "Version 1 holds @champion.")

    register(0.4, "worse")
    shown = components._verdict(register.experiment, "run-worse", "2")
    assert shown is not None and shown["against"] == "run-first"
    assert shown["heading"] == "Version 2 does not take @champion, which stays with version 1."
    assert "not better by more than noise" in shown["says"]
    assert [(each["verdict"], each["sign"]) for each in shown["changes"]] == [("worse", "▼")] * len(shown["changes"])
    assert shown["changes"][-1]["now"] < shown["changes"][-1]["before"]
    text = said(register, "run-worse")
    assert "Version 2 does not take @champion, which stays with version 1." in text and "▼" in text
    assert "wukong compare run-first run-worse" in text
    folder = storage.join(register.experiment.root, "runs", "run-worse")
    page = storage.read_bytes(storage.join(folder, "comparison.html")).decode()
    assert "run-first" in page and "run-worse" in page
    server = Server()
    logged = server.read_file(pipeline_run(server, register.experiment, "run-worse"), "comparison.html").decode()
    assert logged.partition("<h1>")[2] == page.partition("<h1>")[2] != ""
    assert '<a href="report.html">' in page and '<a href="report.html">' not in logged, "MLflow blocks links"

    register(0.6, "better")
    found = aliases.verdict_of(register.experiment, "3")
    assert found is not None and found.heading == "Version 3 takes @champion from version 1."
    shown = components._verdict(register.experiment, "run-better", "3")
    assert shown is not None and shown["against"] == "run-first", (
        "the champion of before, although it holds the alias now"
    )


@pytest.mark.slow
def test_what_the_gate_has_compared_is_compared_in_either_order(register: Registered) -> None:
    """Each run has a test set of its own: the gate has the holder measured on the candidate's."""
    register(0.5, "first")
    register(0.6, "second", crawl="another")
    server = Server()
    for names, sign in ((("run-first", "run-second"), 1), (("run-second", "run-first"), -1)):
        runs = [pipeline_run(server, register.experiment, name) for name in names]
        document = comparison.compare(comparison.read(server, runs))
        (each,) = (found for found in document["sets"] if found["task"] == "x")
        entry = each["results"]["mean_recall"][1]
        assert entry["verdict"] == ("better" if sign > 0 else "worse")
        gained = float((HARD < 0.6).mean() - (HARD < 0.5).mean())
        assert entry["difference"]["value"] == pytest.approx(sign * gained) and entry["difference"]["paired"]
        assert entry["note"] == "by the gate's evaluation of the model of run-first on the sets of run-second"
    register(0.55, "third", crawl="one more")
    names = ("run-third", "run-second", "run-first")
    runs = [pipeline_run(server, register.experiment, name) for name in names]
    (each,) = comparison.compare(comparison.read(server, runs))["sets"]
    found = [(entry["verdict"], entry["note"].partition(":")[0]) for entry in each["results"]["mean_recall"]]
    assert found[0] == ("baseline", "") and found[2][0] == "incomparable"
    assert found[1] == ("better", "by the gate's evaluation of the model of run-second on the sets of run-third")


@pytest.mark.slow
def test_a_run_does_not_fail_because_the_champions_is_gone(
    register: Registered, caplog: pytest.LogCaptureFixture
) -> None:
    register(0.5, "first")
    register(0.6, "better")
    shutil.rmtree(register.folder / register.name / "evaluate")
    shown = components._verdict(register.experiment, "run-better", "2")
    assert shown is not None and shown["heading"] == "Version 2 takes @champion from version 1."
    assert shown["changes"] == [] and "no comparison with the champion's run is made" in caplog.text
    assert "takes @champion" in said(register, "run-better") and "wukong compare" not in said(register, "run-better")


@pytest.mark.slow
def test_a_version_of_before_has_no_verdict(register: Registered, caplog: pytest.LogCaptureFixture) -> None:
    register(0.5, "first")
    values = {"name": register.name, "version": "1", "key": "wukong.decision"}
    Server().ask("DELETE", "model-versions/delete-tag", values)
    assert components._verdict(register.experiment, "run-first", "1") is None
    assert said(register, "run-first") == ""
    assert components._verdict(register.experiment, "run-first", "9") is None
    assert "what was decided about the model is left out" in caplog.text
