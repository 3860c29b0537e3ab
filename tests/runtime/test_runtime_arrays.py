from __future__ import annotations

import numpy as np
import pytest

from explorer.runtime import arrays


@pytest.mark.parametrize("name", ["/layers.0/attn/Softmax_output:0", "../x", "file", "names", "arr_0", "ü ×", ""])
def test_any_tensor_name_survives(tmp_path, name):
    arrays.save(tmp_path / "a.npz", {name: np.arange(3), "other": np.array(2.5, np.float16)})
    loaded = arrays.load(tmp_path / "a.npz")
    assert list(loaded) == [name, "other"]
    np.testing.assert_array_equal(loaded[name], [0, 1, 2])
    assert (loaded["other"].dtype, loaded["other"].shape) == (np.float16, ())


def test_the_path_is_taken_literally_and_nothing_is_a_valid_content(tmp_path):
    arrays.save(tmp_path / "odd.name", {})
    assert arrays.load(tmp_path / "odd.name") == {}
