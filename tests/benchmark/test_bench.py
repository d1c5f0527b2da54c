"""``bench`` from the shipped file to the report: killed and resumed, in two shards, with invalid input."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ickd_pl.benchmark.plan import Benchmark, shard_of
from ickd_pl.benchmark.schema import shipped
from tests.benchmark.helpers import quick, refused, results, run
from tests.runs.helpers import REPOSITORY, Forked, assert_same_run, cli, load, rows_of, snapshot, subprocess_cli


def again(done: Path) -> Path:
    """A copy that tests may change, with its benchmark file."""
    shutil.copytree(done, "out")
    quick()
    return Path("out")


def test_every_cell_has_its_result_and_a_solo_checkpoint(done: Path) -> None:
    found = results(done)
    methods, seeds = ("vanilla", "kd", "ickd", "ickd_kl"), (0, 1)
    expected = {f"resnet20_resnet8/{m}/seed_{s}" for m in methods for s in seeds} | {"teachers/resnet20/seed_0"}
    assert set(found) == expected
    for name, result in found.items():
        path = done / "cells" / name
        assert result["status"] == "done"
        predictions = np.load(path / "predictions.npz")
        share = 100 * float((predictions["predicted"] == predictions["label"]).mean())
        assert result["acc1_last"] == pytest.approx(share, abs=1e-4) == float(rows_of(path)[-1]["test/acc1"])
        assert result["num_test"] == 360
    assert not list(done.rglob("pack.ckpt"))
    for kind in ("md", "csv", "tex", "html"):
        assert (done / f"report.{kind}").stat().st_size > 0
    tested = cli("test", "--ckpt_path", done / "cells/resnet20_resnet8/kd/seed_1/checkpoints/last.ckpt")
    assert tested.status == 0 and f"{found['resnet20_resnet8/kd/seed_1']['acc1_last']:.3f}"[:5] in tested.out


def test_a_packed_cell_is_the_command_that_plan_prints(done: Path) -> None:
    planned = cli("bench", "plan", "--config", quick(), "--output", "plan", "--no-timing", "--commands")
    assert planned.status == 0, planned.err
    line = next(text for text in planned.out.splitlines() if "methods/ickd_kl.yaml" in text and "seed_1" in text)
    teacher = done / "cells/teachers/resnet20/seed_0/checkpoints/last.ckpt"
    alone = cli(*line.split()[2:], "--model.teacher_weights", teacher)
    assert alone.status == 0, alone.err
    solo = Path("plan/alone/digits/resnet20_resnet8/ickd_kd/seed_1")
    assert_same_run(solo, done / "cells/resnet20_resnet8/ickd_kl/seed_1")


def test_finished_cells_are_skipped(done: Path) -> None:
    folder = again(done)
    before = snapshot(folder / "cells")
    outcome = run()
    assert outcome.status == 0, outcome.err
    assert snapshot(folder / "cells") == before
    assert "percent" not in outcome.out


@pytest.mark.reliability
def test_killed_at_any_point_the_results_are_the_same(done: Path) -> None:
    """SIGKILL as soon as the first cell has a result, in a pack's first epoch, and while the next pack begins."""
    quick()
    command = [sys.executable, str(REPOSITORY / "cli.py"), "bench", "run", "--config", "short.yaml", "--output", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments = (
        "cells/teachers/resnet20/seed_0/metrics.csv",
        "packs/resnet20_resnet8/seed_0/pack.ckpt",
        "cells/resnet20_resnet8/kd/seed_0/result.json",
        "packs/resnet20_resnet8/seed_1/.lock",
    )
    kept: dict[str, tuple[int, bytes]] = {}
    for moment in moments:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        deadline = time.monotonic() + 180
        while not Path("out", moment).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # The last start did not touch earlier results.
        now = {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in Path("out").rglob("result.json")}
        assert all(now[path] == content for path, content in kept.items())
        kept = now
    assert run().status == 0
    assert results(Path("out")) == results(done)
    for name in results(done):
        assert_same_run(Path("out/cells") / name, done / "cells" / name)


@pytest.mark.reliability
def test_two_shards_at_once(done: Path, forked: Forked) -> None:
    quick()
    command = ["bench", "run", "--config", "short.yaml", "--output", "out", "--shard"]
    for process in [forked.start(*command, f"{i}/2") for i in (1, 2)]:
        outcome = process.wait()
        assert outcome.status == 0, outcome.err
    assert results(Path("out")) == results(done)


def test_shards_share_the_cells_out() -> None:
    groups = Benchmark.read("configs/benchmarks/cifar100.yaml").groups
    parts = [shard_of(groups, (i, 4)) for i in (1, 2, 3, 4)]
    students = [str(group) for part in parts for group in part if group.cells[0].kind == "student"]
    assert sorted(students) == sorted(str(group) for group in groups if group.cells[0].kind == "student")
    for part in parts:
        trained = {group.cells[0].network for group in part if group.cells[0].kind == "teacher"}
        assert trained == {cell.teacher for group in part for cell in group.cells if cell.teacher}


def test_a_method_may_be_added(done: Path) -> None:
    folder = again(done)
    before = {name: (folder / "cells" / name / "result.json").read_bytes() for name in results(folder)}
    content = yaml.safe_load(Path("short.yaml").read_text())
    content["methods"].append("sp")
    Path("short.yaml").write_text(yaml.safe_dump({**content, "seeds": [0, 1]}))
    outcome = run()
    assert outcome.status == 0, outcome.err
    assert set(results(folder)) - set(before) == {"resnet20_resnet8/sp/seed_0", "resnet20_resnet8/sp/seed_1"}
    assert all((folder / "cells" / name / "result.json").read_bytes() == text for name, text in before.items())


def test_an_incompatible_pair_is_a_refused_cell() -> None:
    quick(pairs=["wrn_40_2_wrn_40_1"], methods=["vanilla", "fsp"], seeds=[0], pack=False)
    content = yaml.safe_load(Path("short.yaml").read_text())
    content["data"]["init_args"]["train_size"] = 10
    content["teachers"]["data"]["init_args"]["train_size"] = 10
    content["trainer"]["max_epochs"] = 1
    content["model"]["milestones"] = []
    Path("short.yaml").write_text(yaml.safe_dump(content))
    outcome = run()
    assert outcome.status == 0, outcome.err
    refused = results(Path("out"))["wrn_40_2_wrn_40_1/fsp/seed_0"]
    assert refused["status"] == "refused" and "channel counts must agree" in refused["reason"]
    assert "channel counts" in Path("out/report.md").read_text()


def test_arguments_are_chosen_on_validation_images(done: Path) -> None:
    weights = str(done / "cells/teachers/resnet20/seed_0/checkpoints/last.ckpt")
    content = yaml.safe_load(Path(quick()).read_text())
    content["teachers"] = {"weights": {"resnet20": weights}}
    quick(
        methods=["kd"], seeds=[0], choices={"kd": {"KD.temperature": [1.0, 8.0]}}, val_size=100,
        teachers=content["teachers"],
    )  # fmt: skip
    outcome = run()
    assert outcome.status == 0, outcome.err
    result = results(Path("out"))["resnet20_resnet8/kd/seed_0"]
    choice = result["chosen_on_validation"]
    assert [c["arguments"] for c in choice["candidates"]] == [{"KD.temperature": 1.0}, {"KD.temperature": 8.0}]
    best = max(choice["candidates"], key=lambda c: c["val_acc1"])
    assert choice["arguments"] == best["arguments"]
    saved = load(Path("out/cells/resnet20_resnet8/kd/seed_0/checkpoints/last.ckpt"))["hyper_parameters"]
    assert saved["strategies"][0]["init_args"]["temperature"] == best["arguments"]["KD.temperature"]
    assert "val/acc1" in rows_of(Path("out/choices/resnet20_resnet8/kd/seed_0/0"))[-1]
    assert "test/acc1" in rows_of(Path("out/cells/resnet20_resnet8/kd/seed_0"))[-1]
    assert "KD.temperature" in Path("out/report.md").read_text()


def test_status_of_a_half_done_benchmark(done: Path) -> None:
    folder = again(done)
    (folder / "cells/resnet20_resnet8/kd/seed_1/result.json").unlink()
    shutil.rmtree(folder / "cells/resnet20_resnet8/ickd/seed_1")
    outcome = cli("bench", "status", "--output", folder)
    assert outcome.status == 0, outcome.err
    assert "half done resnet20_resnet8/kd/seed_1 epoch 2 of 2" in outcome.out
    assert "to do     resnet20_resnet8/ickd/seed_1" in outcome.out
    assert "9 cells: 7 done" in outcome.out


# -- wrong input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "needles"),
    [
        ({"methods": ["kd", "ikcd"]}, ["methods: unknown ikcd", "ickd"]),
        ({"pairs": ["resnet20_resnet9"]}, ["pairs: unknown resnet20_resnet9", "resnet20_resnet8"]),
        ({"seeds": [0, 0]}, ["seeds lists 0 twice"]),
        ({"seeds": ["a"]}, ["seeds must be whole numbers"]),
        ({"sedes": [1]}, ["unknown key sedes", "seeds"]),
        ({"methods": []}, ["methods is missing or empty"]),
        ({"pack": "maybe"}, ["pack must be a bool"]),
        ({"data": {}}, ["data is missing or empty"]),
        ({"data": {"init_args": {}}}, ["expected class_path"]),
        ({"trainer": {"devices": 2}}, ["a cell runs on one device, got devices 2", "--shard"]),
        ({"teachers": {"trainer": {"num_nodes": 4}}}, ["teachers, trainer", "num_nodes 4"]),
        ({"teachers": {"get": "steal"}}, ["get is 'steal'", "fetch"]),
        ({"choices": {"kd": {"KD.temperature": [1, 2]}}}, ["validation split", "val_size"]),
        ({"choices": {"at": {"AT.power": [1]}}, "val_size": 9}, ["choices: unknown at"]),
    ],
)
def test_a_wrong_benchmark_file(change: dict[str, Any], needles: list[str]) -> None:
    message = refused("run", "--config", quick(**change), "--output", "out")
    assert all(needle in message for needle in needles), message
    assert not Path("out").exists()


