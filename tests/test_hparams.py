"""Bindings in TensorBoard's HParams tab, as its own backend reads them."""

import json
from pathlib import Path
from types import SimpleNamespace

import gin
import pytest
from tensorboard import context
from tensorboard.backend.event_processing import (
    data_provider,
    plugin_event_multiplexer,
)
from tensorboard.plugins.hparams import (
    api_pb2,
    backend_context,
    get_experiment,
    list_session_groups,
)

from tests import tiny
from tl_tf import experiment, hparams


def run(data_dir: Path, model_dir: Path, *bindings: str) -> None:
    gin.clear_config()
    tiny.load(tiny.QUICKSTART, *bindings)
    experiment.run("train_and_eval", model_dir=model_dir, data_dir=data_dir, tpu=None)


def test_nothing_bound_is_nothing_shown():
    assert hparams.bound() == {}


def test_runs_compare_in_the_hparams_tab(tiny_data, tmp_path):
    for name, rate in (("slow", 0.125), ("fast", 0.5)):
        run(tiny_data, tmp_path / name, f"LEARNING_RATE = {rate}")
    found = hparams.bound()  # of the second run
    assert found["train.batch_size"] == 2  # a macro's value
    assert found["train.build_model"] == "build_x2p1d"
    assert found["train/clip_dataset.flip"] is False
    assert found["clip_dataset.dataset"] == "synthetic"
    assert found["build_x2p1d.stage_depths"] == "(1, 1, 1, 1)"
    unused = ("inspect", "evaluate.", "gin", "save_npz")  # in this mode
    assert not any(name.startswith(unused) for name in found)
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(tmp_path))
    tab = backend_context.Context(SimpleNamespace(data_provider=provider))
    request = context.RequestContext()
    about = get_experiment.Handler(
        request, tab, "", api_pb2.GetExperimentRequest(include_metrics=True)
    ).run()
    differing = {info.name for info in about.hparam_infos if info.differs}
    assert differing == {"train.learning_rate"}
    assert "eval/map" in {info.name.tag for info in about.metric_infos}
    groups = list_session_groups.Handler(
        request,
        tab,
        "",
        api_pb2.ListSessionGroupsRequest(
            allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS],
            include_metrics=True,
            slice_size=9,
        ),
    ).run()
    shown = {}
    for group in groups.session_groups:
        (session,) = group.sessions
        scores = {metric.name.tag: metric.value for metric in session.metric_values}
        rate = group.hparams["train.learning_rate"].number_value
        shown[session.name.split("/")[0]] = rate, scores["eval/map"]
    for name, rate in (("slow", 0.125), ("fast", 0.5)):
        result = json.loads((tmp_path / name / "results" / "test-2.json").read_text())
        assert shown[name] == (rate, pytest.approx(result["metrics"]["map"], rel=1e-5))
