"""What a run has measured, as values: rows of samples, medians, ratios, limits, the rule by which a
weak peer spoils a run. Nothing here runs anything."""

import csv
import dataclasses
import io
import statistics

PEER, FACET = "llama.cpp", "Facet"
WHOLE_HEAD = "Facet, screening off"
ONE_PROCESS = "engine in one process"
ONE_RANK = "1 rank x 2 threads"
SPECULATION = "Facet, speculation"  # all other series are without it
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


def cost_work(streams):
    """The work of a row that compares Facet with itself."""
    return f"decode {streams}, beside itself"


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
    {work: value}}. Rates only: a tail of a few requests' latencies proves nothing."""
    found = []
    for row in rows:
        measured = row.median(PEER)
        expected = known.get(row.model, {}).get(row.work)
        if measured is None or expected is None or not row.more_is_better:
            continue
        share = measured / expected
        if share < 1 - most:
            found.append(f"{row.model}, {row.work}: {PEER} reaches {measured:.4g} {row.unit}, "
                         f"{100 * share:.1f} % of the {expected:.4g} known of this machine")
    return found


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
