"""What is aimed at. The figures are those of one machine, and machines of one type differ by more
than what is measured here; so an aim is the ratio that it makes with the peer's figure of that
machine (aims.json over expected_peers.json), and is reached where a run's own ratio is as good."""

from facet_bench import texts
from facet_bench.figures import (FACET, ONE_PROCESS, ONE_RANK, PEER, SPECULATION, cost_work)

# Ratios between two of Facet's own series, the same on any machine.
CLUSTER_COST = {cost_work(1): 0.95, cost_work(32): 0.97}
DEGREE_COST = 0.95
SPECULATION_COST = 0.98  # where nothing repeats, it must switch itself off
SPECULATION_GAIN = 1     # where much does


class Aims:
    """The aims of one machine type, {model: {work: {series: value}}} in the rows' units, over the
    known peers, {model: {work: value}}."""

    def __init__(self, aims, known):
        self._aims = aims
        self._known = known

    def value(self, row, series):
        return self._aims.get(row.model, {}).get(row.work, {}).get(series)

    def ratio(self, row, series):
        """The least ratio to the peer that reaches the aim; None without an aim or a peer."""
        value = self.value(row, series)
        peer = self._known.get(row.model, {}).get(row.work)
        if value is None or peer is None:
            return None
        return value / peer if row.more_is_better else peer / value

    def reached(self, row, series):
        """None if there is no aim, or nothing was measured to compare with it. An aim where no peer
        is known is one for the value itself."""
        least, value = self.ratio(row, series), self.value(row, series)
        if least is not None:
            ratio = row.ratio(series, PEER)
            return None if ratio is None else ratio >= least
        measured = row.median(series)
        if value is None or measured is None:
            return None
        return measured >= value if row.more_is_better else measured <= value


def own_aim(row, series, base):
    """The least that row.ratio(series, base) should be, of two of Facet's series; None: any."""
    if (series, base) == (FACET, ONE_PROCESS):
        return CLUSTER_COST.get(row.work)
    if (series, base) == (FACET, ONE_RANK):
        return DEGREE_COST
    if (series, base) == (SPECULATION, FACET):
        return SPECULATION_GAIN if row.work == texts.REPEATING.work else SPECULATION_COST
    return None


def own_reached(row, series, base):
    ratio, least = row.ratio(series, base), own_aim(row, series, base)
    return None if ratio is None or least is None else ratio >= least


def counts(rows, aims):
    """(reached, all) of the aims that the rows can tell."""
    found = [aims.reached(row, series) for row in rows for series in row.samples]
    found += [own_reached(row, *pair) for row in rows
              for pair in ((FACET, ONE_PROCESS), (FACET, ONE_RANK), (SPECULATION, FACET))]
    told = [each for each in found if each is not None]
    return sum(told), len(told)