def test_a_folder_of_another_benchmark(done: Path) -> None:
    folder = again(done)
    before = snapshot(folder)
    quick(trainer={"max_epochs": 3})
    message = refused("run", "--config", "short.yaml", "--output", folder)
    assert "another benchmark" in message and "trainer.max_epochs: 2 -> 3" in message
    assert snapshot(folder) == before


def test_a_folder_of_something_else() -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("results")
    message = refused("run", "--config", quick(), "--output", "out")
    assert "thesis.txt" in message and Path("out/thesis.txt").read_text() == "results"
    assert "not a results folder" in refused("report", "--output", "out")
    assert "not a results folder" in refused("status", "--output", "nowhere")


def test_a_teacher_that_changed_since(done: Path) -> None:
    folder = again(done)
    last = folder / "cells/teachers/resnet20/seed_0/checkpoints/last.ckpt"
    content = load(last)
    content["state_dict"]["student.fc.bias"] += 1
    import torch

    torch.save(content, last)
    message = refused("run", "--config", "short.yaml", "--output", folder)
    assert "weights of resnet20 have changed since" in message


def test_results_of_different_code_are_refused_or_marked(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = again(done)
    shutil.rmtree(folder / "cells/resnet20_resnet8/kd")
    monkeypatch.setattr("ickd_pl.benchmark.folder.code_hash", lambda: "0" * 64)
    message = refused("run", "--config", "short.yaml", "--output", folder)
    assert "trained with different code" in message and "--accept-code" in message
    outcome = run("--accept-code")
    assert outcome.status == 0, outcome.err
    found = results(folder)
    assert found["resnet20_resnet8/kd/seed_0"]["accepted_code"] is True
    assert found["resnet20_resnet8/ickd/seed_0"]["accepted_code"] is False


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may write everywhere")
def test_a_read_only_folder() -> None:
    Path("out").mkdir(mode=0o500)
    assert "cannot write into out" in refused("run", "--config", quick(), "--output", "out")


def test_output_is_a_file() -> None:
    Path("out").write_text("")
    assert "cannot write into out" in refused("run", "--config", quick(), "--output", "out")


@pytest.mark.reliability
def test_two_runs_of_the_same_cells(done: Path) -> None:
    folder = again(done)
    for path in (folder / "cells/resnet20_resnet8").glob("*/seed_1/result.json"):
        path.unlink()
    from filelock import FileLock

    with FileLock(folder / "packs/resnet20_resnet8/seed_1/.lock"):
        outcome = subprocess_cli("bench", "run", "--config", "short.yaml", "--output", "out")
        assert outcome.status == 0, outcome.err
        assert "another process is running it" in outcome.out
        status = subprocess_cli("bench", "status", "--output", "out")
        assert "running   resnet20_resnet8/kd/seed_1" in status.out
    assert len(results(folder)) == 5


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "-1/2"])
def test_a_wrong_shard(shard: str) -> None:
    assert "--shard" in refused("run", "--config", quick(), "--output", "out", f"--shard={shard}")


