"""The rungs of the ladder, a line of settings each, and the groups of contestants that take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# The version that the plain loop was compared with first, and every later one is.
BEFORE = "a5beefe"
ROWS = ("vanilla", "kd", "fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "ickd", "ickd_kl")
METHODS = ("vanilla", "kd", "ickd", "crd", "nst")
PAIRS = ("resnet20_resnet8", "resnet32x4_resnet8x4")
PLAIN, OLD, DEFAULTS, FAST = "plain loop", f"{BEFORE}", "defaults", "configs/fast.yaml"
# Numbers of a DataLoader's workers, of which the fastest counts.
WORKERS = (0, 1, 2)

# Any setting of glibc's allocator by the user switches the project's own off; this one changes nothing.
_OWN_ALLOCATOR = {"GLIBC_TUNABLES": "glibc.malloc.perturb=0"}


@dataclass(frozen=True)
class Contestant:
    """What takes part in a group.

    Attributes:
        label: of its row in the tables.
        kind: ``plain``, ``fit`` or ``pack``.
        settings: arguments of ``fit``.
        pack: keyword arguments of ``train_pack``.
        environment: variables of its process.
        before: it is the version BEFORE.
        separate: a process for each method, of which the times are added.
        rivals: of contestants with the same word here the fastest goes on after the first rounds.
        given: replaces what the group says, such as the batch size.
    """

    label: str
    kind: str = "fit"
    settings: tuple[str, ...] = ()
    pack: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    before: bool = False
    separate: bool = False
    rivals: str = ""
    given: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Contestants whose turns alternate, so that they can be compared with each other.

    Attributes:
        name: of its results.
        table: ``solo``, ``packed``, ``evaluation`` or ``scale``.
        pair: as in ``configs/pairs``.
        methods: as in ``configs/methods``.
    """

    name: str
    table: str
    pair: str
    methods: tuple[str, ...]
    contestants: tuple[Contestant, ...]


def _off(cuda: bool) -> list[str]:
    off = ["--model.channels_last=false", "--model.fold_teacher=false", "--model.compile=false"]
    return [*off, *(["--model.tf32=false", "--model.cuda_graphs=false"] if cuda else [])]


def _steps(cuda: bool) -> list[tuple[str, str]]:
    """Each rung of settings adds one to those before it; '' is the allocator, an environment variable."""
    return [
        *([("+ TF32", "--model.tf32=true")] if cuda else [("+ allocator", "")]),
        ("+ channels_last", "--model.channels_last=true"),
        ("+ folded teacher", "--model.fold_teacher=true"),
        ("+ bfloat16", "--trainer.precision=bf16-mixed"),
        *([("+ CUDA graph", "--model.cuda_graphs=true")] if cuda else []),
        ("+ compile", "--model.compile=true"),
    ]


def solo_rungs(cuda: bool) -> list[Contestant]:
    """Ours, from every setting off to all of them on."""
    settings, environment = _off(cuda), {} if cuda else _OWN_ALLOCATOR
    rungs = [Contestant("every setting off", settings=tuple(settings), environment=environment)]
    for label, setting in _steps(cuda):
        name = setting.partition("=")[0]
        settings = [own for own in settings if not name or own.partition("=")[0] != name] + [setting] * bool(setting)
        rungs.append(Contestant(label, settings=tuple(settings)))
    return [*rungs, Contestant(DEFAULTS), Contestant(FAST, settings=(f"--config={FAST}",))]


def plain(workers: Sequence[int] = WORKERS) -> list[Contestant]:
    return [
        Contestant(f"{PLAIN}, {n} workers", "plain", rivals=PLAIN, given={"workers": n}) for n in workers
    ]  # fmt: skip


def check_groups(pairs: Sequence[str], methods: Sequence[str]) -> list[Group]:
    """The plain loop against the version BEFORE, nothing else."""
    both = (*plain(), Contestant(OLD, before=True))
    return [Group(f"{pair} {method}", "solo", pair, (method,), both) for pair in pairs for method in methods]


def ladder_groups(pairs: Sequence[str], methods: Sequence[str], quick: bool, cuda: bool) -> list[Group]:
    """Solo runs of each method, the packed rows, and evaluations."""
    rungs = solo_rungs(cuda)
    if quick:
        rungs = [rung for rung in rungs if rung.label in (DEFAULTS, FAST)]
    solo = (*plain((2,) if quick else WORKERS), Contestant(OLD, before=True), *rungs)
    groups = [Group(f"{pair} {method}", "solo", pair, (method,), solo) for pair in pairs for method in methods]
    if quick:
        return groups
    fast = (f"--config={FAST}",)
    packed = (
        *plain((0, 2)),
        Contestant(f"{OLD}, 12 runs", before=True, separate=True),
        Contestant("pack", "pack"),
        Contestant(f"pack, {FAST}", "pack", fast),
        Contestant("fused pack", "pack", pack={"fused": True}),
        Contestant(f"fused pack, {FAST}", "pack", fast, {"fused": True}),
    )
    evaluated = (*plain(), Contestant(OLD, before=True), Contestant(DEFAULTS), Contestant(FAST, settings=fast))
    groups += [Group(f"{pair} packed", "packed", pair, ROWS, packed) for pair in pairs]
    return groups + [Group(f"{pair} evaluation", "evaluation", pair, ("vanilla",), evaluated) for pair in pairs]


def scale_groups(pairs: Sequence[str], quick: bool, cuda: bool) -> list[Group]:
    """Cost against the number of members, the batch and the number of ranks."""
    fast = (f"--config={FAST}",)
    groups = []
    for pair in pairs:
        members = [
            Contestant(f"{n} member{'s' * (n > 1)}{name}", "pack", settings, given={"methods": ROWS[-n:]})
            for n in ((1, 4) if quick else (1, 4, 8, 12))
            for name, settings in (("", ()), (f", {FAST}", fast))
        ]
        batches = [
            Contestant(f"batch {n}{name}", settings=settings, before=before, given={"batch": n})
            for n in ((64, 128) if quick else (64, 128, 256, 512))
            for name, settings, before in ((f", {OLD}", (), True), ("", (), False), (f", {FAST}", fast, False))
        ]
        ranks = [Contestant(f"{n} rank{'s' * (n > 1)}", given={"ranks": n}) for n in (1, 2)]
        for name, contestants in (("members", members), ("batch", batches), ("ranks", [] if cuda else ranks)):
            if contestants:
                groups.append(Group(f"{pair} {name}", "scale", pair, ("ickd",), tuple(contestants)))
    return groups
