"""The client of Kubeflow Pipelines, against an API (v2beta1) on loopback."""

from pathlib import Path

import pytest
from played_kfp import Kfp

from cli.kfp_api import Pipelines
from cli.run_result import SubmitError
from wukong.errors import ConfigError

COMPILED = Path(__file__).parents[2] / "pipelines" / "compiled"


@pytest.mark.usefixtures("fast")
def test_a_moments_absence_while_waiting_is_survived(kfp: Kfp, file: Path) -> None:
    api = Pipelines(kfp.url)
    run = api.start("demo", "r", ("p", "v"), {})
    kfp.unavailable = 3
    api.wait(run, lambda _: None, 60)


def test_waiting_ends_and_the_run_goes_on(kfp: Kfp) -> None:
    kfp.script = ["RUNNING"]
    api = Pipelines(kfp.url)
    with pytest.raises(SubmitError, match="it goes on"):
        api.wait(api.start("demo", "r", ("p", "v"), {}), lambda _: None, timeout=0.1, pause=0.02)


def test_where_nothing_answers_it_says_what_to_do(file: Path) -> None:
    with Kfp() as server:
        url = server.url
    with pytest.raises(SubmitError, match="port-forward"):
        Pipelines(url)


@pytest.mark.parametrize(("status", "said"), [(401, "WUKONG_KFP_TOKEN"), (403, "--namespace")])
def test_a_refusal_asks_for_a_token_or_a_namespace(kfp: Kfp, status: int, said: str) -> None:
    kfp.refuse = status
    with pytest.raises(SubmitError, match=rf"it refuses \({status}\).*{said}"):
        Pipelines(kfp.url)


def test_a_token_in_a_file_is_read_anew_for_each_request(
    kfp: Kfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    with pytest.raises(ConfigError, match=r"KF_PIPELINES_SA_TOKEN_PATH names .*token, which cannot be read"):
        Pipelines(kfp.url)
    file.write_text("the first\n", encoding="ascii")
    api = Pipelines(kfp.url)
    file.write_text("renewed\n", encoding="ascii")
    api.upload(COMPILED / "data.yaml")
    assert {*kfp.authorizations[:1]} == {"Bearer the first"}
    assert kfp.authorizations[-1] == "Bearer renewed"
    kfp.authorizations.clear()
    Pipelines(kfp.url, "given").upload(COMPILED / "data.yaml")
    assert {*kfp.authorizations} == {"Bearer given"}
