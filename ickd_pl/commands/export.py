"""``export``: write the student of a checkpoint to a file of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ickd_pl.errors import UserError
from ickd_pl.runs.command_parser import CommandParser

if TYPE_CHECKING:
    from ickd_pl.weights.formats import Result

SUMMARY = "write a trained student as safetensors, ONNX, RepDistiller's .pth or a torch.export program"
_FORMATS = """formats:
  safetensors   weights; the configuration is the metadata entry "config"; for ickd_pl.load_student
  onnx          program for any batch size, input "image", output "logits"; needs pip install '.[export]' in the clone
  repdistiller  {"epoch", "model", "best_acc", "config"}: for RepDistiller and ickd_pl.load_teacher
  torch_export  program for any batch size that needs only torch; the configuration is its extra file config.json
The configuration: network, num_classes, image_size, mean, std, class_names. All take normalised images."""


def run(args: Sequence[str]) -> int:
    """Write the file and print one line: what was written and how to load it.

    Raises:
        UserError: wrong arguments, a file that is not a student, or a file that cannot be written.
    """
    from ickd_pl.weights.export import check_target, write_student
    from ickd_pl.weights.formats import FORMATS, Result
    from ickd_pl.weights.read import split_entry
    from ickd_pl.weights.student import load_student, read_config

    parser = CommandParser(prog="export", description=f"{SUMMARY[0].upper()}{SUMMARY[1:]}.", epilog=_FORMATS)
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="the last.ckpt of a run, or FILE#ENTRY")
    parser.add_argument("--format", required=True, choices=list(FORMATS), help="see below")
    parser.add_argument("--output", metavar="FILE", help="default: student.* in the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    options = parser.parse_args(args)
    from ickd_pl.runs.run_folder import folder_of  # with Lightning, whose import takes seconds

    source, entry = split_entry(options.ckpt_path)
    path = Path(options.output) if options.output else folder_of(source) / f"student{FORMATS[options.format].suffix}"
    if path.resolve() == source.resolve():
        raise UserError(f"{path} is the file to export: choose another --output")
    config = read_config(source)
    if config.network is None:
        raise UserError(
            f"{source} has a network of your own, which a file cannot bring back: load it in Python, with "
            "DistillationModule.load_from_checkpoint(FILE, student=NET, student_layers=LAYERS, teacher=TEACHER), and "
            "give its student to ickd_pl.weights.export_student(net, path, format)"
        )
    check_target(path, options.format, options.overwrite)
    net = load_student(options.ckpt_path)
    result = _result(source) if entry is None else Result()  # the accuracy is that of the student itself
    done = write_student(net, path, options.format, config, result, options.overwrite)
    if config.mean is None or config.std is None or config.class_names is None:
        print(f"note: {source} lacks the normalisation of its images, or its class names: they are null in {path}")
    if not done.verified:
        print(
            "note: not verified, because onnxruntime is missing: run pip install '.[export]' in the clone to verify it"
        )
    how = FORMATS["safetensors" if config.head and options.format == "repdistiller" else options.format]
    usage = how.usage.format(path=path, **config.as_dict())
    what = f"{config.network}, {config.num_classes} classes, {done.size / 1e6:.2f} MB"
    print(f"wrote {path} ({what}); read it with {usage}", flush=True)
    return 0


def _result(source: Path) -> Result:
    """Number of epochs and the last one's accuracy, if the file is a checkpoint and has them."""
    from ickd_pl.weights.checkpoint import checkpoint_of, is_checkpoint
    from ickd_pl.weights.formats import Result
    from ickd_pl.weights.read import read_file

    content = read_file(source)
    if not is_checkpoint(content):
        return Result()
    checkpoint = checkpoint_of(source, content)
    return Result(checkpoint.epochs, checkpoint.acc1)
