"""README: its commands and code run (with fewer epochs), its first screen is whole, its claims stand in docs/."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ickd_pl.data import Digits
from ickd_pl.runs.configs import config_root
from ickd_pl.strategies import discover
from ickd_pl.version import __version__
from tests.runs.helpers import QUIET, REPOSITORY, Forked, Run, load

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
DOCS = REPOSITORY / "docs"
TEACHER = "checkpoints/digits/resnet20_vanilla/ckpt_epoch_12.pth"
SETUP, NETWORK, COMMANDS = re.findall(r"^```(\w+)\n(.+?)^```", README, re.M | re.S)


def commands(block: str) -> list[str]:
    return block.replace("\\\n", "").strip().splitlines()


def newcomer() -> list[str]:
    text = (DOCS / "start.md").read_text(encoding="utf-8")
    return commands(text.partition("# newcomer\n")[2].partition("```")[0])


def test_the_first_screen() -> None:
    """Sixty lines: install, two commands, Python, the same as a command, why, and all methods."""
    assert [language for language, _ in (SETUP, NETWORK, COMMANDS)] == ["sh", "python", "sh"]
    assert [line.partition("#")[0].strip() for line in commands(SETUP[1])] == [
        "pip install '.[demo]'",
        "make demo",
        "make test",
    ]
    first = "\n".join(README.splitlines()[:60])
    assert "`mine.py`" in first and "**Behind it**" in first and "KDSVD (" in first
    assert len(NETWORK[1].strip().splitlines()) < 25


def test_the_set_up_commands_exist() -> None:
    """Both are run elsewhere: the demo in tests/examples/test_demo.py, `make test` by whoever runs this."""
    done = subprocess.run(["make", "-n", "demo", "test"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "examples/demo.py" in done.stdout and "-m pytest" in done.stdout and "mypy" in done.stdout


@pytest.mark.filterwarnings("ignore")
def test_an_own_network_in_python_and_by_command(forked: Forked, teacher: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both lines of the README train the same student, bit for bit."""
    train, python, fit = commands(COMMANDS[1])
    # run by the test of those commands
    assert train.removeprefix("ickd") == newcomer()[0].removeprefix("python cli.py")
    assert python == "python mine.py"
    assert TEACHER in NETWORK[1] and TEACHER in fit
    Path("mine.py").write_text(NETWORK[1].replace(TEACHER, str(teacher.last)).replace("max_epochs=12", "max_epochs=1"))
    monkeypatch.setattr("ickd_pl.Digits", lambda: Digits(train_size=64), raising=False)
    module = runpy.run_path("mine.py", run_name="__main__")["module"]
    program, *args = shlex.split(fit.replace(TEACHER, str(teacher.last)).replace("max_epochs 12", "max_epochs 1"))
    done = forked.run("tests.runs.console", *args, *QUIET, "--data.train_size=64")
    assert program == "ickd" and done.status == 0, done.err
    saved = load(Path("outputs/digits/resnet20_Net/ickd_kd/seed_0/checkpoints/last.ckpt"))["state_dict"]
    own = module.student.state_dict()
    assert own and [name for name, value in own.items() if not torch.equal(saved[f"student.{name}"], value)] == []


def test_the_five_commands_for_newcomers(forked: Forked) -> None:
    pytest.importorskip("onnxruntime")
    *lines, last = newcomer()
    assert len(lines) == 4
    for line in lines:
        short = line.replace("max_epochs 12", "max_epochs 1").replace("ckpt_epoch_12", "ckpt_epoch_1")
        program, *args = shlex.split(short.replace("[8,9,11]", "[1]").removeprefix("python "))
        done = forked.run(*args, *(QUIET if "--data" in args else []))
        assert program == "cli.py" and done.status == 0, f"{line}\n{done.err}"
    python = subprocess.run(
        [sys.executable, *shlex.split(last)[1:]], capture_output=True, text=True, timeout=240, check=False
    )
    assert python.stdout.strip() == "(7, 10)", python.stderr


