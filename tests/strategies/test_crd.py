from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.errors import UserError
from ickd_pl.seeding import seeded
from ickd_pl.strategies.components.negatives import ClassTable, Draws
from ickd_pl.strategies.crd import CRD, ContrastMemory, crd_loss
from tests.strategies.golden_methods import make_features
from tests.strategies.reference import VALUES, Array, arrays, full_features, s, shapes, t, unit

LABELS = torch.arange(60) % 3  # 20 images of each of three classes


def memory(seed: int = 0, labels: Tensor | None = LABELS, **settings: Any) -> ContrastMemory:
    strategy = CRD(**{"dim": 4, "negatives": 30, **settings})
    with seeded(seed):
        built = strategy.build(shapes(width=5), shapes(width=7), DataInfo(3, 60))
    assert isinstance(built, ContrastMemory)
    if labels is not None:
        built.table.fill(labels)
    return built


def call(adapter: ContrastMemory, index: Tensor, **given: Any) -> Tensor:
    count = len(index)
    loss: Tensor = adapter(s(count, 5).float(), t(count, 7).float(), index, LABELS[index], **given)
    return loss


def identity_memory() -> ContrastMemory:
    built = CRD(dim=5, negatives=3).build(shapes(width=5), shapes(width=5), DataInfo(5, 10))
    assert isinstance(built, ContrastMemory)
    for embed in (built.embed_student, built.embed_teacher):
        torch.nn.init.eye_(embed.linear.weight)
        torch.nn.init.zeros_(embed.linear.bias)
    built.double()
    built.student_memory.copy_(0.3 * s(10, 5))
    built.teacher_memory.copy_(0.3 * t(10, 5))
    return built


def test_reference() -> None:
    adapter, index = identity_memory(), torch.arange(4)
    contrast = torch.tensor([[0, 5, 6, 7], [1, 8, 9, 4], [2, 4, 5, 9], [3, 6, 8, 7]])
    for key in ("crd first call", "crd second call"):
        loss = adapter(s(4, 5), t(4, 5), index, index, contrast)
        assert loss.item() == pytest.approx(VALUES[key], rel=1e-6)  # the original keeps its temperature in float32


def test_by_hand() -> None:
    """One negative in a memory of two, all scores 1: log 3 for the positive, log 3 for the negative, on both sides."""
    ones = torch.ones(4, 2, dtype=torch.float64)
    expected = 2 * (math.log(1.5) + math.log(3))
    assert crd_loss(ones, ones, num_samples=2).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("mode", ["exact", "relax"])
def test_draws(mode: Any) -> None:
    adapter, index = memory(mode=mode), torch.arange(0, 60, 2)
    contrast = adapter.draw(index, LABELS[index])
    assert contrast.shape == (30, 31)
    positive, negative = contrast[:, 0], contrast[:, 1:]
    assert (LABELS[negative] != LABELS[index][:, None]).all()
    assert all(len(row.unique()) == 30 for row in negative)
    assert (LABELS[positive] == LABELS[index]).all()
    assert (positive == index).all() == (mode == "exact")


def test_draws_are_uniform_and_with_replacement_only_where_needed() -> None:
    table = ClassTable(12, 2)
    table.fill(torch.tensor([0] * 4 + [1] * 8).flip(0))
    label = torch.tensor([0, 1]).repeat_interleave(2000)
    drawn = table.others(
        label, 6, Draws(torch.tensor(5), torch.tensor(0), 0)
    )  # 8 others for class 0, only 4 for class 1
    rare, often = drawn[label == 1], drawn[label == 0]
    assert set(rare.flatten().tolist()) == {8, 9, 10, 11}
    assert (often.sort(dim=1).values.diff(dim=1) > 0).all()
    for rows, count in ((rare, 4), (often, 8)):
        share = torch.bincount(rows.flatten(), minlength=12).float() / rows.numel()
        torch.testing.assert_close(share[share > 0], torch.full((count,), 1 / count), rtol=0.08, atol=0)


def test_draws_are_a_function_of_seed_and_call() -> None:
    index = torch.arange(8)
    first, again, other = (memory(seed).draw(index, LABELS[index]) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    adapter = memory(0)
    call(adapter, index)
    assert not torch.equal(adapter.draw(index, LABELS[index]), first)
    torch.rand(3)  # the global stream has no part in it
    assert torch.equal(adapter.draw(index, LABELS[index]), adapter.draw(index, LABELS[index]))


def test_resumed_state_goes_on_alike() -> None:
    """The state dict alone, read into a memory that never saw the labels, continues bit for bit."""
    adapter, index = memory(0), torch.arange(8)
    call(adapter, index)
    resumed = memory(1, labels=None)
    resumed.load_state_dict(copy.deepcopy(adapter.state_dict()))
    assert call(resumed, index) == call(adapter, index)
    assert torch.equal(resumed.student_memory, adapter.student_memory)


def test_memory_takes_up_the_batch_in_training_only() -> None:
    adapter, index = memory(), torch.tensor([3, 50])
    before = adapter.student_memory.clone()
    adapter.eval()
    call(adapter, index)
    assert torch.equal(adapter.student_memory, before) and adapter.calls == 0 and (adapter.constants < 0).all()
    adapter.train()
    call(adapter, index)
    changed = (adapter.student_memory != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [3, 50] and adapter.calls == 1
    torch.testing.assert_close(adapter.student_memory[index].norm(dim=1), torch.ones(2))
    constants = adapter.constants.clone()
    call(adapter, index)
    assert torch.equal(adapter.constants, constants)


@pytest.mark.parametrize("index", [[-1, 5], [5, -1], [-1]])
def test_padding_samples_change_nothing(index: list[int]) -> None:
    adapter = memory()
    call(adapter, torch.tensor([1, 2]))
    before = adapter.student_memory.clone()
    assert call(adapter, torch.tensor(index)).isfinite()
    changed = (adapter.student_memory != before).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [i for i in index if i >= 0]


def test_gradients_reach_student_and_both_embeddings() -> None:
    strategy, adapter = CRD(), memory()
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 7, requires_grad=True)
    index = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 1, 1), LABELS[index], index)
    strategy.loss(make_features(pooled=student), make_features(pooled=teacher), batch, adapter).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0 and teacher.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter.parameters())


