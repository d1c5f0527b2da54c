"""The plan of a benchmark: its cells and the command of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ickd_pl.benchmark.schema import MAX_EPOCHS, Settings, check_data, check_teachers, combinations
from ickd_pl.errors import UserError, near
from ickd_pl.plain import read_yaml
from ickd_pl.runs.configs import config_root, find_config

# Methods and data are Lightning's classes, whose import takes seconds: only what needs them imports them.


@dataclass(frozen=True)
class Cell:
    """One training run: a teacher, or a pair's student with a method.

    Attributes:
        kind: "teacher" or "student".
        network: the network to train.
        pair: name of the pair's file, None for a teacher.
        teacher: the teacher network, None for a teacher itself.
        method: name of the method's file, None for a teacher.
        seed: of the run.
    """

    kind: str
    network: str
    seed: int
    pair: str | None = None
    teacher: str | None = None
    method: str | None = None

    @property
    def path(self) -> Path:
        """The cell's folder, relative to ``cells`` in the results folder."""
        if self.kind == "teacher":
            return Path("teachers", self.network, f"seed_{self.seed}")
        return Path(str(self.pair), str(self.method), f"seed_{self.seed}")

    def __str__(self) -> str:
        return self.path.as_posix()


@dataclass(frozen=True)
class Group:
    """Cells that are trained together: a pack, or a single cell.

    Attributes:
        cells: the cells.
        packed: whether they form a pack; it may have a single member, since methods can be added later.
    """

    cells: tuple[Cell, ...]
    packed: bool = False

    @property
    def path(self) -> Path:
        """Folder of the lock and, for a pack, of the checkpoint, relative to the results folder."""
        first = self.cells[0]
        if self.packed:
            return Path("packs", str(first.pair), f"seed_{first.seed}")
        return Path("cells") / first.path

    def __str__(self) -> str:
        first = self.cells[0]
        if len(self.cells) == 1:
            return str(first)
        return f"{first.pair} seed {first.seed}, packed: {', '.join(str(cell.method) for cell in self.cells)}"


