import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.parts import part_of, starts


@given(count=st.integers(0, 1000), parts=st.integers(1, 40))
def test_parts_are_equal_and_complete(count: int, parts: int) -> None:
    """Every thing is in one part, in order; sizes differ by one at most; torch and numpy cut alike."""
    things = np.arange(count)
    cut = [things[part_of(count, part, parts)] for part in range(parts)]
    assert np.concatenate(cut).tolist() == things.tolist()
    sizes = [len(part) for part in cut]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == [len(part) for part in np.array_split(things, parts)]
    assert sizes == [len(part) for part in torch.tensor_split(torch.arange(count), parts)]
    assert starts(count, parts) == [0, *np.cumsum(sizes).tolist()]
