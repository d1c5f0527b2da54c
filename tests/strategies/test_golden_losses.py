"""Every loss against the numbers of the original code: value, gradients, buffers after the call."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ickd_pl.models.deployed import Head
from ickd_pl.models.features import Classifier
from ickd_pl.strategies import kdsvd
from ickd_pl.strategies.crd import ContrastMemory
from ickd_pl.strategies.kdsvd import leading_vectors
from tests.golden import golden_params, tensor
from tests.strategies.golden_methods import Method, blank_batch, built, load, method_of, seen_by, with_classifier
from tests.strategies.reference import kdsvd_terms

pytestmark = pytest.mark.golden


class Case:
    """An entry in one dtype: its leaf tensors, our strategy and our adapter with the entry's weights."""

    def __init__(self, entry: dict[str, Any], dtype: torch.dtype) -> None:
        self.entry, self.dtype, self.method = entry, dtype, method_of(entry["method"])
        self.student = {name: tensor(ref).to(dtype).requires_grad_() for name, ref in entry.get("student", {}).items()}
        self.teacher = {name: tensor(ref).to(dtype) for name, ref in entry["teacher"].items()}
        self.strategy = self.method.strategy(entry["hyper"])
        self.f_t = self.method.features(list(self.teacher.values()))
        self.f_s = self.method.features(list(self.student.values())) if self.student else self.f_t
        self._give_last_layers()
        epoch = entry["hyper"].get("epoch")
        self.strategy.main_epoch = None if epoch is None else torch.tensor(epoch)
        self.adapter = built(self.strategy, self.f_s, self.f_t, entry["hyper"].get("n_data"))
        if self.adapter is not None:
            self._load(self.adapter)

    def _give_last_layers(self) -> None:
        """The last layers of both networks, where the entry has them; the student's is a 1x1 convolution."""
        named = [f"student_head/{key}" for key in self.entry["modules"].get("student_head", ())]
        self.student_head = {name: self.stored(f"param/{name}").to(self.dtype).requires_grad_() for name in named}
        if self.student_head:
            own = {name.rpartition(".")[2].rpartition("/")[2]: value for name, value in self.student_head.items()}
            self.f_s = with_classifier(self.f_s, Classifier(own["weight"].flatten(1), own.get("bias")))
        names = [name for name in ("classifier_weight", "classifier_bias") if name in self.entry["const"]]
        if names:
            theirs = [self.stored(f"const/{name}").to(self.dtype) for name in names]
            self.f_t = with_classifier(self.f_t, Classifier(*theirs))

    def _load(self, adapter: nn.Module) -> None:
        names = [f"{module}/{key}" for module, keys in self.entry["modules"].items() for key in keys]
        filled = load(adapter, self.method, ((name, self.stored(f"param/{name}")) for name in names))
        self.unset = {name for name, _ in adapter.named_parameters()} - filled
        adapter.to(self.dtype).train()
        if isinstance(adapter, Head):
            adapter.take(self.f_t.classifier)
        for module, mode in self.entry["module_mode"].items():
            if mode == "eval":
                adapter.get_submodule(module).eval()

    def stored(self, name: str) -> Tensor:
        return tensor(f"{self.entry['file']}#{name}")

    def loss(self) -> Tensor:
        batch = blank_batch(len(next(iter(self.teacher.values()))))
        if "target" in self.entry["const"]:
            batch = batch._replace(label=self.stored("const/target").long())
        first_stage = self.method.first_stage or not self.student
        call = self.strategy.pretrain_loss if first_stage else self.strategy.loss
        self.seen = seen_by(self.f_s, self.adapter)
        return call(self.seen, self.f_t, batch, self.adapter)

    def gradients(self) -> dict[str, Tensor | None]:
        parameters = dict(self.adapter.named_parameters()) if self.adapter is not None else {}
        ours = {f"input/{name}": leaf.grad for name, leaf in self.student.items()}
        ours |= {name: weight.grad for name, weight in self.student_head.items()}
        return ours | {name: parameter.grad for name, parameter in parameters.items()}


def check_gradients(case: Case, expected: dict[str, Any], prefix: str = "") -> None:
    """All gradients that the entry lists, and none besides."""
    ours = case.gradients()
    largest = max(e["l2_64"] for e in expected.values())
    named = {name: _our_name(case.method, name) for name in expected}
    assert {name for name, grad in ours.items() if grad is not None} == set(named.values())
    for name, e in expected.items():
        grad = ours[named[name]]
        assert grad is not None and list(grad.shape) == e["shape"]
        if e["noise_only"]:
            assert grad.norm() < 1e-4 * largest, name
            continue
        thinned = grad.flatten()[:: e["stride"]].double()
        stored = case.stored(f"{prefix}grad/{name}").flatten().double()
        rtol = case.entry["rtol_grad_l2"]
        assert (thinned - stored).norm() <= rtol * stored.norm(), name
        if case.dtype is torch.float64:
            rtol = 1e-6
        assert float(grad.double().norm()) == pytest.approx(e["l2_64"], rel=rtol), name
        assert float(grad.double().abs().max()) == pytest.approx(e["absmax_64"], rel=10 * rtol), name
        assert float(grad.double().sum()) == pytest.approx(e["sum_64"], abs=rtol * e["l2_64"] * grad.numel() ** 0.5), (
            name
        )


