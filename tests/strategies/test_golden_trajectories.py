"""Five training steps of the original code, loss by loss: losses, gradients, adapters and optimizer together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ickd_pl.data.batch import Batch
from ickd_pl.models import FeatureNet, get_model
from ickd_pl.models.deployed import DeployedNet, Head
from ickd_pl.models.features import Features
from ickd_pl.models.fold import fold_batch_norms
from ickd_pl.strategies import KD
from ickd_pl.strategies.crd import ContrastMemory
from tests.fill_rule import fill
from tests.golden import golden_index, golden_params, golden_path, tensor
from tests.strategies.golden_methods import METHODS, built, load, seen_by

pytestmark = pytest.mark.golden


# CAT-KD's last layer in the original.
AS_CONVOLUTION = "student/conv_test.weight"


class Run:
    """One entry of the set, with the set's networks, data and optimizer.

    In float32 the teacher computes as it does in a run: folded, in channels_last.
    """

    def __init__(self, entry: dict[str, Any], dtype: torch.dtype) -> None:
        setup = golden_index()["trajectories"]["setup"]
        self.entry, self.method, self.dtype = entry, METHODS[entry["method"]], dtype
        self.teacher = _network(setup["teacher"], dtype).eval()
        self.student = _network(setup["student"], dtype).train()
        self.strategy = self.method.strategy(entry.get("hyper", {}))
        self.strategy.prepare(self.student)
        if AS_CONVOLUTION in entry["final_state"]:
            shape = {"conv_test.weight": self.student.get_parameter("fc.weight").detach()[:, :, None, None]}
            weight = fill(shape, salt=golden_index()["salt"])["conv_test.weight"].flatten(1).to(dtype)
            self.student.load_state_dict({**self.student.state_dict(), "fc.weight": weight})
        self.kd = KD(weight=entry["alpha"], temperature=setup["kd_T"])
        image = self.batch(0).image
        with torch.no_grad():
            nets = self.student.eval(), self.teacher
            shapes = [net.features(image, preact=self.strategy.needs_preact) for net in nets]
        self.student.train()
        if dtype is torch.float32:
            folded = fold_batch_norms(self.teacher, image.shape[-1])
            assert folded is not None and folded is not self.teacher
            self.computed = folded.to(memory_format=torch.channels_last)
        else:
            self.computed = self.teacher
        self.adapter = built(self.strategy, *shapes, entry.get("hyper", {}).get("n_data"))
        parameters = list(self.student.parameters())
        if self.adapter is not None:
            self._load(self.adapter)
            parameters += self.adapter.parameters()
        self.optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)

    def _load(self, adapter: nn.Module) -> None:
        files = [(self.entry["adapters"], "")] if "adapters" in self.entry else []
        if "memory" in self.entry.get("hyper", {}):
            files.append((self.entry["hyper"]["memory"], "contrast/"))
        for file, prefix in files:
            load(adapter, self.method, ((prefix + name, tensor(f"{file}#{name}")) for name in _names(file)))
        adapter.to(self.dtype).train()
        if isinstance(adapter, Head):
            adapter.take(self.teacher.last_layer())

    def batch(self, step: int) -> Batch:
        file = "trajectories/batches.safetensors"
        image, label, index = (tensor(f"{file}#{name}")[step] for name in ("images", "targets", "index"))
        return Batch(image.to(self.dtype), label, index)

    def method_loss(self, s: Features, t: Features, batch: Batch, step: int) -> Tensor:
        if isinstance(self.adapter, ContrastMemory):
            contrast = tensor("trajectories/batches.safetensors#contrast_index")[step]
            loss: Tensor = self.adapter(s.pooled, t.pooled, batch.index, batch.label, contrast)
            return loss
        return self.strategy.loss(seen_by(s, self.adapter), t, batch, self.adapter)

    def step(self, number: int) -> dict[str, float]:
        batch = self.batch(number)
        s = self.student.features(batch.image, preact=self.strategy.needs_preact)
        with torch.no_grad():
            t = self.computed.features(batch.image, preact=self.strategy.needs_preact)
        epochs = self.entry.get("hyper", {}).get("epoch_of_step")
        self.strategy.main_epoch = None if epochs is None else torch.tensor(epochs[number])
        cls = cross_entropy(s.logits, batch.label)
        # A method without a weight of its own stands in the place of soft targets.
        stands_for_kd = "beta" not in self.entry
        div = self.method_loss(s, t, batch, number) if stands_for_kd else self.kd.loss(s, t, batch, None)
        kd = self.method_loss(s, t, batch, number) if self.entry.get("beta") else torch.zeros(())
        warm = 1.0 if epochs is None else self.strategy.weight_at(epochs[number]) / self.strategy.weight
        total = self.entry["gamma"] * cls + self.kd.weight * div + self.entry.get("beta", 0) * warm * kd
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        return {"cls": cls.item(), "div": div.item(), "kd": kd.item(), "total": total.item()}

    def tensor(self, golden: str) -> Tensor | None:
        """A tensor of the final state by the set's name, or None where we have none."""
        if golden == AS_CONVOLUTION:
            return self.student.get_parameter("fc.weight").detach()
        if golden.startswith("student/"):
            return self.student.state_dict()[golden.removeprefix("student/")]
        key = self.method.key(golden)
        if self.adapter is None or key is None or key == "constants":
            return None
        value: Tensor = self.adapter.state_dict()[key]
        return value


