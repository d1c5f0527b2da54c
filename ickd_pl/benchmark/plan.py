"""A benchmark as data: which cells there are, and the command that each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ickd_pl.errors import UserError, near
from ickd_pl.runtime.configs import config_root

# Key of a benchmark file: what it must be.
_KEYS: dict[str, type] = {
    "name": str,
    "data": dict,
    "pairs": list,
    "methods": list,
    "seeds": list,
    "trainer": dict,
    "model": dict,
    "pack": bool,
    "teachers": dict,
    "choices": dict,
    "val_size": int,
}
_TEACHER_KEYS: dict[str, type] = {
    "get": str,
    "seed": int,
    "weights": dict,
    "data": dict,
    "trainer": dict,
    "model": dict,
    "floor": float,
}
GET = ("train", "fetch", "fetch_or_train")


@dataclass(frozen=True)
class Cell:
    """One run of the table: a teacher, or a student of a pair by a method.

    Attributes:
        kind: "teacher" or "student".
        network: the network that is trained.
        pair: name of the pair's file, None for a teacher.
        teacher: the teacher's network, None for a teacher itself.
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
        """The cell's folder, under ``cells`` of the results folder."""
        if self.kind == "teacher":
            return Path("teachers", self.network, f"seed_{self.seed}")
        return Path(str(self.pair), str(self.method), f"seed_{self.seed}")

    def __str__(self) -> str:
        return self.path.as_posix()


