"""The methods of the plain loop, written as their formulas read and as the neighbours compute them.

Nothing is rearranged for speed: NST holds the products of all pairs of channels at every position, CRD gathers its
negatives from the memories one by one. Where the obvious form is a matrix product, it is one here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as f

Maps = Sequence[Tensor]
Loss = Callable[[Maps, Maps], Tensor]


class Method(NamedTuple):
    """A row: ``ce * cross entropy + kl * KL at temperature 4 + weight * loss``.

    Attributes:
        build: from the features of both networks, the part to train (or None) and the loss of their lists of features.
    """

    ce: float
    kl: float
    weight: float
    build: Callable[[Maps, Maps], tuple[nn.Module | None, Loss]] | None = None


class Softened(nn.Module):
    """KL divergence of softened class probabilities (Hinton, Vinyals, Dean, 2015)."""

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        log_p = f.log_softmax(student / self.temperature, dim=1)
        q = f.softmax(teacher / self.temperature, dim=1)
        return f.kl_div(log_p, q, reduction="sum") * self.temperature**2 / len(student)


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    own, other = student.shape[2], teacher.shape[2]
    if own > other:
        return f.adaptive_avg_pool2d(student, (other, other)), teacher
    return student, f.adaptive_avg_pool2d(teacher, (own, own)) if other > own else teacher


def fitnet(student: Maps, teacher: Maps) -> tuple[nn.Module, Loss]:
    """Romero et al., ICLR 2015: the second stage through a regressor."""
    regressor = nn.Sequential(
        nn.Conv2d(student[2].shape[1], teacher[2].shape[1], kernel_size=1),
        nn.BatchNorm2d(teacher[2].shape[1]),
        nn.ReLU(inplace=True),
    )
    return regressor, lambda s, t: f.mse_loss(regressor(s[2]), t[2])


def at(student: Maps, teacher: Maps) -> tuple[None, Loss]:
    """Zagoruyko, Komodakis, ICLR 2017."""

    def attention(maps: Tensor) -> Tensor:
        return f.normalize(maps.pow(2).mean(1).view(len(maps), -1))

    def loss(s: Maps, t: Maps) -> Tensor:
        pairs = [_same_size(a, b) for a, b in zip(s[1:-1], t[1:-1], strict=True)]
        return sum((attention(a) - attention(b)).pow(2).mean() for a, b in pairs)  # type: ignore[return-value]

    return None, loss


def sp(student: Maps, teacher: Maps) -> tuple[None, Loss]:
    """Tung, Mori, ICCV 2019."""

    def similarity(maps: Tensor) -> Tensor:
        rows = maps.reshape(len(maps), -1)
        return f.normalize(torch.mm(rows, torch.t(rows)))

    def loss(s: Maps, t: Maps) -> Tensor:
        difference = similarity(t[-2]) - similarity(s[-2])
        return (difference * difference).sum() / len(difference) ** 2

    return None, loss


class Embedding(nn.Module):
    """A linear layer, to unit length where asked."""

    def __init__(self, width: int, unit: bool, size: int = 128) -> None:
        super().__init__()
        self.linear, self.unit = nn.Linear(width, size), unit

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.view(len(x), -1))
        return x / x.pow(2).sum(1, keepdim=True).pow(0.5) if self.unit else x


def cc(student: Maps, teacher: Maps) -> tuple[nn.Module, Loss]:
    """Peng et al., ICCV 2019."""
    both = nn.ModuleList([Embedding(maps[-1].shape[1], unit=False) for maps in (student, teacher)])

    def loss(s: Maps, t: Maps) -> Tensor:
        difference = torch.abs(both[0](s[-1]) - both[1](t[-1]))
        return (difference[:-1] * difference[1:]).sum(1).mean()

    return both, loss


class Variational(nn.Module):
    """A stage of VID: the mean by three 1x1 convolutions, a variance for each channel."""

    def __init__(self, own: int, other: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(own, other, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(other, other, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(other, other, 1, bias=False),
        )
        self.scale = nn.Parameter(torch.full((other,), math.log(math.exp(5.0 - 1e-5) - 1.0)))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _same_size(student, teacher)
        variance = (torch.log(1.0 + torch.exp(self.scale)) + 1e-5).view(1, -1, 1, 1)
        return (0.5 * ((self.mean(student) - teacher) ** 2 / variance + torch.log(variance))).mean()


def vid(student: Maps, teacher: Maps) -> tuple[nn.Module, Loss]:
    """Ahn et al., CVPR 2019."""
    stages = [Variational(a.shape[1], b.shape[1]) for a, b in zip(student[1:-1], teacher[1:-1], strict=True)]

    def loss(s: Maps, t: Maps) -> Tensor:
        return sum(stage(a, b) for stage, a, b in zip(stages, s[1:-1], t[1:-1], strict=True))  # type: ignore[return-value]

    return nn.ModuleList(stages), loss


def rkd(student: Maps, teacher: Maps) -> tuple[None, Loss]:
    """Park et al., CVPR 2019: distances weighted by 25, angles by 50."""

    def distances(x: Tensor) -> Tensor:
        squares = x.pow(2).sum(1)
        found = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * x @ x.t()).clamp(min=1e-12).sqrt()
        return found * (1 - torch.eye(len(x), device=x.device))

    def relative(x: Tensor) -> Tensor:
        found = distances(x)
        return found / found[found > 0].mean()

    def angles(x: Tensor) -> Tensor:
        to = f.normalize(x.unsqueeze(0) - x.unsqueeze(1), p=2, dim=2)
        return torch.bmm(to, to.transpose(1, 2)).view(-1)

    def loss(s: Maps, t: Maps) -> Tensor:
        a, b = s[-1].view(len(s[-1]), -1), t[-1].view(len(t[-1]), -1)
        with torch.no_grad():
            wanted, wanted_angles = relative(b), angles(b)
        return 25 * f.smooth_l1_loss(relative(a), wanted) + 50 * f.smooth_l1_loss(angles(a), wanted_angles)

    return None, loss


def pkt(student: Maps, teacher: Maps) -> tuple[None, Loss]:
    """Passalis, Tefas, ECCV 2018."""

    def probabilities(x: Tensor) -> Tensor:
        unit = x / (torch.sqrt((x**2).sum(1, keepdim=True)) + 1e-7)
        unit[torch.isnan(unit)] = 0
        similarity = (torch.mm(unit, unit.t()) + 1.0) / 2.0
        return similarity / similarity.sum(1, keepdim=True)

    def loss(s: Maps, t: Maps) -> Tensor:
        own, other = probabilities(s[-1]), probabilities(t[-1])
        return (other * torch.log((other + 1e-7) / (own + 1e-7))).mean()

    return None, loss


def nst(student: Maps, teacher: Maps) -> tuple[None, Loss]:
    """Huang, Wang, 2017, with the kernel of all pairs of channels summed over the positions."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(2) * b.unsqueeze(1)).sum(-1).pow(2)  # of (B, C, C', H*W)

    def stage(s: Tensor, t: Tensor) -> Tensor:
        s, t = _same_size(s, t)
        a, b = (f.normalize(maps.flatten(2), dim=2) for maps in (s, t))
        return kernel(b, b).detach().mean() + kernel(a, a).mean() - 2 * kernel(b, a).mean()

    return None, lambda s, t: sum(stage(a, b) for a, b in zip(s[1:-1], t[1:-1], strict=True))  # type: ignore[return-value]


