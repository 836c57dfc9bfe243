"""What a run has measured, as values: rows of samples, medians, ratios, limits, the rule by which a
weak peer spoils a run, and the table. Nothing here runs anything."""

import csv
import dataclasses
import io
import math
import statistics

PEER, FACET = "llama.cpp", "Facet"
WHOLE_HEAD = "Facet, screening off"
ONE_PROCESS = "engine in one process"
ONE_RANK = "1 rank x 2 threads"
# Of a peer below what is known of it on the same machine: the medians of a run, and its first
# round, which one hiccup may have spoilt.
SHORTFALL_MAX = 0.15
FIRST_SHORTFALL_MAX = 0.3


@dataclasses.dataclass
class Row:
    """One kind of work on one model. Sample i of every series comes from round i."""

    model: str
    work: str
    unit: str = "tokens/s"  # or "ms", where less is better
    limit: float | None = None  # in the unit: what the machine allows
    samples: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def more_is_better(self):
        return self.unit == "tokens/s"

    def add(self, series, value):
        self.samples.setdefault(series, []).append(value)

    def median(self, series):
        """None if the series is empty."""
        values = self.samples.get(series)
        return statistics.median(values) if values else None

    def ratio(self, series, base):
        """How many times better `series` is than `base`: the median over rounds. None if either
        is missing."""
        pairs = list(zip(self.samples.get(series, []), self.samples.get(base, [])))
        if not pairs:
            return None
        if self.more_is_better:
            return statistics.median(a / b for a, b in pairs)
        return statistics.median(b / a for a, b in pairs)

    def limit_share(self, series):
        value = self.median(series)
        if value is None or not self.limit:
            return None
        return value / self.limit if self.more_is_better else self.limit / value


def decode_limit(streams, weight_bytes, parameters, limits):
    """Tokens per second if every weight is read once a step and the int8 units never wait."""
    seconds = max(weight_bytes / (limits["read_gb_s"] * 1e9),
                  2 * parameters * streams / (limits["int8_gop_s"] * 1e9))
    return streams / seconds


def prefill_limit(layer_parameters, limits):
    """Tokens per second if the int8 units never wait; the output layer is needed once."""
    return limits["int8_gop_s"] * 1e9 / (2 * layer_parameters)


def shortfalls(rows, known, most=SHORTFALL_MAX):
    """Sentences about the peer's rows that fall more than `most` below the known figures, {model:
    {work: value}}."""
    found = []
    for row in rows:
        measured = row.median(PEER)
        expected = known.get(row.model, {}).get(row.work)
        if measured is None or expected is None:
            continue
        share = measured / expected if row.more_is_better else expected / measured
        if share < 1 - most:
            found.append(f"{row.model}, {row.work}: {PEER} reaches {measured:.4g} {row.unit}, "
                         f"{100 * share:.0f} % of the {expected:.4g} known of this machine")
    return found


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


def markdown_table(header, rows, left):
    """The first `left` columns stand on the left, numbers on the right."""
    lines = ["| " + " | ".join(header) + " |",
             "|" + "|".join("---" if i < left else "---:" for i in range(len(header))) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def peer_table(rows):
    """The table of work that a peer was measured at."""
    header = ["model", "work", "unit", PEER, FACET, "ratio", "screening off", "ratio", "limit",
              "of limit"]
    body = [[row.model, row.work, row.unit, number(row.median(PEER)), number(row.median(FACET)),
             number(row.ratio(FACET, PEER)), number(row.median(WHOLE_HEAD)),
             number(row.ratio(WHOLE_HEAD, PEER)), number(row.limit),
             percent(row.limit_share(FACET))]
            for row in rows if row.median(PEER) is not None or row.model == "collectives"]
    return markdown_table(header, body, left=3)


def cost_table(rows):
    """What the cluster and tensor parallelism cost beside the same engine."""
    header = ["model", "work", "cluster, tokens/s", "engine in one process", "cluster / engine",
              "1 rank x 2 threads", "2 x 1 / 1 x 2"]
    body = [[row.model, row.work, number(row.median(FACET)), number(row.median(ONE_PROCESS)),
             number(row.ratio(FACET, ONE_PROCESS)), number(row.median(ONE_RANK)),
             number(row.ratio(FACET, ONE_RANK))]
            for row in rows
            if row.median(ONE_PROCESS) is not None or row.median(ONE_RANK) is not None]
    return markdown_table(header, body, left=2) if body else ""


def csv_text(rows):
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "work", "unit", "limit", "series", "round", "value"])
    for row in rows:
        for series, values in row.samples.items():
            for index, value in enumerate(values):
                writer.writerow([row.model, row.work, row.unit,
                                 "" if row.limit is None else f"{row.limit:.6g}", series, index,
                                 f"{value:.6g}"])
    return out.getvalue()


def to_json(rows):
    return [dict(dataclasses.asdict(row),
                 medians={series: row.median(series) for series in row.samples},
                 ratio=row.ratio(FACET, PEER))
            for row in rows]
