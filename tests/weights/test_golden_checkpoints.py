"""Teacher files in the benchmark's on-disk format: the good ones give the stored logits, the others are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ickd_pl import load_teacher
from ickd_pl.errors import UserError
from tests.golden import golden_index, golden_params, golden_path, tensor

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("entry", golden_params("checkpoints"))
def test_checkpoint(entry: dict[str, Any]) -> None:
    path = golden_path(entry["file"])
    # RepDistiller names the folder after the network, as in resnet8_vanilla.
    name = Path(entry["file"]).parent.name.partition("_vanilla")[0]
    network = next(e for e in golden_index()["models"]["entries"] if e["name"] == name)
    before = set(Path.cwd().iterdir())
    if not entry["loads"]:
        with pytest.raises(UserError) as caught:
            load_teacher(name, path, network["num_classes"])
        assert str(path) in str(caught.value)
        assert set(Path.cwd().iterdir()) == before
        return
    net = load_teacher(name, path, network["num_classes"])
    with torch.no_grad():
        logits = net(tensor(golden_index()["models"]["images"]))
    expected = tensor(network["eval_logits"])
    assert (logits - expected).norm() <= network["rtol_logits"] * expected.norm()
