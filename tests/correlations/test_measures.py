"""Correlation matrices against plain loops, the start against the module's, and what the figure shows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ickd_pl import DistillationModule, get_model
from ickd_pl.correlations import measures as correlations
from ickd_pl.correlations.figure import Comparison, draw, write_picture
from ickd_pl.correlations.inputs import Request, read_inputs, read_run
from ickd_pl.correlations.measures import (
    Subject,
    View,
    compare,
    likeness_order,
    logit_correlation,
    mean_absolute_difference,
    mean_channel_correlation,
    mean_ickd_loss,
    recalibrate_batch_norm,
)
from ickd_pl.errors import UserError
from ickd_pl.models import FeatureNet
from ickd_pl.seeding import seeded
from ickd_pl.strategies.components.regressors import ConvBN
from ickd_pl.strategies.ickd import ickd_loss
from tests.runs.helpers import Run, load


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(name: str) -> FeatureNet:
    with seeded("test", name):
        return get_model(name, 4).eval()


def looped(maps: Tensor) -> Any:
    """The matrices of all images, entry by entry."""
    out = np.zeros((maps.shape[0], maps.shape[1], maps.shape[1]))
    for b, image in enumerate(maps.double().numpy()):
        for i, one in enumerate(image):
            for j, other in enumerate(image):
                out[b, i, j] = sum(one[y, x] * other[y, x] for y in range(one.shape[0]) for x in range(one.shape[1]))
            length = np.sqrt((out[b, i] ** 2).sum())
            out[b, i] /= length if length else 1.0
    return out


# -- tensors in, matrices out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2 * 5**2, 2**24])  # an image at a time, two, all
def test_channels_agree_with_a_loop(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(correlations, "ENTRIES_AT_ONCE", at_once)
    maps = random(7, 5, 3, 4)
    maps[2, 1] = 0  # a dead channel: a row of zeros, no NaN
    got = mean_channel_correlation(maps)
    assert got.dtype == torch.float64
    assert np.allclose(got.numpy(), looped(maps).mean(axis=0), atol=1e-6)
    assert (got - got.T).abs().max() > 0.01


@pytest.mark.parametrize("at_once", [2 * 5**2, 2**24])
def test_the_loss_is_that_of_every_image(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(correlations, "ENTRIES_AT_ONCE", at_once)
    ours, theirs = random(7, 5, 3, 4), random(7, 5, 2, 2, seed=1)
    expected = ((looped(ours) - looped(theirs)) ** 2).sum() / (7 * 5)
    assert mean_ickd_loss(ours, theirs) == pytest.approx(expected, rel=1e-5)
    assert mean_ickd_loss(ours, theirs) == pytest.approx(float(ickd_loss(ours, theirs)), rel=1e-5)


def test_logits_agree_with_numpy() -> None:
    logits = random(50, 6) @ random(6, 6, seed=1) + 100
    got = logit_correlation(logits)
    assert np.allclose(got.numpy(), np.corrcoef(logits.double().numpy().T), atol=1e-12)
    assert got.abs().max() <= 1


def test_a_logit_that_never_changes_correlates_with_nothing() -> None:
    logits = random(50, 3)
    logits[:, 1] = 0.1
    got = logit_correlation(logits)
    assert got[1].tolist() == got[:, 1].tolist() == [0, 0, 0]
    assert got[0, 2].item() == pytest.approx(np.corrcoef(logits[:, 0], logits[:, 2])[0, 1], abs=1e-6)


def test_wrong_tensors_are_one_line() -> None:
    for wrong in (
        lambda: mean_channel_correlation(random(4, 5)),
        lambda: logit_correlation(random(1, 5)),
        lambda: logit_correlation(random(2, 5, 1)),
        lambda: mean_absolute_difference(random(3, 3), random(4, 4)),
    ):
        with pytest.raises(UserError, match=r"expected|at least 2") as error:
            wrong()
        assert "\n" not in str(error.value)


def test_the_mean_absolute_difference() -> None:
    one, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 3.0], [1.0, 4.0]])
    assert mean_absolute_difference(one, other) == mean_absolute_difference(other, one) == 0.75


def test_the_order_brings_groups_together() -> None:
    """Three groups of alike channels, shuffled, with two that are alike to none."""
    group = torch.tensor([0] * 6 + [1] * 5 + [2] * 4)
    matrix = torch.full((17, 17), 0.0)
    matrix[:15, :15] = 0.05 + 0.5 * (group[:, None] == group).float()
    shuffled = torch.randperm(17, generator=torch.Generator().manual_seed(3))
    order = likeness_order(matrix[shuffled][:, shuffled])
    assert order.sort().values.tolist() == list(range(17))
    found = shuffled[order].tolist()
    assert sorted(found[15:]) == [15, 16]
    groups = group[torch.tensor(found[:15])].tolist()
    assert sum(a != b for a, b in pairwise(groups)) == 2, groups


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_order_of_few_channels(size: int) -> None:
    for matrix in (torch.eye(size), torch.ones(size, size), torch.zeros(size, size)):
        assert likeness_order(matrix).sort().values.tolist() == list(range(size))


# -- networks in -------------------------------------------------------------------------------------------------------


def test_networks_are_seen_the_same_in_any_batches() -> None:
    teacher, student = network("resnet20"), network("resnet8")
    adapter = ConvBN(64, 64).eval()
    images = random(9, 3, 32, 32)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    whole = compare([images], teacher, {"plain": Subject(student), "adapted": Subject(student, adapter)})
    parts = compare(images.split(4), teacher, {"plain": Subject(student), "adapted": Subject(student, adapter)})
    for one, other in zip((whole[0], *whole[1].values()), (parts[0], *parts[1].values()), strict=True):
        assert torch.allclose(one.channels, other.channels, atol=1e-6)
        assert torch.allclose(one.classes, other.classes, atol=1e-5)
        assert (one.loss or 0) == pytest.approx(other.loss or 0, rel=1e-4)
    with torch.no_grad():
        theirs, ours = teacher.features(images), student.features(images)
        assert torch.allclose(whole[0].channels, mean_channel_correlation(theirs.final), atol=1e-6)
        adapted = whole[1]["adapted"]
        assert torch.allclose(adapted.channels, mean_channel_correlation(adapter(ours.final)), atol=1e-6)
        assert torch.allclose(adapted.classes, logit_correlation(ours.logits), atol=1e-5)
        assert adapted.loss == pytest.approx(float(ickd_loss(adapter(ours.final), theirs.final)), rel=1e-4)
    assert whole[0].loss is None
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


def test_other_channel_counts_have_no_loss_and_one_image_is_too_few() -> None:
    teacher, student = network("resnet8x4"), Subject(network("resnet8"))
    seen, students = compare([random(3, 3, 32, 32)], teacher, {"s": student})
    assert (seen.channels.shape, students["s"].channels.shape, students["s"].loss) == ((256, 256), (64, 64), None)
    with pytest.raises(UserError, match="at least 2 images, got 1"):
        compare([random(1, 3, 32, 32)], teacher, {"s": student})


def test_settling_sets_the_statistics_and_nothing_else() -> None:
    net, adapter = network("resnet8"), ConvBN(64, 8).eval()
    batches = [random(5, 3, 32, 32, seed=seed) for seed in range(3)]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    recalibrate_batch_norm([adapter], batches, Subject(net, adapter))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    with torch.no_grad():
        maps = [adapter.conv(net.features(batch).final) for batch in batches]
    expected = torch.stack([m.mean(dim=(0, 2, 3)) for m in maps]).mean(dim=0)
    assert torch.allclose(adapter.bn.running_mean, expected, atol=1e-5)

    recalibrate_batch_norm([net], batches, Subject(net))
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in changed)
    norms = [m for part in (net, adapter) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(not norm.training and norm.momentum == 0.1 for norm in norms)


@pytest.mark.parametrize("methods", [["ICKD", "KD"], ["KD", "ICKD"]])
def test_the_start_is_that_of_the_run(student: Run, methods: list[str]) -> None:
    """Made from names and a seed alone; equal to what the module begins with, whatever stands before ICKD."""
    content = load(student.last)
    hyper = content["hyper_parameters"]
    hyper["strategies"].sort(key=lambda spec: methods.index(spec["class_path"].rpartition(".")[2]))
    hyper["seed"] = 5
    torch.save(content, "other.ckpt")
    module = DistillationModule(**hyper)
    checkpoint = read_run(Path("other.ckpt"))
    start = checkpoint.start(checkpoint.adapter(64))
    assert start.adapter is not None
    for ours, theirs in ((start.net, module.student), (start.adapter, module.adapters["ickd"])):
        pairs = zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True)
        assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    trained = checkpoint.adapter(64)
    assert trained is not None
    assert torch.equal(trained.conv.weight, content["state_dict"]["adapters.ickd.conv.weight"])
    assert checkpoint.adapter(256) is None


def test_only_what_was_never_trained_is_settled(student: Run) -> None:
    """Without it the start would be seen through batch norms that no training ever uses."""
    inputs, state = read_inputs(Request(student.last, images=4)), load(student.last)["state_dict"]
    assert inputs.before.adapter is not None
    for subject, settled in ((inputs.before, True), (inputs.after, False)):
        for part, prefix in ((subject.net, "student."), (subject.adapter, "adapters.ickd.")):
            assert part is not None
            assert not part.training
            means = {key: value for key, value in part.state_dict().items() if key.endswith("running_mean")}
            assert all((value != 0).any() for value in means.values())
            assert all(torch.equal(value, state[prefix + key]) != settled for key, value in means.items())
    assert inputs.names == ("teacher resnet20", "student before: its start, seed 0", "student after: ICKD + KD")


# -- the figure --------------------------------------------------------------------------------------------------------


def view(channels: int, classes: int, seed: int) -> View:
    maps, logits = random(4, channels, 3, 3, seed=seed), random(20, classes, seed=seed)
    return View(mean_channel_correlation(maps), logit_correlation(logits), 0.5)


def shown(student_channels: int = 6) -> Comparison:
    views = view(6, 5, 0), view(student_channels, 5, 1), view(student_channels, 5, 2)
    return Comparison(*views, title="T teaches S", names=("teacher T", "before", "after"), note="A note.")


def test_what_is_compared_shares_its_colours() -> None:
    figure = draw(shown())
    panels = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(panels) == 10
    limits = [panel.get_clim() for panel in panels]
    for first, last in ((0, 3), (3, 5), (5, 8), (8, 10)):
        assert len(set(limits[first:last])) == 1
    low, high = limits[3]
    assert (low, limits[5], limits[8][0]) == (-high, (-1.0, 1.0), 0.0)
    differences = [panel.get_array() for panel in panels[8:]]
    assert all((np.asarray(values) >= 0).all() for values in differences)


def test_the_distances_stand_above_their_panels() -> None:
    comparison = shown()
    expected = [*(comparison.channel_distances() or ()), *comparison.logit_distances()]
    assert expected[0] == pytest.approx(
        float((comparison.before.channels - comparison.teacher.channels).abs().mean()), rel=1e-12
    )
    titles = [axes.get_title() for axes in draw(comparison).axes]
    written = [title.split()[-1] for title in titles if "mean |difference|" in title]
    assert written == [f"{value:.4f}" for value in expected]


def test_all_panels_have_the_teachers_order() -> None:
    comparison = shown()
    order = likeness_order(comparison.teacher.channels)
    after = next(axes for axes in draw(comparison).axes if axes.get_title().startswith("after\n6 channels"))
    assert np.array_equal(after.images[0].get_array(), comparison.after.channels[order][:, order])


def test_without_a_common_shape_no_difference_is_shown() -> None:
    comparison = shown(student_channels=4)
    assert comparison.channel_distances() is None
    figure = draw(comparison)
    assert sum(bool(axes.images) for axes in figure.axes) == 8
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any("no difference is defined" in text for text in texts)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_same_numbers_give_the_same_file(suffix: str) -> None:
    first, again = Path(f"new/first.{suffix}"), Path(f"new/again.{suffix}")
    write_picture(shown(), first)
    write_picture(shown(), again)
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    assert len(list(Path("new").iterdir())) == 2


def test_one_channel_and_dead_networks_are_drawn() -> None:
    nothing = View(torch.zeros(1, 1, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    draw(Comparison(nothing, nothing, nothing, "", ("", "", "")))
