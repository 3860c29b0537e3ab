from __future__ import annotations

from explorer.runtime import Deadline


def test_several_calls_share_one_limit(monkeypatch):
    now_s = iter([100.0, 100.0, 101.26, 102.4, 103.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now_s))
    deadline = Deadline(2.5)
    assert [deadline.left_s() for _ in range(4)] == [2.5, 1.2, 0.1, 0.0]


def test_without_a_limit_there_is_always_time():
    assert Deadline(None).left_s() is None