def ickd(student: Maps, teacher: Maps) -> tuple[nn.Module, Loss]:
    """Liu et al., ICCV 2021."""
    own, other = student[-2].shape[1], teacher[-2].shape[1]
    embed = nn.Sequential(nn.Conv2d(own, other, kernel_size=1, bias=False), nn.BatchNorm2d(other))

    def correlation(maps: Tensor) -> Tensor:
        flat = maps.view(len(maps), maps.shape[1], -1)
        return f.normalize(torch.bmm(flat, flat.permute(0, 2, 1)), dim=2)

    def loss(s: Maps, t: Maps) -> Tensor:
        difference = correlation(embed(s[-2])) - correlation(t[-2])
        return (difference * difference).view(len(difference), -1).sum() / (len(difference) * other)

    return embed, loss


METHODS = {
    "vanilla": Method(1, 0, 0),
    "kd": Method(0.1, 0.9, 0),
    "fitnet": Method(1, 0, 100, fitnet),
    "at": Method(1, 0, 1000, at),
    "sp": Method(1, 0, 3000, sp),
    "cc": Method(1, 0, 0.02, cc),
    "vid": Method(1, 0, 1, vid),
    "rkd": Method(1, 0, 1, rkd),
    "pkt": Method(1, 0, 30000, pkt),
    "nst": Method(1, 0, 50, nst),
    "crd": Method(1, 0, 0.8),  # with its memories, see contrast.py
    "ickd": Method(1, 0, 2.5, ickd),
    "ickd_kl": Method(1, 1, 2.5, ickd),
}