@dataclass(frozen=True)
class Benchmark:
    """A validated benchmark file.

    Attributes:
        settings: the file's content, with defaults for missing keys.
        pairs: the model settings of each pair, by its name.
    """

    settings: Settings
    pairs: dict[str, dict[str, Any]] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, content: Any, source: str | Path, choices: bool = True) -> Benchmark:
        """Check and complete the content of a benchmark file.

        Args:
            content: of the file.
            source: the file's name, for messages.
            choices: check also the arguments to choose from, for which the methods are imported.

        Raises:
            UserError: naming the file, the key, what was expected and what came.
        """
        settings, where = Settings.of(content, source), f"benchmark file {source}"
        pairs = {name: read_yaml(config_root() / "pairs" / f"{name}.yaml")["model"] for name in settings.pairs}
        check_teachers(settings.teachers.weights, [str(pair["teacher"]) for pair in pairs.values()], where)
        benchmark = cls(settings, pairs)
        for method, listed in settings.choices.items() if choices else ():
            for arguments in combinations(listed):
                benchmark.chosen(method, arguments, where)
        return benchmark

    @classmethod
    def read(cls, path: str | Path) -> Benchmark:
        """Read a benchmark file; if the path does not exist, look it up among the shipped ones.

        Raises:
            UserError: it is not found, or its content is invalid.
        """
        return cls.of(read_yaml(Path(find_config(str(path), "benchmarks"))), path)

    @property
    def cells(self) -> list[Cell]:
        """All cells: teachers first, then students by pair, seed and method."""
        s = self.settings
        networks = list(dict.fromkeys(str(pair["teacher"]) for pair in self.pairs.values()))
        teachers = [Cell("teacher", network, s.teachers.seed) for network in networks]
        students = [
            Cell("student", str(self.pairs[pair]["student"]), seed, pair, str(self.pairs[pair]["teacher"]), method)
            for pair in s.pairs
            for seed in s.seeds
            for method in s.methods
        ]
        return [*teachers, *students]

    @cached_property
    def groups(self) -> list[Group]:
        """The cells grouped as they are trained: with ``pack``, a pair's one-stage methods of a seed together."""
        groups: list[Group] = []
        packs: dict[tuple[str | None, int], list[Cell]] = {}
        for cell in self.cells:
            if self._packable(cell):
                key = (cell.pair, cell.seed)
                if key not in packs:
                    packs[key] = []
                    groups.append(Group((cell,), packed=True))
                packs[key].append(cell)
            else:
                groups.append(Group((cell,)))
        whole = {members[0]: tuple(members) for members in packs.values()}
        return [replace(group, cells=whole.get(group.cells[0], group.cells)) for group in groups]

    def _packable(self, cell: Cell) -> bool:
        """Whether a cell is trained in a pack: its method can be, and has no arguments to choose."""
        from ickd_pl.strategies import from_spec
        from ickd_pl.training.pack_members import why_alone

        if cell.kind != "student" or not self.settings.pack or cell.method in self.settings.choices:
            return False
        return why_alone([from_spec(spec) for spec in self.strategies(str(cell.method))]) is None

    def chosen(self, method: str, arguments: dict[str, Any], where: str = "choices") -> list[dict[str, Any]]:
        """A method's strategies with the arguments ``{"Class.argument": value}``.

        Raises:
            UserError: unknown argument, or a value that the class does not accept.
        """
        from ickd_pl.strategies import from_spec

        strategies = self.strategies(method)
        for name, value in arguments.items():
            cls, _, argument = name.partition(".")
            matching = [spec for spec in strategies if spec["class_path"].rpartition(".")[2] == cls]
            if not matching or not argument:
                classes = ", ".join(spec["class_path"] for spec in strategies) or "none: it has no strategies"
                raise UserError(
                    f"{where}, choices, {method}: {name} is not an argument of its methods: "
                    f"give Class.argument ({classes})"
                )
            known = list(from_spec(matching[0]).spec()["init_args"])
            if argument not in known:
                raise UserError(f"{where}, choices, {method}: unknown argument {name}: {near(argument, known)}")
            matching[0].setdefault("init_args", {})[argument] = value
        for spec in strategies:
            try:
                from_spec(spec)
            except (UserError, TypeError, ValueError) as error:
                raise UserError(f"{where}, choices, {method}, {arguments}: {' '.join(str(error).split())}") from error
        return strategies

    def args(self, cell: Cell, teacher_weights: Path | None, scratch: Path, overrides: dict[str, Any]) -> list[str]:
        """The command-line arguments of the cell's ``fit``.

        Args:
            cell: the cell.
            teacher_weights: weights file of a student's teacher.
            scratch: folder for the config file with the benchmark's settings.
            overrides: additional settings (chosen arguments, a validation split) with highest priority.
        """
        own = scratch / f"{str(cell).replace('/', '_')}.yaml"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(yaml.safe_dump(merge(self._own(cell, teacher_weights), overrides), sort_keys=False))
        stacked = [arg for file in [*self._files(cell), str(own)] for arg in ("--config", file)]
        return ["fit", *stacked, "--seed_everything", str(cell.seed)]

    def recipe(self, cell: Cell) -> dict[str, Any]:
        """The settings that determine the cell's result, from all its files, without paths."""
        recipe: dict[str, Any] = {}
        for settings in (*(read_yaml(Path(find_config(file))) for file in self._files(cell)), self._own(cell, None)):
            recipe = merge(recipe, settings)
        for key in ("teacher_weights", "teacher_floor"):
            recipe["model"].pop(key, None)
        recipe["data"] = without_paths(recipe["data"])
        recipe["seed_everything"] = cell.seed
        recipe |= {"fused": True} if self.settings.fused and self._packable(cell) else {}
        choices = self.settings.choices.get(str(cell.method))
        return {**recipe, **({"choices": choices, "val_size": self.settings.val_size} if choices else {})}

    def _files(self, cell: Cell) -> list[str]:
        """The cell's shipped config files, which the benchmark's own settings override."""
        if cell.kind == "student":
            return ["configs/base.yaml", f"configs/pairs/{cell.pair}.yaml", f"configs/methods/{cell.method}.yaml"]
        own = f"teachers/{cell.network}.yaml"
        return ["configs/base.yaml", *([f"configs/{own}"] if (config_root() / own).is_file() else [])]

    def _own(self, cell: Cell, teacher_weights: Path | None) -> dict[str, Any]:
        s, t = self.settings, self.settings.teachers
        common = {"data": s.data, "trainer": s.trainer, "model": s.model}
        if cell.kind == "teacher":
            teacher: dict[str, Any] = {
                "student": cell.network,
                "teacher": None,
                "teacher_weights": None,
                "strategies": [],
            }
            own = {"data": t.data, "trainer": t.trainer, "model": {**t.model, **teacher}}
            return merge(common, own)
        weights = None if teacher_weights is None else str(teacher_weights)
        model: dict[str, Any] = {"teacher_weights": weights, "teacher_floor": t.floor}
        strategies = self.strategies(str(cell.method))
        if any("pretrain_epochs" in strategy.get("init_args", {}) for strategy in strategies):
            model["strategies"] = strategies
        return merge(common, {"model": model})

    def data(self, kind: str) -> Any:
        """The data module of the cells of a kind, "teacher" or "student".

        Raises:
            UserError: invalid arguments, or a custom class lacks something.
        """
        from ickd_pl.runs.data_options import data_module

        own = self.settings.teachers.data if kind == "teacher" else {}
        data = data_module(merge(self.settings.data, own))
        check_data(data)
        return data

    def max_epochs(self, kind: str) -> int:
        """Number of main epochs of the cells of a kind, "teacher" or "student"."""
        own = self.settings.teachers.trainer if kind == "teacher" else {}
        return int({"max_epochs": MAX_EPOCHS, **self.settings.trainer, **own}["max_epochs"])

    def strategies(self, method: str) -> list[dict[str, Any]]:
        """A method's strategies from its file; a first stage lasts an eighth of the main epochs (30 of 240)."""
        from ickd_pl.strategies import from_spec

        epochs = self.max_epochs("student")
        found = [_spec(s) for s in read_yaml(config_root() / "methods" / f"{method}.yaml")["model"]["strategies"]]
        for spec in found:
            if from_spec(spec).pretrain_epochs:
                spec["init_args"] = {**spec.get("init_args", {}), "pretrain_epochs": max(1, epochs // 8)}
        return found


def without_paths(data: dict[str, Any]) -> dict[str, Any]:
    """A data module's settings without those that do not affect results: paths, downloads, eval_batch_size, cache."""
    arguments = data.get("init_args") or {}
    excluded = ("root", "archive", "download", "eval_batch_size", "cache")
    return {**data, "init_args": {key: value for key, value in arguments.items() if key not in excluded}}


def merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; the second's values take precedence, lists are replaced as a whole."""
    both = dict(one)
    for key, value in other.items():
        kept = both.get(key)
        both[key] = merge(kept, value) if isinstance(kept, dict) and isinstance(value, dict) else value
    return both


def shard_of(groups: Sequence[Group], shard: tuple[int, int]) -> list[Group]:
    """Every n-th group of students, starting with the i-th (from 1), and the teachers they need."""
    index, count = shard
    teachers = [group for group in groups if group.cells[0].kind == "teacher"]
    students = [group for group in groups if group.cells[0].kind == "student"][index - 1 :: count]
    needed = {cell.teacher for group in students for cell in group.cells}
    return [*(group for group in teachers if group.cells[0].network in needed), *students]


def _spec(strategy: Any) -> dict[str, Any]:
    return strategy if isinstance(strategy, dict) else {"class_path": str(strategy)}
