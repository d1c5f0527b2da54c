"""Private parts of libraries that the package depends on: each is tagged in the source and checked here.

A tag is a comment ``# private: <library> <name>``, at the end of the line or above it. If an upgrade removes such a
part, its check fails. Parts without a leading underscore (texts of messages, keys of files) are tagged by hand.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import pytorch_lightning as pl
import torch
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only
from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

PACKAGE = Path(__file__).parents[1] / "ickd_pl"
TAG = re.compile(r"# private: (\S+ .+)$")
# Documented despite the underscore.
PUBLIC = {"_asdict", "_fields", "_make", "_replace"}

CHECKS: dict[str, Callable[[], None]] = {}


def private(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Register a check for a tag."""

    def enter(check: Callable[[], None]) -> Callable[[], None]:
        assert name not in CHECKS, f"two checks of {name}"
        CHECKS[name] = check
        return check

    return enter


# -- the parts ---------------------------------------------------------------------------------------------------------


def message_of(parser: Any, *args: str) -> str:
    """The message of a parser for wrong arguments."""
    messages: list[str] = []

    def error(message: str, ex: Exception | None = None) -> None:
        messages.append(message)
        raise SystemExit(2)

    parser.error = error
    with pytest.raises(SystemExit):
        parser.parse_args(list(args))
    return messages[0]


class Base:
    """A base class for a parser's argument."""


class Child(Base):
    def __init__(self, size: int = 1) -> None:
        self.size = size


class Refusing(Base):
    def __init__(self) -> None:
        raise ImportError("too large")


class Parent:
    def __init__(self, seed: int, child: Base | None = None) -> None:
        self.seed, self.child = seed, child


def json_parser() -> Any:
    parser = jsonargparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--lengths", type=list[int] | None)
    parser.add_argument("--name", required=True)
    parser.add_subclass_arguments(Base, "base", required=False)
    return parser


def quiet_trainer(**settings: Any) -> pl.Trainer:
    """A trainer on the CPU for one epoch, without output and files."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, **quiet, **settings)


class Accumulates(pl.Callback):
    """Notes whether gradients are still accumulated, and whether an evaluation follows, after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[bool, bool]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        follows = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        self.seen.append((loop._should_accumulate(), follows))


@private("lightning fit_loop._should_accumulate")
@private("lightning epoch_loop._should_check_val_fx")
@private("lightning fit_loop._data_fetcher")
def _() -> None:
    noted = Accumulates()
    quiet_trainer(
        callbacks=[noted], limit_train_batches=4, accumulate_grad_batches=2, val_check_interval=2, limit_val_batches=1
    ).fit(BoringModel())
    assert noted.seen == [(True, False), (False, True), (True, False), (False, True)]


@private("lightning loops.combined_loader")
def _() -> None:
    assert 'state_dict["combined_loader"]' in inspect.getsource(type(quiet_trainer().fit_loop).on_save_checkpoint)


@private("lightning loops.val_loop.batch_progress")
def _() -> None:
    state = quiet_trainer().fit_loop.state_dict()["epoch_loop.val_loop.batch_progress"]
    assert state["is_last_batch"] is False
    assert set(state["total"]) == set(state["current"]) == {"ready", "started", "processed", "completed"}


@private("lightning _signal_connector.register_signal_handlers")
@private("lightning epoch_loop._broadcast_sigterm_tensor")
def _() -> None:
    assert "self._signal_connector.register_signal_handlers()" in inspect.getsource(pl.Trainer._run)
    loop = type(quiet_trainer().fit_loop.epoch_loop)
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(loop.advance)
    assert list(inspect.signature(loop._broadcast_sigterm_tensor).parameters) == ["self"]


@private("lightning cluster_environment")
@private("lightning launcher.procs")
def _() -> None:
    trainer = quiet_trainer(devices=2, strategy="ddp")
    assert type(trainer._accelerator_connector.cluster_environment).__name__ == "LightningEnvironment"
    assert trainer.strategy.launcher.procs == []


@private("lightning rank_zero_only.rank")
def _() -> None:
    assert rank_zero_only.rank == 0 and pl.utilities.rank_zero_only is rank_zero_only


@private("argparse ArgumentParser._actions")
def _() -> None:
    parser = json_parser()
    options = {option for action in parser._actions for option in action.option_strings}
    assert {"--rate", "--name", "--base"} <= options
    subparsers = parser.add_subcommands(required=False)
    subparsers.add_subcommand("fit", json_parser())
    (action,) = (action for action in parser._actions if "subcommand" in str(action.dest))
    assert set(action.choices) == {"fit"}