@pytest.mark.parametrize(("epochs", "first"), [(240, 30), (12, 1), (24, 3)])
def test_a_first_stage_is_an_eighth_of_the_main_epochs(epochs: int, first: int) -> None:
    benchmark = Benchmark.read(quick(methods=["kd", "fsp"], trainer={"max_epochs": epochs}))
    assert [s["init_args"]["pretrain_epochs"] for s in benchmark.strategies("fsp")] == [first]
    assert [str(group) for group in benchmark.groups][1:] == [
        "resnet20_resnet8/kd/seed_0", "resnet20_resnet8/fsp/seed_0",
        "resnet20_resnet8/kd/seed_1", "resnet20_resnet8/fsp/seed_1",
    ]  # fmt: skip
    outcome = cli("bench", "plan", "--config", "short.yaml", "--no-timing")
    assert f"resnet20_resnet8/fsp/seed_0: {epochs + first} epochs" in outcome.out


@pytest.mark.parametrize("name", shipped("benchmarks"))
def test_shipped_files_are_planned(name: str) -> None:
    outcome = cli("bench", "plan", "--config", f"configs/benchmarks/{name}.yaml", "--no-timing")
    if name == "tin32":  # its images are not available
        assert outcome.status == 2 and "tin32-a" in outcome.err
        return
    assert outcome.status == 0, outcome.err
    assert f"{name}: {len(Benchmark.read(f'configs/benchmarks/{name}.yaml').cells)} cells" in outcome.out


@pytest.mark.slow
def test_the_estimate_is_accurate() -> None:
    """Within 30 % on quick.yaml; on a busy machine neither number is reliable."""
    planned = subprocess_cli("bench", "plan", "--config", "configs/benchmarks/quick.yaml")
    estimate = float(planned.out.rsplit("(", 1)[1].split()[0])
    began = time.perf_counter()
    outcome = subprocess_cli(
        "bench", "run", "--config", "configs/benchmarks/quick.yaml", "--output", "out", seconds=900
    )
    assert outcome.status == 0, outcome.err
    took = time.perf_counter() - began
    assert abs(estimate - took) <= 0.3 * took, (estimate, took)
