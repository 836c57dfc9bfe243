"""A run's rows as tables in markdown. Nothing here runs anything."""

import math

from facet_bench import aims
from facet_bench.figures import FACET, ONE_PROCESS, ONE_RANK, PEER, SPECULATION, WHOLE_HEAD

OPERATIONS_SHOWN = 5  # of a step, the largest


def number(value):
    """Three significant digits, thousands with commas; "–" for None."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def percent(share):
    return "–" if share is None else f"{100 * share:.0f} %"


def aim(least, reached, sign="≥", value=None):
    """A cell that says what a ratio should be, and shows where it is not; in brackets the figure
    that the ratio was made of."""
    if least is None:
        return "–"
    text = f"{sign} {number(least)}" + (f" ({value:,})" if value else "")
    return f"**{text} missed**" if reached is False else text


def own_aim(row, series, base):
    """The same of a ratio between two of Facet's series, if it was measured."""
    reached = aims.own_reached(row, series, base)
    return "–" if reached is None else aim(aims.own_aim(row, series, base), reached)


def markdown_table(header, rows, left):
    """The first `left` columns stand on the left, numbers on the right."""
    lines = ["| " + " | ".join(header) + " |",
             "|" + "|".join("---" if i < left else "---:" for i in range(len(header))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def peer_table(rows, goals):
    """The table of work that a peer was measured at."""
    header = ["model", "work", "unit", PEER, FACET, "ratio", "aim", "screening off", "ratio", "aim",
              "limit", "of limit"]
    body = []
    for row in rows:
        if row.median(PEER) is None:
            continue
        cells = [row.model, row.work, row.unit, number(row.median(PEER))]
        for series in (FACET, WHOLE_HEAD):
            cells += [number(row.median(series)), number(row.ratio(series, PEER)),
                      aim(goals.ratio(row, series), goals.reached(row, series),
                          value=goals.value(row, series))]
        body.append(cells + [number(row.limit), percent(row.limit_share(FACET))])
    return markdown_table(header, body, left=3)


def cost_table(rows):
    """What the cluster and tensor parallelism cost beside the same engine."""
    header = ["model", "work", "cluster, tokens/s", "engine in one process", "cluster / engine",
              "aim", "1 rank x 2 threads", "2 x 1 / 1 x 2", "aim"]
    body = []
    for row in rows:
        if row.median(ONE_PROCESS) is None and row.median(ONE_RANK) is None:
            continue
        cells = [row.model, row.work.split(",")[0], number(row.median(FACET))]
        for base in (ONE_PROCESS, ONE_RANK):
            cells += [number(row.median(base)), number(row.ratio(FACET, base)),
                      own_aim(row, FACET, base)]
        body.append(cells)
    return markdown_table(header, body, left=2) if body else ""


def speculation_table(rows):
    header = ["model", "work", "speculation off, tokens/s", "on", "on / off", "aim"]
    body = [[row.model, row.work, number(row.median(FACET)), number(row.median(SPECULATION)),
             number(row.ratio(SPECULATION, FACET)),
             own_aim(row, SPECULATION, FACET)]
            for row in rows if row.median(SPECULATION) is not None]
    return markdown_table(header, body, left=2) if body else ""


def collectives_table(rows, goals):
    header = ["work", "µs", "aim"]
    body = [[row.work, number(row.median(FACET)),
             aim(goals.value(row, FACET), goals.reached(row, FACET), sign="≤")]
            for row in rows if row.model == "collectives"]
    return markdown_table(header, body, left=1) if body else ""


def operation_cells(operation, profile):
    """Milliseconds, share of the step, rate and share of the limit of an operation that all ranks
    compute a part of. Waiting and exchanging have no rate."""
    seconds = operation["seconds"]
    cells = [operation["name"].replace("_", " "), number(1e3 * seconds / profile["steps"]),
             percent(seconds / profile["seconds"])]
    if not operation["bound_s"] or not seconds:
        return cells + ["–", "–"]
    amount, unit = ((operation["bytes"], "GB/s") if operation["bound"] == "memory" else
                    (operation["operations"], f"{operation['bound']} GOP/s"))
    rate = amount * profile["ranks"] / seconds * 1e-9
    return cells + [f"{number(rate)} {unit}", percent(operation["bound_s"] / seconds)]


def profile_table(profiles):
    """Where the time of a step goes, by the leader's clock: the largest operations of each."""
    header = ["model", "work", "step, ms", "operation", "ms", "of step", "rate", "of limit"]
    body = []
    for profile in profiles:
        first = [profile["model"], profile["work"],
                 number(1e3 * profile["seconds"] / profile["steps"])]
        largest = sorted(profile["operations"], key=lambda each: -each["seconds"])
        for operation in largest[:OPERATIONS_SHOWN]:
            body.append(first + operation_cells(operation, profile))
            first = ["", "", ""]
    return markdown_table(header, body, left=4) if body else ""