@private('argparse message "unrecognized arguments"')
def _() -> None:
    assert message_of(ArgumentParser(), "--rat", "3").startswith("unrecognized arguments: --rat")


@private('argparse message "invalid choice"')
def _() -> None:
    parser = ArgumentParser()
    parser.add_argument("format", choices=["onnx", "pt2"])
    found = re.search(r"invalid choice: '([^']*)' \(choose from (.+)\)", message_of(parser, "onx"))
    assert found and found[1] == "onx" and "onnx" in found[2]


@private('yaml message "exceeded maximum nesting depth"')
def _() -> None:
    loader = getattr(yaml, "CSafeLoader", None)
    if loader is None:
        return  # the limit on the depth finds it
    try:
        assert len(list(yaml.parse("[" * 5000 + "]" * 5000, Loader=loader))) > 10_000  # so does it here
    except yaml.YAMLError as error:
        assert "maximum nesting depth" in str(error)


@private('jsonargparse message "unrecognized arguments"')
def _() -> None:
    assert re.search(r"[Uu]nrecognized arguments: --rat", message_of(json_parser(), "--name=a", "--rat=3"))


@private("jsonargparse layout of the help")
def _() -> None:
    parser, fit = jsonargparse.ArgumentParser(prog="ickd"), jsonargparse.ArgumentParser()
    fit.add_subclass_arguments(Base, "base", required=False)
    fit.add_argument("--rate", type=float)
    fit.add_argument("--same", type=float)
    fit.link_arguments("rate", "same")
    parser.add_subcommands().add_subcommand("fit", fit)
    text = fit.format_help()
    assert re.match(r"usage: ickd \[options\] fit\s", text) and "\n\nLinked arguments:\n  rate --> same" in text
    assert re.search(r"^  --base CONFIG.*\n(?:   .*\n)*?   .*known\s+subclasses:", text, re.M)


@private('jsonargparse message "option is not accepted"')
def _() -> None:
    from ickd_pl.runs.parser import one_line

    child = f"--base={__name__}.Child"
    assert "unknown setting sise" in one_line(message_of(json_parser(), "--name=a", child, "--base.sise=3"), [])
    text = message_of(json_parser(), f'--base={{"class_path": "{__name__}.Child", "init_args": {{"sise": 3}}}}')
    assert "unknown setting" in one_line(text, []) and "sise" in one_line(text, [])


@private('jsonargparse message "dot import path string"')
def _() -> None:
    text = message_of(json_parser(), "--name=a", "--base=Chid")
    assert re.search(r"dot import path string: Chid", text) and re.search(r'key "base"', text)


@private('jsonargparse message "is required"')
def _() -> None:
    assert re.search(r"arguments are required: .*name|Key \"name\" is required", message_of(json_parser()))


@private('jsonargparse message "expected a type"')
def _() -> None:
    text = message_of(json_parser(), "--name=a", "--rate=x")
    assert re.search(r'key "rate":\s+Expected an? (.+?)\. Got value: x', text)


@private('jsonargparse message "given value and subtypes"')
def _() -> None:
    text = message_of(json_parser(), "--name=a", "--lengths=x")
    assert re.search(r"Given value: x", text) and re.search(r"Subtypes: \[(.*)\]", text)


@private('jsonargparse message "Unable to serialize instance"')
def _() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--any", type=Any)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = parser.dump(jsonargparse.Namespace(any=object()))
        except yaml.representer.RepresenterError as error:  # as in version 4.39, which is refused with this text
            text = f"any: Unable to serialize instance: {error.args[0]}"
    assert text.startswith("any: Unable to serialize instance")


@private('jsonargparse message "NestedArg"')
def _() -> None:
    parser = json_parser()
    parser.add_argument("--bases", type=list[Base] | None)
    text = message_of(parser, "--name=a", "--bases.size=3")
    assert re.search(r'key "bases".*NestedArg\(key=\'size\'', text, re.DOTALL)


@private('jsonargparse message "compute_fn failed"')
def _() -> None:
    def refuse(value: int) -> int:
        raise ValueError("this\n  will not do")

    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_class_arguments(Parent, "parent")
    parser.link_arguments("seed", "parent.seed", compute_fn=refuse)
    assert re.search(r"Call to compute_fn of link .* failed: this\s+will not do", message_of(parser, "--seed=1"))


@private('jsonargparse message "none of the union\'s types"')
def _() -> None:
    # The newest versions pass on the constructor's error.
    from ickd_pl.runs.user_errors import of_constructor

    text = message_of(json_parser(), "--name=a", "--lengths=x")
    assert "Does not validate against any of the Union subtypes" in text
    assert of_constructor(f"{text}\n    - size: too large") == "size: too large"


