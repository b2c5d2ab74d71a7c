from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from csd.tools.eval.commands.compare import main

from ...helpers import failure
from .test_compare import made, runs

__all__ = ["made", "runs"]


class Client:
    """What `mlflow.MlflowClient` (3.17) offers of what is used, kept in memory."""

    def __init__(self, kept):
        self.kept = kept

    def get_experiment_by_name(self, name):
        found = self.kept["experiments"].get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name):
        self.kept["experiments"][name] = "7"
        return "7"

    def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
        run = {"params": {}, "metrics": {}, "tags": {}, "artifacts": [], "ended": False}
        self.kept["runs"][run_name] = run
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_param(self, run_id, key, value):
        self.kept["runs"][run_id]["params"][key] = value

    def log_metric(self, run_id, key, value):
        self.kept["runs"][run_id]["metrics"][key] = float(value)

    def set_tag(self, run_id, key, value):
        self.kept["runs"][run_id]["tags"][key] = value

    def log_artifact(self, run_id, local_path):
        self.kept["runs"][run_id]["artifacts"].append(local_path)

    def set_terminated(self, run_id):
        self.kept["runs"][run_id]["ended"] = True


@pytest.fixture
def mlflow(monkeypatch):
    kept = {"experiments": {}, "runs": {}}
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(
        MlflowClient=lambda: Client(kept), __spec__=SimpleNamespace(name="mlflow")))  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    return kept


def test_a_comparison_goes_to_mlflow(runs, mlflow, tmp_path):
    page = tmp_path / "r.html"
    for _ in range(2):
        assert main(["a", "b", *runs, f"--html={page}", "--show=1"]) == 0
    assert mlflow["experiments"] == {"csd-eval": "7"}
    assert {"a", "b", "a/ar-1"} <= set(mlflow["runs"])
    run = mlflow["runs"]["b"]
    assert run["params"]["cfg"] == 3
    assert run["params"]["version csd"]
    low, value, high = (run["metrics"][f"g/kernel{end}"] for end in (" low", "", " high"))
    assert low < value < high
    assert run["tags"]["compared_with"] == "a"
    assert run["tags"]["g/kernel"] in ("better", "worse", "no difference seen")
    assert run["artifacts"] == [str(page)]
    assert all(found["ended"] for found in mlflow["runs"].values())


def test_what_mlflow_refuses_is_one_line(runs, mlflow, monkeypatch, tmp_path, capsys):
    def refuse(*_):
        raise ConnectionError("nobody\nthere")

    monkeypatch.setattr(Client, "get_experiment_by_name", refuse)
    page = tmp_path / "r.html"
    message = failure(main, ["a", "b", *runs, f"--html={page}", "--show=0"], capsys)
    assert message.startswith("MLflow at 'http://tracking' refused the comparison (nobody): check")
    assert page.is_file()


def test_nothing_is_sent_unasked_and_the_library_is_looked_for_first(
    runs, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["a", "b", *runs]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    page = tmp_path / "r.html"
    message = failure(main, ["a", "b", *runs, f"--html={page}"], capsys)
    assert "needs mlflow, which is not installed: pip install mlflow-skinny" in message
    assert not page.exists()
