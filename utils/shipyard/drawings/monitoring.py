"""The closed loop around a model in service, and what a swap under load looks like."""

from __future__ import annotations

from shipyard import plots
from shipyard.drawings.paper import Drawing


def monitoring_loop() -> Drawing:
    """Serve, watch, see drift, fine-tune, compare, promote, and serve again."""
    d = Drawing(
        860, 350,
        "The closed loop: pictures enter the slot that holds the live model, and answers leave it; "
        "metrics and drift tests watch both; an alarm starts a fine-tuning on new labelled images; "
        "gate, shadow and canary compare the new model with the old; the promoted version goes "
        "into the slot.",
    )  # fmt: skip
    top, bottom = 96, 250
    d.group(130, 48, 300, 150)
    d.note(215, 62, "server")
    slot = d.box(215, top + 6, "slot: live model", "weights", 132, 44)
    watch = d.pill(470, top + 6, "watch: metrics", 130)
    drift = d.box(700, top + 6, "drift test", "focus", 110, 40)
    tune = d.box(700, bottom, "fine-tune", "weights", 110, 40)
    compare = d.pill(470, bottom, "gate, shadow, canary", 176)
    registry = d.box(215, bottom, "registry: versions", "data", 146, 44)
    d.wire((24, top + 6), slot.left, colour=plots.BLUE, width=3)
    d.label(62, top - 12, "pictures", plots.BLUE, 10)
    d.wire(slot.right, watch.left, colour=plots.BLUE, width=3)
    d.label(352, top - 12, "answers", plots.BLUE, 10)
    d.wire(watch.right, drift.left)
    d.label(590, top - 8, "statistics", size=10)
    d.wire(drift.bottom, tune.top)
    d.label(712, 178, "alarm", size=10, align="left")
    d.wire((848, bottom), tune.right, colour=plots.BLUE, width=3)
    d.label(806, bottom + 22, "new labels", plots.BLUE, 10)
    d.wire(tune.left, compare.right)
    d.label(602, bottom - 16, "candidate", size=10)
    d.wire(compare.left, registry.right)
    d.label(336, bottom - 16, "promoted", size=10)
    d.wire((190, registry.top[1]), (190, slot.bottom[1]))
    d.label(178, 190, "swap", size=10, align="right")
    d.wire((240, slot.bottom[1]), (240, registry.top[1]))
    d.label(252, 190, "roll back", size=10, align="left")
    d.legend(
        326, ("weights", "weights"), ("function", "code that judges"), ("data", "store"),
        ("focus", "decision"),
    )  # fmt: skip
    return d


def hot_swap() -> Drawing:
    """Requests as bars in time: each one ends with the model that it began with."""
    d = Drawing(
        760, 300,
        "Seven requests as bars along the time axis. A swap is a vertical line: requests that "
        "began before it end with version 1, also when they run on past the line, and requests "
        "that begin after it use version 2; version 1 is free when its last request has ended.",
    )  # fmt: skip
    left, swap, drained = 90, 350, 500
    requests = [(100, 230, 1), (150, 320, 1), (210, 430, 1), (300, drained, 1), (365, 520, 2),
                (420, 600, 2), (540, 700, 2)]  # fmt: skip
    for row, (start, end, version) in enumerate(requests):
        y = 56 + 26 * row
        role = "data" if version == 1 else "weights"
        d.box((start + end) / 2, y, f"version {version}", role, end - start, 20)
    d.wire((left, 244), (740, 244))
    d.label(700, 262, "time", size=10)
    for x, words in ((swap, "swap"), (drained, "version 1 is free")):
        d.wire((x, 40), (x, 244), colour=plots.VERMILION, arrow=False)
        d.label(x, 24, words, plots.VERMILION, 10)
    d.label(46, 134, "requests", size=10)
    d.note(222, 262, "take version 1")
    d.note(560, 262, "take version 2")
    d.note(380, 284, "A request takes the model once, when it begins, and keeps it to its end.")
    return d
