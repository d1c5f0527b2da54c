"""The losses on their own, as in a notebook: one tensor is one stage, and shapes that do not belong together raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ickd_pl import UserError
from ickd_pl.strategies.ab import ab_loss
from ickd_pl.strategies.at import at_loss
from ickd_pl.strategies.cc import cc_loss
from ickd_pl.strategies.crd import crd_loss
from ickd_pl.strategies.dkd import dkd_loss
from ickd_pl.strategies.fitnet import fitnet_loss
from ickd_pl.strategies.fsp import fsp_loss
from ickd_pl.strategies.ft import ft_loss, reconstruction_loss
from ickd_pl.strategies.ickd import ickd_loss
from ickd_pl.strategies.kd import kd_loss
from ickd_pl.strategies.kdsvd import kdsvd_loss
from ickd_pl.strategies.nst import nst_loss
from ickd_pl.strategies.pkt import pkt_loss
from ickd_pl.strategies.rkd import rkd_loss
from ickd_pl.strategies.sp import sp_loss
from ickd_pl.strategies.vid import vid_loss
from tests.strategies.reference import s, t

Loss = Callable[..., Tensor]


def vid(student: Any, teacher: Any) -> Tensor:
    """With one scale for each map."""
    scales = [
        torch.ones(x.shape[1], dtype=torch.float64) for x in ([student] if isinstance(student, Tensor) else student)
    ]
    return vid_loss(student, scales[0] if isinstance(student, Tensor) else scales, teacher)


def dkd(student: Tensor, teacher: Tensor) -> Tensor:
    return dkd_loss(student, teacher, torch.arange(4) % 2)


def crd(student: Tensor, teacher: Tensor) -> Tensor:
    return crd_loss(student.abs() + 0.1, teacher.abs() + 0.1, 50)


BY_STAGE: dict[str, Loss] = {"ab": ab_loss, "at": at_loss, "nst": nst_loss, "vid": vid}
CONSECUTIVE: dict[str, Loss] = {"fsp": fsp_loss, "kdsvd": kdsvd_loss}
ONE_MAP: dict[str, Loss] = {"fitnet": fitnet_loss, "ft": ft_loss, "ickd": ickd_loss, "rebuilt": reconstruction_loss}
VECTORS: dict[str, Loss] = {
    "cc": cc_loss, "crd": crd, "dkd": dkd, "kd": kd_loss, "pkt": pkt_loss, "rkd": rkd_loss, "sp": sp_loss
}  # fmt: skip
ALL = {**BY_STAGE, **CONSECUTIVE, **ONE_MAP, **VECTORS}
MAP = (4, 6, 4, 4)
# What two tensors may differ in, beside nothing.
CHANNELS_MAY_DIFFER = {"at", "nst", "ft", "pkt", "rkd", "sp"}
SIZES_MAY_DIFFER = {"at", "nst", "ft", "ickd", "fsp", "kdsvd"}


def given(name: str, student: tuple[int, ...] = MAP, teacher: tuple[int, ...] = MAP) -> tuple[Any, Any]:
    """Inputs of a loss from shapes of maps: lists of two for those that relate stages, vectors where it takes them."""
    a, b = s(*student), t(*teacher)
    if name in CONSECUTIVE:
        return [a, 2 * a], [b, 3 * b]
    if name in VECTORS:
        return a[:, :, 0, 0], b[:, :, 0, 0]
    return a, b


def refusal(name: str, student: Any, teacher: Any) -> str:
    with pytest.raises(UserError) as caught:
        ALL[name](student, teacher)
    assert "\n" not in str(caught.value) and "_loss" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BY_STAGE)
def test_a_tensor_alone_is_one_stage(name: str) -> None:
    loss, a, b = BY_STAGE[name], s(*MAP), t(*MAP)
    assert torch.equal(loss(a, b), loss([a], [b]))
    assert loss(a, b) > 0
    two = loss([a, a], [b, b])  # not what a tensor of two images gives
    assert not torch.allclose(loss(a[:2], b[:2]), two)


@pytest.mark.parametrize("name", CONSECUTIVE)
def test_relations_of_stages_need_two(name: str) -> None:
    expected = f"{name}_loss: expected 2 stages or more, as many of each of student, teacher, got 1 and 1"
    assert refusal(name, s(*MAP), t(*MAP)) == expected
    assert refusal(name, [s(*MAP)], [t(*MAP)]) == expected
    assert ALL[name]([s(*MAP)] * 2, [t(*MAP)] * 2).isfinite()


@pytest.mark.parametrize("name", [*BY_STAGE, *CONSECUTIVE])
def test_lists_of_other_lengths(name: str) -> None:
    a, b = s(*MAP), t(*MAP)
    assert refusal(name, [a] * 3, [b] * 2).endswith((" got 3 and 2", " got 3 and 3 and 2"))
    assert refusal(name, (a, a), [b] * 3).endswith((" got 2 and 3", " got 2 and 2 and 3"))
    assert "expected" in refusal(name, [], [])


@pytest.mark.parametrize("name", ALL)
def test_other_batches_do_not_broadcast(name: str) -> None:
    for student, teacher in (((1, 6, 4, 4), MAP), (MAP, (1, 6, 4, 4))):
        message = refusal(name, *given(name, student, teacher))
        assert "(4, 6" in message and "(1, 6" in message


@pytest.mark.parametrize("name", ALL)
def test_channels(name: str) -> None:
    """One channel or class would broadcast; three are simply others."""
    for channels in (1, 3):
        inputs = given(name, MAP, (4, channels, 4, 4))
        if name in CHANNELS_MAY_DIFFER:
            assert ALL[name](*inputs).isfinite()
        else:
            assert f"(4, {channels}" in refusal(name, *inputs)


@pytest.mark.parametrize("name", sorted(set(ALL) - set(VECTORS)))
def test_sizes(name: str) -> None:
    inputs = given(name, MAP, (4, 6, 2, 2))
    if name in SIZES_MAY_DIFFER:
        assert ALL[name](*inputs).isfinite()
    else:
        assert "(4, 6, 2, 2)" in refusal(name, *inputs)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"ab", "fitnet", "rebuilt"}))
def test_other_numbers_of_dimensions(name: str) -> None:
    flat = torch.ones(4, dtype=torch.float64)
    inputs = ([flat] * 2, [flat] * 2) if name in CONSECUTIVE else (flat, flat)
    if name == "vid":
        with pytest.raises(UserError, match=r"vid_loss, stage 1: expected means \(B, C, H, W\)"):
            vid_loss(flat, flat, flat)
    else:
        assert "(4,)" in refusal(name, *inputs)


def test_messages() -> None:
    assert refusal("kd", s(4, 10), t(1, 10)) == (
        "kd_loss: expected student (B, K) and teacher (B, K), got (4, 10) and (1, 10)"
    )
    assert refusal("at", [s(*MAP)] * 2, [t(*MAP), t(1, 6, 4, 4)]) == (
        "at_loss, stage 2: expected student (B, C, H, W) and teacher (B, C', H', W'), got (4, 6, 4, 4) and (1, 6, 4, 4)"
    )
    assert refusal("sp", s(4, 6), t(3, 6, 2)) == (
        "sp_loss: expected student (B, D, ...) and teacher (B, D', ...), got (4, 6) and (3, 6, 2)"
    )
    assert refusal("kd", s(4, 10).numpy(), t(4, 10)).endswith("got ndarray and (4, 10)")
    assert (
        refusal("at", s(*MAP).numpy(), t(*MAP))
        == "at_loss: expected tensors or lists of tensors, got ndarray and Tensor"
    )
    with pytest.raises(UserError, match=r"label \(B\), got .* and \(3,\)"):
        dkd_loss(s(4, 10), t(4, 10), torch.zeros(3, dtype=torch.long))
    with pytest.raises(UserError, match=r"log_scales \(C\).*got \(4, 6, 4, 4\) and \(1,\)"):
        vid_loss(s(*MAP), torch.ones(1), t(*MAP))
    with pytest.raises(UserError, match=r"crd_loss\.num_samples: expected a whole number, 1 or more, got 0"):
        crd_loss(s(4, 6), t(4, 6), 0)
