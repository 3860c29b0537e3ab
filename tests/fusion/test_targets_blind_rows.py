"""Queries that see no key (a fully padded row, left padding): the fused model gives there what the source gives."""

from __future__ import annotations

import numpy as np
import pytest
from target_graphs import BSD, CAUSAL, MERGE, SPLIT, fused, random_feeds, read, results

from explorer.fusion import Plan, apply

LOW = "-3.4028234663852886e38"
HIDE = f"hide = Constant<value_float = {LOW}>()"
# Causal, then padding: the ways in which decoders put one upon the other
SPELLINGS = {
    "one condition": f"{HIDE} both = And(seen, keep) m2 = Where(both, x, hide) p = Softmax(m2)",
    "two conditions": f"{HIDE} m1 = Where(seen, x, hide) m2 = Where(keep, m1, hide) p = Softmax(m2)",
    "hidden, then added": f"""{HIDE} zero = Constant<value_float = 0.0>() pad = Where(keep, zero, hide)
        m1 = Where(seen, x, hide) m2 = Add(m1, pad) p = Softmax(m2)""",
    "added, behind a guard": f"""{HIDE} zero = Constant<value_float = 0.0>() both = And(seen, keep)
        pad = Where(both, zero, hide) m2 = Add(x, pad) p0 = Softmax(m2) nan = IsNaN(p0) p = Where(nan, zero, p0)""",
    "infinite, behind a guard": """zero = Constant<value_float = 0.0>() both = And(seen, keep)
        pad = Where(both, zero, never) m2 = Add(x, pad) p0 = Softmax(m2) nan = IsNaN(p0) p = Where(nan, zero, p0)""",
}


@pytest.mark.parametrize("target", ["mha", "attention"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_rows_that_see_nothing_are_what_they_were(spelling: str, target: str) -> None:
    causal = CAUSAL[: CAUSAL.index("m = Where")]
    inputs = f"{BSD.replace(' t,', ' s,')}, bool[b, 1, 1, s] keep"
    model, block = read(f"({inputs}) => (float[b, s, 16] y) {{ {SPLIT} {causal} {SPELLINGS[spelling]} {MERGE} }}")
    feeds = random_feeds(model, b=3, s=6)
    feeds["keep"] = np.ones((3, 1, 1, 6), bool)
    feeds["keep"][1, ..., :2] = False  # padded on the left: the first two queries see nothing
    feeds["keep"][2] = False
    source = results(apply(model, [block], Plan(model.digest)), feeds)
    assert np.isfinite(source).all()
    np.testing.assert_allclose(results(fused(model, block, target), feeds), source, atol=1e-5)