def test_the_five_things_that_ickd_without_words_says() -> None:
    """The first four are the commands for newcomers, which run above; the fifth is the demo's."""
    done = subprocess.run([sys.executable, "cli.py"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert re.findall(r"^(\d)\. ", done.stderr, re.M) == ["1", "2", "3", "4", "5"]
    said = [line.split() for line in commands(done.stderr.replace("\\\n", " ")) if line.startswith("   python")]
    assert said[:4] == [line.replace("onnx", "safetensors").split() for line in newcomer()[:4]]  # needs no extra
    demo = (REPOSITORY / "examples/demo.py").read_text(encoding="utf-8")
    assert said[4][2:4] == ["bench", "run"] and f'CONFIG = "{said[4][5]}"' in demo and f'"{said[4][7]}"' in demo


def test_the_pack_in_python(teacher: Run) -> None:
    text = (DOCS / "benchmark.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert TEACHER in code
    short = (
        code.replace(TEACHER, str(teacher.last))
        .replace("max_epochs=12", "max_epochs=1")
        .replace("Digits())", "Digits(train_size=64))")
    )
    exec(compile(short, "docs/benchmark.md", "exec"), {"__name__": "docs"})
    for name in ("vanilla", "kd", "ickd"):
        checkpoint = load(Path("outputs/pack") / name / "checkpoints" / "last.ckpt")
        assert checkpoint["ickd_pl"] and not [key for key in checkpoint["state_dict"] if "teacher" in key]


def test_the_data_module_of_ones_own(forked: Forked) -> None:
    text = (DOCS / "own_data.md").read_text(encoding="utf-8")
    (_, code), (_, command) = re.findall(r"^```(\w+)\n(.+?)^```", text, re.M | re.S)
    Path("own.py").write_text(code.replace("= 2, 256, 32, 32", "= 2, 64, 32, 32"))
    (line,) = commands(command)
    words = shlex.split(line.replace("max_epochs 2", "max_epochs 1"))[1:]
    done = forked.run("tests.runs.console", *words, *QUIET)
    assert done.status == 0, done.err
    assert Path("outputs/stripes/resnet8/vanilla/seed_0/checkpoints/last.ckpt").is_file(), list(Path().rglob("*.ckpt"))


# -- claims ------------------------------------------------------------------------------------------------------------


def test_versions_are_those_of_the_package() -> None:
    (badges,) = [line for line in README.splitlines() if line.startswith("**version**")]
    assert badges.startswith(f"**version** {__version__} ·")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == __version__ and changes.startswith(f"# Changelog\n\n## {__version__}\n")
    setup = (REPOSITORY / "setup.cfg").read_text(encoding="utf-8")
    assert f"python_requires = >={re.findall(r'Python.. ≥ ([0-9.]+)', badges)[0]}\n" in setup
    for name, floor in re.findall(r"\*\*([a-z-]+)\*\* ≥ ([0-9.]+)", badges):
        assert re.search(rf"^    {name}>={re.escape(floor)}(,|$)", setup, re.M), name


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{p.name}" for p in DOCS.glob("*.md")), "CHANGELOG.md"])
def test_links_lead_somewhere(page: str) -> None:
    path = REPOSITORY / page
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        if not link.startswith("http"):
            target = path.parent / file if file else path
            assert target.exists(), link
            titles = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
            assert not anchor or anchor in {re.sub(r"[^\w-]", "", t.lower().replace(" ", "-")) for t in titles}, link


def test_figures_are_those_of_the_pages_that_are_linked() -> None:
    """Each number of a reason or a result stands in a page that its line links to."""
    start, end = README.index("**Why this"), README.index("| compares |")
    results = README[README.index("## Results") : README.index("## Where to go on")]
    lines = [line for line in README[start:end].splitlines() if line.startswith("- **")]
    assert len(lines) == 5
    for line in [*lines, *(line for line in results.splitlines() if line.startswith("| ["))]:
        pages = [DOCS / name for name in re.findall(r"\]\(docs/(\w+\.md)(?:#[\w-]+)?\)", line)]
        text = " ".join(page.read_text(encoding="utf-8") for page in pages)
        plain = re.sub(r"\]\(.+?\)|\b[a-z]+\d+(x4)?\b|-\d+", "", line.replace("Twelve rows", ""))
        for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\w)", plain):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.]*\d)", text), f"{number} of: {line[:60]}"


def test_every_method_is_there_with_its_paper_and_its_pairs() -> None:
    lines = (DOCS / "pairs.md").read_text("utf-8").splitlines()
    cells = [line.strip("|").split("|") for line in lines if line.startswith("|")]
    names, pairs = [cell.strip() for cell in cells[0][1:]], cells[2:]
    assert names == sorted(discover()), "run python benchmarks/pairs.py"
    table = [line.split("|")[2:4] for line in README.splitlines() if " of 13 pairs" in line]
    page = (DOCS / "methods.md").read_text("utf-8")
    for column, name in enumerate(names, start=1):
        works = sum(row[column].strip() == "yes" for row in pairs)
        paper = (config_root() / "methods" / f"{name}.yaml").read_text("utf-8").splitlines()[0].removeprefix("# ")
        assert f"| {paper} | `{name}` | {works} |" in page
        titles = {"fitnet": "FitNet", "ickd": "ICKD-C", "simkd": "SimKD", "catkd": "CAT-KD", "reviewkd": "ReviewKD"}
        title = titles.get(name, name.upper())
        ((cited, where),) = [
            (c[1], row[1]) for row in table if (c := re.search(rf"(?<![\w-]){title} \((.+?)\)", row[0]))
        ]
        assert f"{works} of 13" in where, name
        authors, _, venue = cited.rpartition(", ")
        assert paper.startswith(authors) and paper.endswith(venue), name
    assert f"{len(names)} methods" in README.partition("```")[0]
