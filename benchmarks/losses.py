"""Time and memory of every method's loss beside a literal writing of its formula, one table.

    python benchmarks/losses.py [--device cuda] [--batch 64] [--methods nst crd]

Features are random, in the shapes of resnet32x4 (teacher) and resnet8x4 (student), which agree. Measured is the loss
with its trainable parts, forward and backward: the median time, and how far the peak memory lies above the inputs.
Every measurement runs in a process of its own.

The last column compares the two values. CRD's differs by 1e-4 to 1e-3, since each side draws its own negatives, and
PKT's by 1e-4 or so, the rounding of its terms, which cancel; the tests compare on given negatives and in float64.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common import CLASSES, wait_for
from ickd_pl.data.batch import Batch, DataInfo
from ickd_pl.models.features import Features, FeatureShapes
from ickd_pl.strategies import discover
from ickd_pl.strategies.crd import ContrastMemory

IMAGES = 50_000


def features(batch: int, device: str, seed: int) -> Features:
    """Random features of resnet8x4, positive as after a ReLU."""
    draws = torch.Generator().manual_seed(seed)

    def positive(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=draws).relu().to(device)

    stages = (positive(64, 32, 32), positive(128, 16, 16), positive(256, 8, 8))
    preact = tuple(torch.randn(x.shape, generator=draws).to(device) for x in stages)
    logits = torch.randn(batch, CLASSES, generator=draws).to(device)
    return Features(logits, positive(32, 32, 32), stages, stages[-1], positive(256), preact)


def leaves(f: Features) -> list[Tensor]:
    return [f.logits, f.stem, *f.stages, f.pooled, *(f.preact or ())]


# -- literal writings: the formulas as they stand, term by term -------------------------------------------------------


def unit(x: Tensor, dim: int) -> Tensor:
    return x / x.pow(2).sum(dim, keepdim=True).sqrt().clamp_min(1e-12)


def kd(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    p, q = (t.logits / 4).softmax(1), (s.logits / 4).softmax(1)
    return 16 * (p * (p / q).log()).sum() / len(p)


def dkd(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    own = F.one_hot(batch.label, s.logits.shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        p = (logits / 4).softmax(1)
        pair = torch.stack([p[own], p.masked_fill(own, 0).sum(1)], 1)
        return pair, (logits / 4).masked_fill(own, -1000).softmax(1)

    (b, q), (c, r) = split(t.logits), split(s.logits)
    rest = (q * ((q + own) / (r + own)).log()).sum()
    return 16 * ((b * (b / c).log()).sum() + 8 * rest) / len(b)


def fitnet(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    return (adapter(s.stages[1]) - t.stages[1]).pow(2).mean()


def at(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def q(x: Tensor) -> Tensor:
        return unit(x.abs().pow(2).mean(1).flatten(1), 1)

    return torch.stack([(q(a) - q(b)).pow(2).mean() for a, b in zip(s.stages, t.stages, strict=True)]).sum()


def sp(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    a, b = (unit(x.flatten(1) @ x.flatten(1).T, 1) for x in (s.stages[-1], t.stages[-1]))
    return (a - b).pow(2).sum() / len(a) ** 2


def cc(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    d = (adapter["student"](s.pooled) - adapter["teacher"](t.pooled)).abs()
    return (d[:-1] * d[1:]).sum(1).mean()


def vid(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    terms = []
    for head, a, b in zip(adapter, s.stages, t.stages, strict=True):
        variance = ((1 + head.log_scale.exp()).log() + 1e-5).view(1, -1, 1, 1)
        terms.append((0.5 * ((head(a) - b).pow(2) / variance + variance.log())).mean())
    return torch.stack(terms).sum()


def rkd(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def distances(x: Tensor) -> Tensor:
        square = x.pow(2).sum(1)
        d = (square[:, None] + square[None] - 2 * x @ x.T).clamp_min(1e-12).sqrt() * (1 - torch.eye(len(x)).to(x))
        return d / d[d > 0].mean()

    def angles(x: Tensor) -> Tensor:
        e = unit(x[None] - x[:, None], 2)
        return torch.bmm(e, e.transpose(1, 2))

    distance = F.smooth_l1_loss(distances(s.pooled), distances(t.pooled))
    return 25 * distance + 50 * F.smooth_l1_loss(angles(s.pooled), angles(t.pooled))


def pkt(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def p(x: Tensor) -> Tensor:
        u = x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-7)
        g = (u @ u.T + 1) / 2
        return g / g.sum(1, keepdim=True)

    a, b = p(s.pooled), p(t.pooled)
    return (b * ((b + 1e-7) / (a + 1e-7)).log()).mean()


def fsp(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def flow(a: Tensor, b: Tensor) -> Tensor:
        a = F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3]))
        return (a.flatten(2)[:, :, None] * b.flatten(2)[:, None]).mean(-1)

    maps = [(f.stem, *f.stages) for f in (s, t)]
    pairs = zip(maps[0], maps[0][1:], maps[1], maps[1][1:], strict=False)
    return torch.stack([(flow(a, b) - flow(c, d)).pow(2).mean() for a, b, c, d in pairs]).sum()


def nst(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, :, None] * b[:, None]).sum(-1).pow(2).mean()

    terms = []
    for a, b in zip(s.stages, t.stages, strict=True):
        x, y = unit(a.flatten(2), 2), unit(b.flatten(2), 2)
        terms.append(kernel(y, y).detach() + kernel(x, x) - 2 * kernel(x, y))
    return torch.stack(terms).sum()


def ab(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    terms = []
    for power, a, b in zip((-2, -1, 0), s.preact or (), t.preact or (), strict=True):
        low = (a + 1).pow(2) * ((a > -1) & (b <= 0)).float()
        high = (a - 1).pow(2) * ((a <= 1) & (b > 0)).float()
        terms.append(2.0**power * (low + high).abs().sum())
    return 3 / 1000 * torch.stack(terms).sum() / len(s.logits)


def ft(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def factor(x: Tensor) -> Tensor:
        return unit(x.pow(2).mean(1).flatten(1), 1)

    target = adapter.paraphraser.encoder(t.stages[-1]).detach()
    return (factor(adapter.translator(s.stages[-1])) - factor(target)).abs().mean()


def crd(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    labels = adapter.table.labels
    rows = []
    for index, label in zip(batch.index, batch.label, strict=True):
        others = (labels != label).nonzero().flatten()
        rows.append(torch.cat([index[None], others[torch.randperm(len(others), device=others.device)[:16384]]]))
    contrast = torch.stack(rows)
    embedded = (unit(adapter.embed_student(s.pooled), 1), unit(adapter.embed_teacher(t.pooled), 1))
    loss, c = torch.zeros((), device=labels.device), 16384 / IMAGES
    for x, memory in zip(embedded, (adapter.teacher_memory, adapter.student_memory), strict=True):
        h = (torch.bmm(memory[contrast], x[:, :, None])[..., 0] / 0.07).exp()
        h = h / (h.mean() * IMAGES).detach()
        terms = (h[:, 0] / (h[:, 0] + c + 1e-7)).log().sum() + (c / (h[:, 1:] + c + 1e-7)).log().sum()
        loss = loss - terms / len(h)
    for x, memory in zip(embedded, (adapter.student_memory, adapter.teacher_memory), strict=True):
        memory[batch.index] = unit(0.5 * memory[batch.index] + 0.5 * x.detach(), 1)
    return loss


def kdsvd(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def vectors(x: Tensor, count: int) -> Tensor:
        v = torch.linalg.svd(x.flatten(2).transpose(1, 2), full_matrices=False)[2].transpose(1, 2)[:, :, :count]
        return v * torch.where(v.sum(1, keepdim=True) < 0, -1.0, 1.0)

    found = []
    for a, b in zip(s.stages, t.stages, strict=True):
        u, v = vectors(a, 4), vectors(b, 1)
        cosine = u.transpose(1, 2) @ v
        best = cosine.abs() == cosine.abs().amax(1, keepdim=True)
        found.append((u @ (best * cosine.sign()), v))
    terms = []
    for (u0, v0), (u1, v1) in pairwise(found):
        x, y = ((-(b[:, :, None] - a[:, None]).pow(2) / 8).exp() for a, b in ((u0, u1), (v0, v1)))
        terms.append((x - y).pow(2).sum() / len(u0))
    return torch.stack(terms).sum()


def ickd(s: Features, t: Features, batch: Batch, adapter: Any) -> Tensor:
    def icc(x: Tensor) -> Tensor:
        x = x.flatten(2)
        return unit(torch.bmm(x, x.transpose(1, 2)), 2)

    d = icc(adapter(s.final)) - icc(t.final)
    return d.pow(2).sum() / (d.shape[0] * d.shape[1])


LITERAL: dict[str, Callable[..., Tensor]] = {
    f.__name__: f for f in (kd, dkd, fitnet, at, sp, cc, vid, rkd, pkt, fsp, nst, ab, ft, crd, kdsvd, ickd)
}


# -- measurement -------------------------------------------------------------------------------------------------------


def measure(name: str, form: str, batch_size: int, device: str, repeats: int) -> tuple[float, float, float]:
    """Median time in ms, memory above the inputs in MiB, and the value of the first call."""
    torch.manual_seed(0)
    s, t = features(batch_size, device, 0), features(batch_size, device, 1)
    labels = torch.arange(IMAGES) % CLASSES
    index = torch.arange(batch_size, device=device)
    batch = Batch(torch.zeros(batch_size, 3, 1, 1, device=device), labels.to(device)[index], index)
    strategy = discover()[name]()
    shapes = [FeatureShapes.of(f"net {i}", f) for i, f in enumerate((s, t))]
    adapter = strategy.build(shapes[0], shapes[1], DataInfo(CLASSES, IMAGES))
    if isinstance(adapter, ContrastMemory):
        adapter.table.fill(labels)
    if adapter is not None:
        adapter.to(device)
    ours = strategy.pretrain_loss if name in {"fsp", "ab"} else strategy.loss
    loss = ours if form == "ours" else LITERAL[name]
    for leaf in leaves(s):
        leaf.requires_grad_()

    def step() -> float:
        value = loss(s, t, batch, adapter)
        value.backward()
        for leaf in [*leaves(s), *(adapter.parameters() if adapter is not None else ())]:
            leaf.grad = None
        return value.item()

    before = memory(device)
    value = step()
    used = memory(device) - before
    times = []
    for _ in range(repeats):
        wait_for(device)
        start = time.perf_counter()
        step()
        wait_for(device)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times), used / 2**20, value


def memory(device: str) -> float:
    """Peak memory so far, in bytes: of the device, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=sorted(LITERAL), choices=sorted(LITERAL), metavar="METHOD")
    parser.add_argument("--form", choices=["ours", "literal"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        print(*measure(args.methods[0], args.form, args.batch, args.device, args.repeats))
        return
    where = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    print(f"batch {args.batch}, {where}, torch {torch.__version__}\n")
    print("| method | ms | ms, literal | faster | MiB | MiB, literal | relative difference |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in args.methods:
        rows = []
        for form in ("ours", "literal"):
            options = ["--methods", name, "--form", form, "--batch", str(args.batch), "--device", args.device]
            command = [sys.executable, __file__, *options, "--repeats", str(args.repeats)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append([float(word) for word in output.split()[-3:]])
        (a, m, v), (b, n, w) = rows
        print(
            f"| {name} | {a:.1f} | {b:.1f} | {b / a:.1f} | {m:.0f} | {n:.0f} | {abs(v - w) / abs(w):.0e} |", flush=True
        )


if __name__ == "__main__":
    main()