def test_labels_come_from_the_data_module() -> None:
    adapter, strategy = memory(labels=None), CRD()
    module: Any = SimpleNamespace(adapter_of=lambda _: adapter)
    with pytest.raises(RuntimeError, match="labels"):
        adapter.draw(torch.arange(2), LABELS[:2])
    with pytest.raises(UserError, match="data module with train_labels"):
        strategy.on_fit_start(SimpleNamespace(datamodule=None), module)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="60 training images, the data have 9"):
        strategy.on_fit_start(SimpleNamespace(datamodule=SimpleNamespace(train_labels=LABELS[:9])), module)  # type: ignore[arg-type]
    strategy.on_fit_start(SimpleNamespace(datamodule=SimpleNamespace(train_labels=LABELS)), module)  # type: ignore[arg-type]
    assert torch.equal(adapter.table.labels, LABELS)


def test_errors() -> None:
    with pytest.raises(UserError, match="num_samples"):
        CRD().build(shapes(), shapes(), DataInfo(3))
    with pytest.raises(UserError, match="exact or relax"):
        CRD(mode="other")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="all training images have one label"):
        memory(labels=torch.zeros(60).long())


def side(embedding: Array, bank: Array, index: Array, others: Array, constant: float | None) -> tuple[float, float]:
    """One side's loss at temperature 0.5, and its constant, which the first call fixes."""
    positive = np.exp((embedding * bank[index]).sum(1, keepdims=True) / 0.5)
    negative = np.exp(np.einsum("bd,bkd->bk", embedding, bank[others]) / 0.5)
    scores = np.concatenate([positive, negative], 1)
    constant = scores.mean() * len(bank) if constant is None else constant
    x, c = scores / constant, others.shape[1] / len(bank)
    terms = np.log(x[:, 0] / (x[:, 0] + c + 1e-7)).sum() + np.log(c / (x[:, 1:] + c + 1e-7)).sum()
    return -terms / len(x), constant


def test_loss_equals_numpy() -> None:
    """Two calls on the pooled features; with as many negatives as there are other images the draw leaves no choice.

    The momentum is not the half under which old and new could change places.
    """
    strategy = CRD(dim=3, negatives=8, temperature=0.5, momentum=0.9)
    features = full_features(1, (4, 2, 2), width=6), full_features(2, (3, 2, 2), width=5)
    labels, index = torch.arange(12) % 3, torch.tensor([7, 0, 5, 3])
    with seeded(0):
        adapter = strategy.build(shapes(width=6), shapes(width=5), DataInfo(3, 12))
    assert isinstance(adapter, ContrastMemory)
    adapter.double().table.fill(labels)
    batch = Batch(torch.zeros(4, 3, 1, 1), labels[index], index)
    values = arrays(adapter)
    banks = [values["student_memory"], values["teacher_memory"]]
    u, v = (
        unit(x.pooled.numpy() @ values[f"embed_{who}.linear.weight"].T + values[f"embed_{who}.linear.bias"], 1)
        for who, x in zip(("student", "teacher"), features, strict=True)
    )
    others = np.array([[i for i in range(12) if i % 3 != int(own) % 3] for own in index])
    constants: list[float | None] = [None, None]
    for _ in range(2):
        rows = index.numpy()
        one, constants[0] = side(u, banks[1], rows, others, constants[0])
        two, constants[1] = side(v, banks[0], rows, others, constants[1])
        loss = strategy.loss(*features, batch, adapter)
        assert loss.item() == pytest.approx(one + two, rel=1e-9)
        for bank, new in zip(banks, (u, v), strict=True):
            bank[rows] = unit(0.9 * bank[rows] + 0.1 * new, 1)
        after = arrays(adapter)
        np.testing.assert_allclose(after["student_memory"], banks[0], rtol=1e-10)
        np.testing.assert_allclose(after["teacher_memory"], banks[1], rtol=1e-10)
        np.testing.assert_allclose(after["constants"], constants, rtol=1e-10)


@pytest.mark.parametrize("dim", [3, 12])
def test_memories_start_uniform_within_their_bound(dim: int) -> None:
    """Between plus and minus the square root of 3 / dim, so that a row's length is about 1; the two differ."""
    with seeded(0):
        built = CRD(dim=dim).build(shapes(), shapes(), DataInfo(3, 4000))
    assert isinstance(built, ContrastMemory)
    bound = math.sqrt(3 / dim)
    for bank in (built.student_memory, built.teacher_memory):
        assert 0.99 * bound < bank.max() <= bound and 0.99 * bound < -bank.min() <= bound
        assert bank.square().sum(1).mean().item() == pytest.approx(1, rel=0.03)
    assert not torch.equal(built.student_memory, built.teacher_memory)


def test_defaults_reach_the_memory() -> None:
    built = CRD().build(shapes(width=5), shapes(width=7), DataInfo(3, 60))
    assert isinstance(built, ContrastMemory)
    assert (built.negatives, built.temperature, built.momentum, built.mode) == (16384, 0.07, 0.5, "exact")
    assert built.embed_student.linear.weight.shape == (128, 5) and built.embed_teacher.linear.weight.shape == (128, 7)
    assert built.student_memory.shape == built.teacher_memory.shape == (60, 128)
