from __future__ import annotations


def test_the_log_can_be_read_from_a_mark(context):
    context.log_path.write_text("before")
    mark = context.log_mark()
    with context.log_path.open("a") as log:
        log.write("after")
    assert context.log_since(mark) == "after"
