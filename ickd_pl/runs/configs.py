"""Find and check the YAML configuration files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from ickd_pl.errors import UserError, near, printable
from ickd_pl.plain import TooMuch, check_yaml, read_yaml

# The command line sets these from the data and --seed_everything; a file must not.
LINKED = ("num_classes", "num_samples", "image_size", "seed")
TRAINER_DEFAULTS = {
    "max_epochs": 240,
    "default_root_dir": "outputs",
    "logger": False,
    "num_sanity_val_steps": 0,
    # The data loader splits the global batch among the ranks itself.
    "use_distributed_sampler": False,
}
# Characters, in which neither depth nor aliases can do harm.
_HARMLESS = 100
_STRINGS_IN_STRINGS = 10


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
    clip = settings.get("gradient_clip_val")
    if clip is not None and clip < 0:
        raise UserError(f"trainer.gradient_clip_val: expected 0 or more, got {clip}, which would not clip")
    for name in ("train", "val", "test", "predict"):
        value = settings.get(f"limit_{name}_batches")
        if value is not None and type(value) not in (int, float):
            raise UserError(f"trainer.limit_{name}_batches: expected a number, such as 1 or 0.5, got {value!r}")
    limit = settings.get("limit_train_batches")
    if limit is not None and not limit > 0:
        raise UserError(f"trainer.limit_train_batches: expected above 0, got {limit}: nothing would be trained")


def limit_parser() -> None:
    """Make jsonargparse refuse YAML that is too large, deep or repetitive, in configuration files and in arguments."""
    inner = get_loader("yaml")
    if getattr(inner, "limited", False):
        return

    def load(text: str) -> Any:
        check_text(text)
        return inner(text)

    load.limited = True  # type: ignore[attr-defined]
    set_loader("yaml", load, exceptions=(yaml.YAMLError,))


def check_text(text: str, what: str = "the configuration") -> None:
    """Raise :class:`UserError` for a text that the parser must not read as YAML; it also reads the strings inside."""
    level = [text]
    try:
        for _ in range(_STRINGS_IN_STRINGS):
            level = [inner for each in level for inner in _strings(each) if inner != each]
            if not level:
                return
    except TooMuch as error:
        raise UserError(f"{what}: {error}") from error
    raise UserError(f"{what}: holds YAML in strings of YAML, more than {_STRINGS_IN_STRINGS} times")


def _strings(text: str) -> list[str]:
    """The strings in a YAML text; none if it is harmless, or a plain text, or a mistake that the parser reports."""
    try:
        return check_yaml(text) if len(text) > _HARMLESS else []
    except TooMuch:
        raise
    except ValueError:
        return []


def _checked(path: str) -> str:
    """Check a file before the parser reads it, whose messages do not say which file is broken."""
    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config file {printable(path)} cannot be read: {reason}") from error
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