def check_buffers(case: Case, names: list[str], prefix: str = "") -> None:
    assert case.adapter is not None or not names
    for name in names:
        key = case.method.key(name)
        assert key is not None, name
        stored = case.stored(f"{prefix}after/{name}")
        stored = stored[2:4] if key == "constants" else stored
        torch.testing.assert_close(case.adapter.state_dict()[key].to(stored.dtype), stored, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


def _our_name(method: Method, name: str) -> str:
    return name if name.startswith("input/") else str(method.key(name.removeprefix("param/")))


def check_value(case: Case, loss: Tensor, expected: dict[str, Any]) -> None:
    """The value of one call, in the case's dtype."""
    assert loss.dtype == case.dtype and loss.shape == ()
    suffix = "64" if case.dtype is torch.float64 else ""
    assert loss.item() == pytest.approx(expected[f"loss{suffix}"], rel=case.entry[f"rtol_loss{suffix}"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("entry", golden_params("losses"))
def test_loss(entry: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(entry, dtype)
    if "calls" in entry:
        return check_calls(case)
    if entry["method"] == "kdsvd":
        take_signs_of_the_original(entry, monkeypatch)
    loss = case.loss()
    loss.backward()
    check_value(case, loss, entry)
    check_gradients(case, entry["grads"])
    check_buffers(case, entry["after"])
    check_predictions(case)
    return None


def check_predictions(case: Case) -> None:
    """The logits by which the student of an entry predicts, in the call and afterwards in eval mode."""
    if not isinstance(case.adapter, Head):
        return
    found = {"logits": case.seen.logits, "logits_eval": case.adapter.eval()(case.f_s).logits}
    for name, expected in case.entry["outputs"].items():
        ours, stored = found[name].detach().double(), case.stored(f"out/{name}").double()
        assert (ours - stored).norm() <= 1e-5 * stored.norm(), name
        if case.dtype is torch.float64:
            assert float(ours.norm()) == pytest.approx(expected["l2_64"], rel=1e-8)
            assert ours.flatten()[:8].tolist() == pytest.approx(expected["first8_64"], rel=1e-6)


def take_signs_of_the_original(entry: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """KDSVD: let the teacher's singular vectors have the signs that the original's library happened to return.

    They are found by the value: one of the choices must give the original's, to the last digits. With them value and
    gradients are held to the entry's tolerances like those of any other method.
    """
    case = Case(entry, torch.float64)
    count = case.strategy.spec()["init_args"]["count"]
    own, turned = kdsvd_terms([x.detach() for x in case.f_s.stages], case.f_t.stages, count)  # (stages - 1, B, count)
    totals = np.array([own.sum()])
    assert own.size <= 20, "too many choices to try them all"
    for change in (turned - own).flat:
        totals = np.concatenate([totals, totals + change])
    choice = int(np.argmin(np.abs(totals - entry["loss64"])))
    assert totals[choice] == pytest.approx(entry["loss64"], rel=entry["rtol_loss64"]), "no choice of signs gives it"
    turns = 1 - 2 * (choice >> np.arange(own.size) & 1).reshape(own.shape)
    signs = iter([np.ones_like(turns[0]), *turns.cumprod(0)])

    def signed(x: Tensor, number: int) -> tuple[Tensor, Tensor]:
        vectors, values = leading_vectors(x, number)
        return (vectors * torch.from_numpy(next(signs))[:, None].to(x) if number == count else vectors), values

    monkeypatch.setattr(kdsvd, "leading_vectors", signed)


def check_calls(case: Case) -> None:
    """CRD: successive calls with given negatives; each changes the memory."""
    assert isinstance(case.adapter, ContrastMemory)
    for number, expected in enumerate(case.entry["calls"], start=1):
        for leaf in [*case.student.values(), *case.adapter.parameters()]:
            leaf.grad = None
        index, contrast = case.stored(f"const/idx{number}"), case.stored(f"const/contrast_idx{number}")
        loss = case.adapter(case.f_s.pooled, case.f_t.pooled, index, torch.zeros_like(index), contrast)
        loss.backward()
        check_value(case, loss, expected)
        check_gradients(case, expected["grads"], f"call{number}/")
        check_buffers(case, expected["after"], f"call{number}/")