def text_in(module: str, text: str) -> None:
    """Assert that a library's source has a text, also if it is split over several lines."""
    source = inspect.getsource(importlib.import_module(module))
    assert text in re.sub(r"[\"']\s+f?[\"']", "", source), f"{module} no longer says {text!r}"


@private("lightning messages of warnings")
def _() -> None:
    text_in("pytorch_lightning.cli", "LightningCLI's args parameter is intended")
    text_in("pytorch_lightning.loops.fit_loop", "module(s) in eval mode")
    text_in("pytorch_lightning.trainer.call", "Be aware that when using `ckpt_path`, callbacks used")
    # torch's warning about LeafSpec is not in all versions.


@private("lightning messages of loggers")
def _() -> None:
    text_in("pytorch_lightning.trainer.connectors.callback_connector", "Tip:")
    text_in("lightning_fabric.utilities.seed", "Seed set to")


@private('jsonargparse message "Problem with given class_path"')
def _() -> None:
    parser = json_parser()
    with pytest.raises(ValueError, match=rf"Problem with given class_path '{__name__}.Refusing':\s+too large"):
        parser.instantiate_classes(parser.parse_args(["--name=a", f"--base={__name__}.Refusing"]))


@private('torch message "Expected more than 1 value per channel"')
def _() -> None:
    with pytest.raises(ValueError, match=r"^Expected more than 1 value per channel when training"):
        nn.BatchNorm1d(3)(torch.zeros(1, 3))


@private('lightning message "You requested to check"')
def _() -> None:
    trainer = pl.Trainer(
        overfit_batches=0.001, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False
    )
    with pytest.raises(
        MisconfigurationException, match=r"^You requested to check 0\.001 of the `val_dataloader` but 0\.001 \* 64 < 1"
    ):
        trainer.fit(BoringModel(), BoringDataModule())


@private('lightning message "You provided multiple dataloaders"')
def _() -> None:
    class Two(BoringDataModule):
        def val_dataloader(self) -> Any:
            return [super().val_dataloader()] * 2

    trainer = pl.Trainer(fast_dev_run=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    with pytest.raises(RuntimeError, match="You provided multiple `val_dataloader`, but no `dataloader_idx`"):
        trainer.validate(BoringModel(), Two())


@private("torch module torch.utils.data._utils.collate")
def _() -> None:
    assert torch.utils.data.default_collate.__module__ == "torch.utils.data._utils.collate"


@private('torch message "Target is out of bounds"')
def _() -> None:
    with pytest.raises(IndexError, match=r"^Target 7 is out of bounds\.$"):
        nn.functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 7]))


@private('torch message "Error(s) in loading state_dict"')
def _() -> None:
    with pytest.raises(RuntimeError, match=r"^Error\(s\) in loading state_dict"):
        nn.Linear(1, 1).load_state_dict({})