@dataclass(frozen=True)
class Group:
    """Cells that are trained in one run: a pack, or a single cell."""

    cells: tuple[Cell, ...]

    @property
    def path(self) -> Path:
        """Where the lock and, for a pack, the checkpoint lie, under the results folder."""
        first = self.cells[0]
        if len(self.cells) == 1:
            return Path("cells") / first.path
        return Path("packs", str(first.pair), f"seed_{first.seed}")

    def __str__(self) -> str:
        first = self.cells[0]
        if len(self.cells) == 1:
            return str(first)
        return f"{first.pair} seed {first.seed}, packed: {', '.join(str(cell.method) for cell in self.cells)}"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file, checked.

    Attributes:
        settings: the file's content with every key filled in.
    """

    settings: dict[str, Any]
    pairs: dict[str, dict[str, Any]] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, settings: Any, source: str | Path) -> Benchmark:
        """Check and complete the content of a benchmark file.

        Raises:
            UserError: naming the file, the key, what was expected and what came.
        """
        teachers = _checked(settings, f"benchmark file {source}")
        defaults: dict[str, Any] = {
            "name": Path(source).stem, "trainer": {}, "model": {}, "pack": True, "choices": {}, "val_size": 0,
        }  # fmt: skip
        whole = {**defaults, **settings, "teachers": teachers}
        pairs = {name: _read(config_root() / "pairs" / f"{name}.yaml")["model"] for name in whole["pairs"]}
        return cls({key: whole[key] for key in _KEYS}, pairs)

    @classmethod
    def read(cls, path: str | Path) -> Benchmark:
        """Read a benchmark file; one that is not here is looked up among the shipped ones."""
        from ickd_pl.runtime.configs import find_configs

        found = Path(find_configs(["--config", str(path)])[1])
        return cls.of(_read(found), path)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, teachers first, then pair by pair and seed by seed in the methods' order."""
        s = self.settings
        networks = list(dict.fromkeys(str(pair["teacher"]) for pair in self.pairs.values()))
        teachers = [Cell("teacher", network, s["teachers"]["seed"]) for network in networks]
        students = [
            Cell("student", str(self.pairs[pair]["student"]), seed, pair, str(self.pairs[pair]["teacher"]), method)
            for pair in s["pairs"]
            for seed in s["seeds"]
            for method in s["methods"]
        ]
        return [*teachers, *students]

    @cached_property
    def groups(self) -> list[Group]:
        """The cells as they are run: one-stage methods of a pair and a seed together where the benchmark packs."""
        groups: list[Group] = []
        packs: dict[tuple[str | None, int], list[Cell]] = {}
        for cell in self.cells:
            if cell.kind == "student" and self.settings["pack"] and self._packable(str(cell.method)):
                key = (cell.pair, cell.seed)
                if key not in packs:
                    packs[key] = []
                    groups.append(Group((cell,)))
                packs[key].append(cell)
            else:
                groups.append(Group((cell,)))
        whole = {members[0]: tuple(members) for members in packs.values()}
        return [replace(group, cells=whole.get(group.cells[0], group.cells)) for group in groups]

    def _packable(self, method: str) -> bool:
        """One stage, and no values of arguments to choose among."""
        one_stage = all("pretrain_epochs" not in spec.get("init_args", {}) for spec in self.strategies(method))
        return one_stage and method not in self.settings["choices"]

    def words(self, cell: Cell, teacher_weights: Path | None, scratch: Path, overrides: dict[str, Any]) -> list[str]:
        """The words of the ``fit`` that is the cell.

        Args:
            cell: the cell.
            teacher_weights: of a student's teacher.
            scratch: folder for the file with the benchmark's own settings.
            overrides: further settings (a chosen argument, a validation split), put last.
        """
        own = scratch / f"{str(cell).replace('/', '_')}.yaml"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(yaml.safe_dump(merge(self._own(cell, teacher_weights), overrides), sort_keys=False))
        files = ["configs/base.yaml"]
        if cell.kind == "teacher":
            shipped_recipe = config_root() / "teachers" / f"{cell.network}.yaml"
            files += [f"configs/teachers/{cell.network}.yaml"] if shipped_recipe.is_file() else []
        else:
            files += [f"configs/pairs/{cell.pair}.yaml", f"configs/methods/{cell.method}.yaml"]
        stacked = [word for file in [*files, str(own)] for word in ("--config", file)]
        return ["fit", *stacked, "--seed_everything", str(cell.seed)]

    def _own(self, cell: Cell, teacher_weights: Path | None) -> dict[str, Any]:
        s, t = self.settings, self.settings["teachers"]
        common = {"data": s["data"], "trainer": s["trainer"], "model": s["model"]}
        if cell.kind == "teacher":
            teacher: dict[str, Any] = {
                "student": cell.network,
                "teacher": None,
                "teacher_weights": None,
                "strategies": [],
            }
            own = {"data": t["data"], "trainer": t["trainer"], "model": {**t["model"], **teacher}}
            return merge(common, own)
        weights = None if teacher_weights is None else str(teacher_weights)
        model: dict[str, Any] = {"teacher_weights": weights, "teacher_floor": t["floor"]}
        strategies = self.strategies(str(cell.method))
        if any("pretrain_epochs" in strategy.get("init_args", {}) for strategy in strategies):
            model["strategies"] = strategies
        return merge(common, {"model": model})

    def strategies(self, method: str) -> list[dict[str, Any]]:
        """A method's strategies, as its file has them; a first stage lasts an eighth of the main epochs (30 of 240)."""
        from ickd_pl.strategies import from_spec

        epochs = int(self.settings["trainer"].get("max_epochs", 240))
        found = [_spec(s) for s in _read(config_root() / "methods" / f"{method}.yaml")["model"]["strategies"]]
        for spec in found:
            if from_spec(spec).pretrain_epochs:
                spec["init_args"] = {**spec.get("init_args", {}), "pretrain_epochs": max(1, epochs // 8)}
        return found


def shipped(kind: str) -> list[str]:
    """Names of the shipped files of a kind: pairs, methods, benchmarks."""
    return sorted(path.stem for path in (config_root() / kind).glob("*.yaml"))


def merge(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings, the second's values winning; a list is replaced as a whole."""
    both = dict(one)
    for key, value in other.items():
        kept = both.get(key)
        both[key] = merge(kept, value) if isinstance(kept, dict) and isinstance(value, dict) else value
    return both


def shard_of(groups: Sequence[Group], shard: tuple[int, int]) -> list[Group]:
    """Every n-th group that trains students, from the i-th (from 1), and the teachers that they need."""
    index, count = shard
    teachers = [group for group in groups if group.cells[0].kind == "teacher"]
    students = [group for group in groups if group.cells[0].kind == "student"][index - 1 :: count]
    needed = {cell.teacher for group in students for cell in group.cells}
    return [*(group for group in teachers if group.cells[0].network in needed), *students]


def _checked(settings: Any, where: str) -> dict[str, Any]:
    """Check a benchmark file's content; returns its ``teachers`` with every key filled in."""
    _check(settings, _KEYS, where)
    for key in ("data", "pairs", "methods", "seeds"):
        if not settings.get(key):
            raise UserError(f"{where}: {key} is missing or empty")
    _check(settings.get("teachers", {}), _TEACHER_KEYS, f"{where}, teachers")
    teachers: dict[str, Any] = {
        "get": "train",
        "seed": 0,
        "weights": {},
        "data": {},
        "trainer": {},
        "model": {},
        "floor": None,
    }
    teachers.update(settings.get("teachers", {}))
    if teachers["get"] not in GET:
        raise UserError(f"{where}, teachers: get is {teachers['get']!r}, expected one of {', '.join(GET)}")
    if "class_path" not in settings["data"]:
        raise UserError(f"{where}, data: expected class_path, such as CIFAR100, and init_args")
    for part, block in (("trainer", settings), ("teachers, trainer", teachers)):
        _check_devices(block.get("trainer", {}), f"{where}, {part}")
    _check_lists(settings, where)
    if settings.get("choices") and not settings.get("val_size"):
        raise UserError(f"{where}: choices are made on a validation split, never on the test images: set val_size")
    return teachers


def _check_devices(trainer: Any, where: str) -> None:
    """Cells are independent: several devices take several shards, not one cell each of them a part."""
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    one = devices in (1, "1") or (isinstance(devices, list) and len(devices) == 1)
    if not one or nodes != 1:
        raise UserError(
            f"{where}: a cell runs on one device, got devices {devices!r}, num_nodes {nodes!r}: start one "
            "`bench run --shard I/N` for each device (CUDA_VISIBLE_DEVICES), or one cell by the `fit` that "
            "`bench plan --commands` prints"
        )


def _check_lists(settings: dict[str, Any], where: str) -> None:
    seeds = settings["seeds"]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**32 for seed in seeds):
        raise UserError(f"{where}: seeds must be whole numbers from 0, got {seeds}")
    for key in ("pairs", "methods", "seeds"):
        doubled = [value for value in settings[key] if settings[key].count(value) > 1]
        if doubled:
            raise UserError(f"{where}: {key} lists {doubled[0]} twice")
    known = {"pairs": (settings["pairs"], shipped("pairs")), "methods": (settings["methods"], shipped("methods"))}
    known["choices"] = (list(settings.get("choices", {})), settings["methods"])
    for key, (names, accepted) in known.items():
        for name in names:
            if name not in accepted:
                raise UserError(f"{where}, {key}: unknown {name}: {near(str(name), accepted)}")


def _spec(strategy: Any) -> dict[str, Any]:
    return strategy if isinstance(strategy, dict) else {"class_path": str(strategy)}


def _check(settings: Any, keys: dict[str, type], where: str) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where}: expected {', '.join(keys)}, got {settings!r}")
    for key, value in settings.items():
        if key not in keys:
            raise UserError(f"{where}: unknown key {key}: {near(str(key), keys)}")
        accepted = (int, float) if keys[key] is float else (keys[key],)
        optional = keys[key] is float and value is None
        if not optional and (not isinstance(value, accepted) or (isinstance(value, bool) and keys[key] is not bool)):
            raise UserError(f"{where}: {key} must be a {keys[key].__name__}, got {value!r}")


def _read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))
