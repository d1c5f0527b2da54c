"""Maps of two sizes are averaged to one, by operations that are deterministic on CUDA where there is one."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from ickd_pl.strategies.components import compatibility
from ickd_pl.strategies.components.compatibility import match_size


@pytest.mark.parametrize("size", [(8, 8), (4, 2), (3, 5), (7, 8)])
def test_maps_of_two_sizes(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 5, *size)
    expected = adaptive_avg_pool2d(large, size)
    if all(8 % side == 0 for side in size):
        # Its gradient on CUDA is refused under trainer.deterministic.
        monkeypatch.delattr(compatibility, "adaptive_avg_pool2d")
    found, unchanged = match_size(large, small)
    torch.testing.assert_close(found, expected)
    assert unchanged is small
