from pipeline.progress import Progress, plain_lines


def test_a_stage_says_when_it_begins_and_ends() -> None:
    """Between the first and the last report of a quick stage nothing is written."""
    lines: list[str] = []
    listen = plain_lines(lines.append)
    for done in range(101):
        listen(Progress("reading images", done, 100))
    assert lines == ["reading images: 0/100 images", "reading images: 100/100 images"]


def test_a_slow_stage_is_heard_from() -> None:
    """With no interval every report is a line, its note included."""
    lines: list[str] = []
    listen = plain_lines(lines.append, interval_s=0)
    listen(Progress("training", 1500, None, "steps", "loss 0.5"))
    listen(Progress("training", 1600, None, "steps"))
    assert lines == ["training: 1,500 steps, loss 0.5", "training: 1,600 steps"]