@private('torch message "Weights only load failed"')
def _() -> None:
    import pickle

    torch.save({"path": Path()}, "bad.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"(?s)Weights only load failed.*GLOBAL"):
        torch.load("bad.pth", weights_only=True)


@private("lightning checkpoint key of the data module")
def _() -> None:
    class Kept(BoringDataModule):
        def state_dict(self) -> dict[str, Any]:
            return {"mean": 1.0}

    content = finished_fit(Kept())
    assert content[Kept.__qualname__] == {"mean": 1.0}


def finished_fit(data: pl.LightningDataModule) -> dict[str, Any]:
    """The checkpoint of a fit with one step."""
    trainer = pl.Trainer(fast_dev_run=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(BoringModel(), datamodule=data)
    trainer.save_checkpoint("last.ckpt")
    content: dict[str, Any] = torch.load("last.ckpt", weights_only=True)
    return content


@private("logging Manager.disable")
def _() -> None:
    import logging

    before = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        assert logging.root.manager.disable == logging.WARNING
    finally:
        logging.disable(before)


@private('urllib3 message "IncompleteRead"')
def _() -> None:
    from urllib3.exceptions import IncompleteRead

    assert re.search(r"IncompleteRead\((\d+) bytes read, (\d+) more expected", repr(IncompleteRead(3, 4)))


@private("lightning strategy._ddp_kwargs")
def _() -> None:
    assert DDPStrategy(find_unused_parameters=True)._ddp_kwargs == {"find_unused_parameters": True}


@private("lightning strategy.pre_backward")
def _() -> None:
    for cls in (Strategy, DDPStrategy):
        assert list(inspect.signature(cls.pre_backward).parameters) == ["self", "closure_loss"]


@private("lightning fit_loop.max_epochs")
def _() -> None:
    trainer = pl.Trainer(max_epochs=3, logger=False, accelerator="cpu", enable_checkpointing=False)
    trainer.fit_loop.max_epochs = 5
    assert trainer.max_epochs == 5


@private("lightning progress_bar_metrics")
def _() -> None:
    trainer = pl.Trainer(fast_dev_run=True, accelerator="cpu", logger=False)
    trainer.progress_bar_metrics["loss"] = 1.0
    assert trainer.progress_bar_metrics == {"loss": 1.0}


@private('torch message "view size is not compatible"')
def _() -> None:
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last).view(2, -1)


@private('torch message "Cannot view a tensor with shape"')
def _() -> None:
    # As the compiler says it, of tensors without values.
    x = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    with FakeTensorMode() as mode, pytest.raises((ValueError, RuntimeError), match="Cannot view a tensor with shape"):
        mode.from_tensor(x).view(2, -1)


@private("torch TorchDispatchMode")
def _() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[Any] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.found.append((str(func), args))
            return func(*args, **(kwargs or {}))

    value, net = torch.ones(1, 3, 4, 4), nn.BatchNorm2d(3).eval()
    with Seen() as seen, torch.no_grad():
        net(value)
    # One operation reads it, and gets the tensor itself.
    assert ["batch_norm" in name for name, args in seen.found if any(each is value for each in args)] == [True]


@private("torch tree_leaves")
def _() -> None:
    from torch.utils._pytree import tree_leaves

    assert tree_leaves(([1, (2,)], {"a": 3})) == [1, 2, 3]


@private("torch Tensor._version")
def _() -> None:
    value = torch.zeros(1)
    before = value._version
    value.add_(1)
    assert value._version > before


@private("lightning Closure._result")
def _() -> None:
    from pytorch_lightning.loops.optimization.automatic import Closure, ClosureResult

    closure = Closure(step_fn=lambda: ClosureResult(torch.ones(())))
    closure._result = ClosureResult(None)
    assert closure.consume_result().loss is None
    closure()
    assert float(closure._result.loss) == 1


@private("lightning LightningOptimizer._on_before_step")
@private("lightning LightningOptimizer._on_after_step")
def _() -> None:
    class Manual(BoringModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            before = self.global_step
            optimizer._on_before_step()
            optimizer._on_after_step()
            assert self.global_step == before + 1

    quiet_trainer(limit_train_batches=2, limit_val_batches=0).fit(Manual())


@private("torch _foreach_copy_")
def _() -> None:
    targets = [torch.zeros(2), torch.zeros((), dtype=torch.int64)]
    torch._foreach_copy_(targets, [torch.ones(2), torch.tensor(3)])
    assert targets[0].tolist() == [1, 1] and int(targets[1]) == 3


@private("torch Module._forward_hooks")
def _() -> None:
    net, seen = nn.Linear(1, 1), []
    for register in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"):
        getattr(net, f"register_{register}")(lambda *args: seen.append(args))
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert [len(vars(net)[kind]) for kind in kinds] == [1, 1, 1, 1]


@pytest.mark.parametrize("name", CHECKS)
def test_a_private_part_is_as_expected(name: str) -> None:
    try:
        CHECKS[name]()
    except Exception as error:
        pytest.fail(f"private part of a library, {name}, is not as ickd_pl needs it: {type(error).__name__}: {error}")


# -- the tags ----------------------------------------------------------------------------------------------------------


def tags(package: Path) -> dict[str, list[str]]:
    """Where each name is tagged."""
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if tag := TAG.search(line):
                found.setdefault(tag[1].strip(), []).append(f"{path.relative_to(package.parent)}:{number}")
    return found


def test_every_tag_has_a_check_and_every_check_a_tag() -> None:
    found = tags(PACKAGE)
    assert {name: where for name, where in found.items() if name not in CHECKS} == {}, "no check here of these tags"
    assert sorted(CHECKS.keys() - found.keys()) == [], "no tag in ickd_pl/ for these checks"


# -- what should have a tag --------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def own_names(tree: ast.AST) -> set[str]:
    """Names of attributes that the package's classes define, without protocols."""
    found = set()
    for cls in ast.walk(tree):
        if isinstance(cls, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in cls.bases):
            found |= {node.name for node in cls.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            targets = [t for n in cls.body if isinstance(n, ast.Assign | ast.AnnAssign) for t in targets_of(n)]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
            found |= {
                n.attr
                for n in ast.walk(cls)
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and ast.unparse(n.value) == "self"
            }
    return found


def targets_of(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def uses(tree: ast.AST, own: set[str]) -> Iterator[tuple[int, str]]:
    """Line and text of every private name of a library: attributes, imports, names passed to getattr."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield node.end_lineno or node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            if getattr(node, "level", 0) or module.partition(".")[0] in ("ickd_pl", "__future__"):
                continue
            for alias in node.names:
                path = f"{module}.{alias.name}".strip(".")
                if any(map(is_private, path.split("."))) or path.startswith("lightning_fabric"):
                    yield alias.lineno, path
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else ""
            if is_private(str(name)) and name not in own:
                yield node.lineno, ast.unparse(node)


def tagged(lines: list[str], number: int) -> bool:
    """Whether a line, or the comment above it, has a tag."""
    if TAG.search(lines[number - 1]):
        return True
    above = number - 2
    while above >= 0 and lines[above].lstrip().startswith("#"):
        if TAG.search(lines[above]):
            return True
        above -= 1
    return False


def untagged(package: Path) -> list[str]:
    """Private parts of libraries that are used without a tag."""
    files = sorted(package.rglob("*.py"))
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files}
    own = set().union(*map(own_names, trees.values()))
    return [
        f"{path.relative_to(package.parent)}:{number}: {text}"
        for path, tree in trees.items()
        for number, text in uses(tree, own)
        if not tagged(path.read_text(encoding="utf-8").splitlines(), number)
    ]


def test_no_private_part_is_used_without_a_tag() -> None:
    assert untagged(PACKAGE) == [], "use what is public, or tag the line: # private: <library> <name>"


def overridden(cls: type) -> list[str]:
    """Private names that a class of the package shares with a library's base class: methods and attributes."""
    mine = own_names(ast.parse(textwrap.dedent(inspect.getsource(cls))))
    found = []
    for base in cls.__mro__[1:]:
        if base.__module__.partition(".")[0] in ("ickd_pl", "builtins", "abc", "typing"):
            continue
        try:
            inherited = own_names(ast.parse(textwrap.dedent(inspect.getsource(base))))
        except (OSError, TypeError):  # written in C
            continue
        found += [f"{base.__module__}.{base.__qualname__}.{name}" for name in filter(is_private, mine & inherited)]
    return found


def own_classes() -> Iterator[type]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        if path.name != "__main__.py":
            module = importlib.import_module(name)
            yield from (c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__)


def test_no_class_overrides_a_private_part_without_a_tag() -> None:
    found = {}
    for cls in own_classes():
        names = [name for name in overridden(cls) if not tagged_name(cls, name.rpartition(".")[2])]
        if names:
            found[f"{cls.__module__}.{cls.__qualname__}"] = names
    assert found == {}, "a name of a library's base class: take another name, or tag the line"


def tagged_name(cls: type, name: str) -> bool:
    lines = Path(str(sys.modules[cls.__module__].__file__)).read_text(encoding="utf-8").splitlines()
    numbers = [n for n, line in enumerate(lines, start=1) if re.search(rf"\b{name}\b", line)]
    return any(tagged(lines, number) for number in numbers)


def test_planted_uses_are_found(tmp_path: Path) -> None:
    (tmp_path / "ickd_pl").mkdir()
    (tmp_path / "ickd_pl" / "a.py").write_text(
        "from torch._C import x\n"  # 1
        "import a._b as b  # private: a a._b\n"
        "from lightning_fabric import y\n"  # 3
        "from ickd_pl.b import _ours\n"
        "class A(Base):\n"
        "    def _mine(self): return self._mine, self.b._mine, self._theirs\n"  # 6
        "# private: torch Tensor._version\n"
        "# which counts writes\n"
        "z = y._version + getattr(y, '_other')\n"
        "z = getattr(y, '_other')\n"  # 10
        "w = t._replace(a=1).__class__\n"
    )
    found = [line.partition(": ")[0] for line in untagged(tmp_path / "ickd_pl")]
    assert sorted(found) == [f"ickd_pl/a.py:{number}" for number in (1, 10, 3, 6)]
    assert tags(tmp_path / "ickd_pl") == {"a a._b": ["ickd_pl/a.py:2"], "torch Tensor._version": ["ickd_pl/a.py:7"]}


class Shadowing(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self._trainer = None
        self._mine = 1


def test_a_name_of_a_base_class_is_found() -> None:
    assert [name.rpartition(".")[2] for name in overridden(Shadowing)] == ["_trainer"]
