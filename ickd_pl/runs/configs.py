"""Find and check the YAML configuration files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ickd_pl.errors import UserError, near

# The command line sets these from the data and --seed_everything; a file must not.
LINKED = ("num_classes", "num_samples", "image_size", "seed")


def config_root() -> Path:
    """The folder of the shipped configurations: in the installed package, or at the root of a clone."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def find_configs(arguments: Sequence[str]) -> list[str]:
    """Resolve ``--config configs/base.yaml`` in any working directory: missing files are looked up in the package.

    Raises:
        UserError: the file is neither here nor in the package, or it is not a YAML mapping.
    """
    out: list[str] = []
    expects_path = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--data.seed", "--data.init_args.seed"):
            raise UserError(f"{flag} comes from --seed_everything: set that")
        if expects_path:
            out.append(find_config(argument))
        elif flag in ("--config", "-c") and equals:
            out += [flag, find_config(value)]
        else:
            out.append(argument)
        expects_path = argument in ("--config", "-c") and not expects_path
    return out


def find_config(path: str, kind: str = "") -> str:
    """Resolve one configuration file, here or in the package.

    Args:
        path: path from the command line.
        kind: subfolder of ``configs/`` to take hints from; empty: all of them.

    Raises:
        UserError: see :func:`find_configs`.
    """
    if Path(path).is_file():
        return _checked(path)
    shipped = config_root().joinpath(*[p for p in Path(path).parts if p != "configs"])
    if not Path(path).is_absolute() and shipped.is_file():
        return str(shipped)
    if Path(path).is_dir():
        raise UserError(f"config file {path} is a folder: give a .yaml file")
    root = config_root()
    known = [f"configs/{p.relative_to(root).as_posix()}" for p in (root / kind).rglob("*.yaml")]
    raise UserError(f"config file {path} does not exist: {near(path, known)}")


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Refuse Trainer settings that Lightning accepts but that train nothing or end in a traceback.

    Raises:
        UserError: there is one; the message names it.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "max_epochs", "max_steps"):
        value = settings.get(name)
        if value is not None and value < 1 and not (value == -1 and name.startswith("max_")):
            raise UserError(f"trainer.{name}: expected 1 or more, got {value}")
    limit = settings.get("limit_train_batches")
    if limit is not None and not limit > 0:
        raise UserError(f"trainer.limit_train_batches: expected above 0, got {limit}: nothing would be trained")


class _UniqueLoader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, of which the first would be silently ignored."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen.add(name)
        return dict(super().construct_mapping(node, deep))


def _checked(path: str) -> str:
    """Check a file before the parser reads it, whose messages do not say which file is broken."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        position = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"config file {path} is not valid YAML: {error.problem}{position}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config file {path} cannot be read as YAML text ({' '.join(str(error).split())})") from error
    linked = sorted(set(LINKED) & set(content["model"])) if isinstance(_model(content), dict) else []
    if linked:
        where = "--seed_everything" if linked == ["seed"] else "the data"
        raise UserError(f"config file {path} sets model.{linked[0]}, which comes from {where}: remove it")
    if not isinstance(content, dict):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise UserError(f"config file {path} contains {found}: expected settings, such as `model:` and its values")
    return path


def _model(content: Any) -> Any:
    return content.get("model") if isinstance(content, dict) else None
