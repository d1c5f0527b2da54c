"""``fit --help`` on a few screens: the options that most runs need. ``--help=all`` shows every option."""

from __future__ import annotations

import re

ALL = "--help=all"
_ABOUT = f"""\
These are the options that most runs need.
  {ALL}                     shows every option
  --data.help Digits             the arguments of a data set, such as --data.batch_size
  --model.strategies.help ICKD   the arguments of a method
  --print_config                 all settings, with what was given, as YAML for --config FILE"""
# Lightning's Trainer has many more.
_TRAINER = {
    *("limit_train_batches", "limit_val_batches", "accelerator", "strategy", "devices", "num_nodes", "precision"),
    *("logger", "callbacks", "fast_dev_run", "max_epochs", "overfit_batches", "check_val_every_n_epoch", "profiler"),
    *("enable_progress_bar", "accumulate_grad_batches", "gradient_clip_val", "deterministic", "default_root_dir"),
}
_RARE = {"trainer", "model", "weights_only"}
# Of these one is chosen by its class; of others, such as all modules of torch for a student, the list helps nobody.
_CLASSES = {"data", "model.strategies"}


def shortened(text: str) -> str:
    """The help of ``fit``, ``validate``, ``test`` or ``predict`` without options that few runs need.

    Args:
        text: the parser's whole help.
    """
    usage, _, rest = text.partition("\n\n")  # private: jsonargparse layout of the help
    command = " ".join(usage.split()).replace("[options] ", "").split(" [")[0]
    # What is linked to another option cannot be given.
    rest = re.sub(r"^Linked arguments:\n(?:  .*\n)+\n?", "", rest, flags=re.M)
    rest = re.sub(r"^  -.*\n(?:   .*\n)*", lambda found: _option(found[0]), rest, flags=re.M)
    return f"{command} [--config FILE]... [--OPTION VALUE]...\n\n{_ABOUT}\n\n{rest}"


def _option(lines: str) -> str:
    """An option's lines, without a list of classes that helps nobody; empty for a rare option."""
    name = re.findall(r"--([\w.]+)", lines)[0]
    group, _, inner = name.partition(".")
    if name in _RARE or (group == "trainer" and inner not in _TRAINER):
        return ""
    if name.endswith(".help"):
        return lines if name.removesuffix(".help") in _CLASSES else ""
    return lines if name in _CLASSES else re.sub(r",\s+known\s+subclasses:.*\)", ")", lines, flags=re.S)
