"""Two gloo ranks train every method for one epoch of each stage; run by test_contract.py, not collected by pytest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch.nn.functional import normalize

from ickd_pl import Digits, DistillationModule
from ickd_pl.seeding import seeded
from ickd_pl.strategies import discover
from ickd_pl.strategies.crd import CRD, ContrastMemory

SAMPLES = 41  # the last global batch of 9 is shared as 5 and 4


class Environment(LightningEnvironment):
    """Ranks given by torch.multiprocessing."""

    def __init__(self, rank: int, port: int) -> None:
        super().__init__()
        self._rank = rank
        self._main_port = port

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return self._rank


def check_contrast(rank: int) -> None:
    """CRD on a batch shared as 5 and 4: constants and memories as one process has them, other draws on each rank."""
    labels = torch.arange(30) % 3
    with seeded("contrast"):
        whole = ContrastMemory(6, 5, 30, 3, CRD(dim=4, negatives=7, momentum=0.9))
        student, teacher = torch.randn(9, 6), torch.randn(9, 5)
        index, contrast = torch.randperm(30)[:9], torch.randint(30, (9, 8))
    whole.table.fill(labels)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    own = slice(0, 5) if rank == 0 else slice(5, 9)
    draws = whole.draw(index[:4], labels[index[:4]])  # of the same images
    gathered = [torch.empty_like(draws) for _ in range(2)]
    dist.all_gather(gathered, draws)
    assert not torch.equal(*gathered), "CRD: both ranks draw the same negatives"
    whole(student[own], teacher[own], index[own], labels[index[own]], contrast[own])
    u, v = normalize(whole.embed_student(student)), normalize(whole.embed_teacher(teacher))
    scores = [
        (embedding[:, None] * before[bank][contrast]).sum(2).div(0.07).exp()
        for embedding, bank in ((u, "teacher_memory"), (v, "student_memory"))
    ]
    torch.testing.assert_close(whole.constants, torch.stack([x.mean() * 30 for x in scores]))
    for bank, new in (("student_memory", u), ("teacher_memory", v)):
        expected = before[bank].clone()
        expected[index] = normalize(0.9 * expected[index] + 0.1 * new)
        torch.testing.assert_close(getattr(whole, bank), expected)


def rank_main(rank: int, weights: str, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    equal = []
    for name, cls in sorted(discover().items()):
        strategy = cls(pretrain_epochs=1) if cls().pretrain_epochs else cls()  # type: ignore[call-arg]
        module = DistillationModule(
            "resnet8", "resnet8", weights, strategies=[strategy], num_classes=10, num_samples=SAMPLES
        )
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", devices=2, default_root_dir=folder, limit_val_batches=0, logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            use_distributed_sampler=False,
            strategy=DDPStrategy(cluster_environment=Environment(rank, port), process_group_backend="gloo"),
        )  # fmt: skip
        trainer.fit(module, Digits(batch_size=16, train_size=SAMPLES))
        if not strategy.pretrain_epochs:
            assert not trainer.strategy._ddp_kwargs.get("find_unused_parameters", False)
        vector = torch.cat(
            [p.detach().flatten() for p in (*module.student.parameters(), *module.adapters.parameters())]
        )
        memory = [b.flatten().float() for key, b in module.adapters.named_buffers() if "running" not in key]
        vector = torch.cat([vector, *memory])
        other = vector.clone()
        dist.broadcast(other, src=0)
        assert torch.equal(vector, other), f"{name}: the ranks differ"
        equal.append(name)
    check_contrast(rank)
    if rank == 0:
        print(f"equal: {','.join(equal)}", flush=True)
    # Spawned processes run no exit handlers: a group left open may abort while its threads still wait.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    Path(sys.argv[2]).mkdir(exist_ok=True)
    mp.spawn(rank_main, args=(sys.argv[1], sys.argv[2], port), nprocs=2)  # type: ignore[no-untyped-call]
