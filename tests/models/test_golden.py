"""Every network against the numbers of the original code."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from ickd_pl.models import FeatureNet, get_model
from ickd_pl.models.features import Features
from tests.fill_rule import fill
from tests.golden import golden_index, golden_params, golden_path, tensor

pytestmark = pytest.mark.golden

RTOL_FEATURE = 1e-5  # of the largest absolute value
RTOL_64 = 1e-9
RTOL_SUM = 1e-5

Entry = dict[str, Any]


def network(entry: Entry, *, fan_in: bool = False) -> FeatureNet:
    net = get_model(entry["name"], entry["num_classes"])
    net.load_state_dict(fill(net.state_dict(), salt=golden_index()["salt"], fan_in=fan_in))
    return net


def images() -> Tensor:
    return tensor(golden_index()["models"]["images"])


def distance(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def check_map(value: Tensor, expected: Entry) -> None:
    assert list(value.shape) == expected["shape"]
    flat, tolerance = value.detach().double().flatten(), RTOL_FEATURE * expected["absmax"]
    assert float(flat.mean()) == pytest.approx(expected["mean"], rel=0, abs=tolerance)
    assert float(flat.std(correction=0)) == pytest.approx(expected["std"], rel=0, abs=tolerance)
    assert float(flat.abs().max()) == pytest.approx(expected["absmax"], rel=0, abs=tolerance)
    assert flat[:8].tolist() == pytest.approx(expected["first8"], rel=0, abs=tolerance)


def check_maps(values: list[Tensor], expected: list[Entry]) -> None:
    for value, stored in zip(values, expected, strict=True):
        check_map(value, stored)


def check_features(out: Features, expected: list[Entry]) -> None:
    check_maps([out.stem, *out.stages, out.pooled], expected)


def check_sum(values: Tensor, expected: float) -> None:
    """Values of both signs may cancel, so the tolerance follows the sum of their sizes."""
    assert float(values.sum()) == pytest.approx(expected, rel=0, abs=RTOL_SUM * float(values.abs().sum()))


@pytest.mark.parametrize("entry", golden_params("models", "entries"))
def test_state_dict(entry: Entry) -> None:
    """Keys in order, shapes, kinds and counts."""
    listed = json.loads(golden_path(golden_index()["models"]["state_dicts"]).read_text())[entry["name"]]
    with torch.device("meta"):
        net = get_model(entry["name"], entry["num_classes"])
    state = net.state_dict()
    assert [[key, list(v.shape), str(v.dtype).removeprefix("torch.")] for key, v in state.items()] == listed
    assert len(state) == entry["n_keys"]
    assert sum(p.numel() for p in net.parameters()) == entry["n_params"]
    assert sum(b.numel() for b in net.buffers()) == entry["n_buffers"]
    parts = dict(net.named_modules())
    trained = [p for name in entry["feat_modules"] if name in parts for p in parts[name].parameters()]
    assert {id(p) for part in net.feat_modules() for p in part.parameters()} == {id(p) for p in trained}


@pytest.mark.parametrize("entry", golden_params("models", "entries"))
def test_eval(entry: Entry) -> None:
    """Logits and every list of features under the plain rule, float32 and float64."""
    net = network(entry).eval()
    with torch.no_grad():
        out = net.features(images(), preact=True)
        exact = net.double()(images().double())
    assert distance(out.logits, tensor(entry["eval_logits"])) < entry["rtol_logits"]
    assert distance(exact, tensor(entry["eval_logits64"])) < RTOL_64
    check_features(out, entry["features"])
    assert out.preact is not None
    before = entry["features" if entry["preact_equals_features"] else "preact_features"]
    check_maps([out.stem, *out.preact, out.pooled], before)
    check_map(out.final, entry["features" if entry["ickd_minus2_equals_base_minus2"] else "ickd_features"][-2])


@pytest.mark.parametrize("entry", golden_params("models", "entries"))
def test_eval_fan_in(entry: Entry) -> None:
    """The same under the rule scaled by the fan-in, which all networks' logits respond to."""
    net, stored = network(entry, fan_in=True).eval(), entry["fan_in"]
    with torch.no_grad():
        out = net.features(images())
        exact = net.double()(images().double())
    assert out.preact is None
    assert distance(out.logits, tensor(stored["logits"])) < entry["rtol_logits"]
    assert distance(exact, tensor(stored["logits64"])) < RTOL_64
    check_features(out, stored["features"])


@pytest.mark.parametrize("entry", golden_params("models", "entries"))
def test_train(entry: Entry) -> None:
    """One pass in train mode: logits, running statistics updated once even with the features before the ReLU."""
    net, expected = network(entry).train(), entry["after_train_pass"]
    with torch.no_grad():
        logits = net.features(images(), preact=True).logits
    assert distance(logits, tensor(entry["train_logits"])) < entry["rtol_train_logits"]
    buffers = {k: b.double() for k, b in net.named_buffers()}
    running = {k: b for k, b in buffers.items() if k.endswith(("running_mean", "running_var"))}
    check_sum(torch.cat([b.flatten() for b in running.values()]), expected["total_running_sum"])
    if expected["running_sum"] is not None:  # given for some networks only
        assert set(running) == set(expected["running_sum"])
        for key, stored in expected["running_sum"].items():
            check_sum(running[key], stored)
    assert all(int(b) == 1 for k, b in buffers.items() if k.endswith("num_batches_tracked"))


def test_fill_rule() -> None:
    """The rule itself, on the example of the set."""
    rule = golden_index()["fill_rule"]
    shapes: dict[str, tuple[int, ...]] = {f"bn1.{k}": (16,) for k in ("weight", "bias", "running_mean", "running_var")}
    shapes["conv1.weight"] = (16, 3, 3, 3)
    stem = {key: torch.empty(shape) for key, shape in shapes.items()}
    for key, expected in rule["check_first3_of_a_stem"].items():
        name, _, variant = key.partition(" ")
        values = fill(stem, salt=rule["salt"], fan_in=bool(variant))[name]
        assert values.flatten()[:3].tolist() == expected, key