def _network(description: str, dtype: torch.dtype) -> FeatureNet:
    """A network of the setup, such as ``resnet8, train mode``, with weights by rule."""
    index = golden_index()
    net = get_model(description.partition(",")[0], index["trajectories"]["setup"]["num_classes"])
    net.load_state_dict(fill(net.state_dict(), salt=index["salt"]))
    return net.to(dtype)


def _names(file: str) -> list[str]:
    with safe_open(golden_path(file), "pt") as opened:
        return list(opened.keys())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("entry", golden_params("trajectories", "entries"))
def test_steps(entry: dict[str, Any], dtype: torch.dtype) -> None:
    run = Run(entry, dtype)
    sharp = dtype is torch.float64
    expected = entry["steps64" if sharp else "steps"]
    for number in range(golden_index()["trajectories"]["setup"]["steps"]):
        rtol = entry["rtol64"] if sharp else entry["rtol_per_step"][number]
        for name, value in run.step(number).items():
            if name in expected:
                assert value == pytest.approx(expected[name][number], rel=rtol), (name, number)
    if sharp:
        check_final_state(run)
        check_evaluation(run)


def check_evaluation(run: Run) -> None:
    """The logits of the first batch after the last step, in eval mode, by the method's own way to predict."""
    if "eval_logits" not in run.entry:
        return
    e = run.entry["eval_logits"]
    net = DeployedNet(run.student, run.adapter) if isinstance(run.adapter, Head) else run.student
    with torch.no_grad():
        logits = net.eval()(run.batch(e["batch"]).image)
    assert list(logits.shape) == e["shape"] and logits.argmax(1).tolist() == e["argmax_64"]
    assert float(logits.norm()) == pytest.approx(e["l2_64"], rel=10 * run.entry["rtol64"])
    assert logits.flatten()[:8].tolist() == pytest.approx(e["first8_64"], abs=run.entry["rtol64"] * e["l2_64"])


def built_here(section: str) -> list[Any]:
    """The entries of a section whose methods are built; others are skipped one by one."""
    params = golden_params(section, "entries")
    for param in params:
        (entry,) = param.values
        if entry is not None and entry["method"] not in METHODS:
            skip = pytest.mark.skip(reason=f"method not built: {entry['method']}")
            params[params.index(param)] = pytest.param(entry, id=param.id, marks=skip)
    return params


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("entry", built_here("trajectories_after_2020"))
def test_steps_of_the_methods_after_2020(entry: dict[str, Any], dtype: torch.dtype) -> None:
    test_steps(entry, dtype)


def check_final_state(run: Run) -> None:
    """Sums, norms and first values of every tensor of student and adapter."""
    for name, e in run.entry["final_state"].items():
        ours = run.tensor(name)
        if ours is None:
            assert not name.startswith("student/")
            continue
        if not ours.is_floating_point():  # counters of the batch norms
            assert ours.item() == e["value"]
            continue
        values, atol = ours.double().flatten(), 10 * run.entry["rtol64"] * e["l2_64"]
        assert float(values.norm()) == pytest.approx(e["l2_64"], abs=atol), name
        assert float(values.sum()) == pytest.approx(e["sum_64"], abs=atol * values.numel() ** 0.5), name
        assert values[:8].tolist() == pytest.approx(e["first8_64"], abs=atol), name
