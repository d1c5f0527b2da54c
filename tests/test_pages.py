"""Code on the pages of docs/ is run by a test, or its options are checked here, or it is marked as output."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from ickd_pl.benchmark.plan import Benchmark
from tests.runs.helpers import REPOSITORY, cli

DOCS = REPOSITORY / "docs"
BLOCKS = [
    (path.name, language, dedent(code))
    for path in sorted(DOCS.glob("*.md"))
    for language, code in re.findall(r"^ *```(\S*)\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.M | re.S)
]
# Where the Python of a page is run.
RUN = {
    "adding_a_method.md": "here",
    "benchmark.md": "test_readme.py::test_the_pack_in_python",
    "own_data.md": "test_readme.py::test_the_data_module_of_ones_own",
    "reliability.md": "test_reliability_page.py::test_the_code_runs",
}
FITS = (["fit"], ["teachers", "train"])
# Words of an example that stand for something, or are the shell's.
EXAMPLES = {"configs/methods/foo.yaml": "configs/methods/kd.yaml", "own.Stripes": "Digits", "$method": "kd", "...": ""}


def commands() -> list[tuple[str, list[str]]]:
    """Every command line of the project on the pages, as words after the program."""
    found = []
    for page, language, code in BLOCKS:
        if language in ("sh", "bash"):
            common = "".join(re.findall(r'^COMMON="(.+)"$', code, re.M))
            for line in code.replace("\\\n", " ").splitlines():
                words = re.search(
                    r"(?:\bpython cli\.py|\bickd|\d cli\.py) ((?:fit|test|predict|teachers|bench|export|data) .+)", line
                )
                if words and not line.startswith("#"):
                    text = words[1].replace("$COMMON", common).replace("$SLURM_ARRAY_TASK_ID", "1")
                    for example, real in EXAMPLES.items():
                        text = text.replace(example, real)
                    found.append((page, shlex.split(text, comments=True)))
    return found


def test_every_block_is_run_or_output() -> None:
    assert {language for _, language, _ in BLOCKS} <= {
        "sh",
        "bash",
        "python",
        "yaml",
        "text",
        "{eval-rst}",
        "{toctree}",
    }
    assert {page for page, language, _ in BLOCKS if language == "python"} == RUN.keys()
    for where in RUN.values():
        file, _, name = where.partition("::")
        assert where == "here" or f"def {name}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8")


def test_the_options_of_every_command_exist() -> None:
    """Fits are parsed whole, with their files; of the others every option is in their help."""
    assert len(commands()) > 25
    for page, words in commands():
        if any(words[: len(fit)] == fit for fit in FITS):
            # the method's weights and a device per process are of the machine
            done = cli(*words, "--print_config")
            assert done.status == 0, (page, words, done.err)
            assert yaml.safe_load(done.out), (page, words)
        else:
            depth = 2 if words[0] in ("teachers", "bench", "data") else 1
            done = cli(*words[:depth], "--help")
            assert done.status == 0, (page, words, done.err)
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            assert [option for option in options if option not in done.out] == [], (page, words)
            assert all(Path(REPOSITORY / word).is_file() for word in words if word.startswith("configs/")), (
                page,
                words,
            )


def test_every_yaml_is_read() -> None:
    pages = [(page, code) for page, language, code in BLOCKS if language == "yaml"]
    assert len(pages) == 3
    for page, code in pages:
        assert isinstance(yaml.safe_load(code), dict), page
    Path("mine.yaml").write_text(dict(pages)["benchmark.md"], encoding="utf-8")
    assert len(Benchmark.read("mine.yaml").cells) == 10  # a teacher and three methods, for three seeds


@pytest.mark.parametrize("page", [page for page, where in RUN.items() if where == "here"])
def test_a_method_of_ones_own(page: str) -> None:
    """In a process of its own: its class would be one more of the methods that other tests find."""
    (code,) = [code for name, language, code in BLOCKS if (name, language) == (page, "python")]
    assert "class Foo(LossStrategy):" in code
    Path("foo.py").write_text(code, encoding="utf-8")
    program = "import torch, foo; x = torch.rand(4, 10); print(foo.Foo(weight=2.0).spec(), foo.foo_loss(x, x).item())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{REPOSITORY}:{Path.cwd()}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0 and "'weight': 2.0" in done.stdout and done.stdout.endswith(" 0.0\n"), done.stderr
