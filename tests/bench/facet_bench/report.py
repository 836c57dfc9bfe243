"""What a run leaves: a table in markdown, JSON, CSV."""

import json

from facet_bench import aims as own
from facet_bench import figures, tables
from facet_bench.tables import number

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"
PROFILES_SHOWN = ("decode 1", "decode 32", "prefill 512")


def machine_lines(results):
    machine, limits = results["machine"], results["limits"]
    bf16 = f", bf16 {number(limits['bf16_gop_s'])} GFLOP/s" if "bf16_gop_s" in limits else ""
    return [
        f"{machine['processor']} ({machine['type']}), {machine['threads']} threads, "
        f"{machine['memory_gb']} GB, Linux {machine['kernel']}. Limits: memory read "
        f"{number(limits['read_gb_s'])} GB/s, int8 {number(limits['int8_gop_s'])} GOP/s, float32 "
        f"{number(limits['f32_gop_s'])} GFLOP/s{bf16}. Medians of {results['rounds']} alternating "
        f"round{'s' if results['rounds'] != 1 else ''}, Facet as {results['ranks']} ranks x "
        f"{results['threads_per_rank']} thread through router and gRPC, the peer with as many "
        "threads and the better of flash attention on and off.",
        f"Peer: {results['peer']}.",
    ]


def warning_lines(results):
    lines = [] if results["finished"] else ["Unfinished: these are the rows measured so far."]
    lines += [f"Not measured: {failure}" for failure in results["failures"]]
    return "\n".join(f"**{line}**  " for line in lines + results["warnings"])


def aim_line(rows, aims):
    reached, told = own.counts(rows, aims)
    if not told:
        return ""
    return (f"{reached} of {told} aims are reached. An aim is the ratio to the peer that the "
            "figure aimed at, in brackets, makes on the machine where both were named "
            "(`tests/bench/aims.json`, `expected_peers.json`); of latencies, how many times "
            "shorter.")


def answer_lines(results):
    return "\n".join(
        f"- {answer['model']}: {answer['same_tokens']} of {answer['tokens']} greedy tokens as the "
        f"peer's, log-probabilities {answer['mean_logprob_difference']:.4f} apart on average."
        for answer in results["answers"])


def titled(title, table):
    return f"{title}\n\n{table}" if table else ""


def markdown(results, rows, aims):
    profiles = [each for each in results["profiles"] if each["work"] in PROFILES_SHOWN]
    parts = [
        *machine_lines(results), warning_lines(results), aim_line(rows, aims),
        tables.peer_table(rows, aims),
        titled("What the cluster costs beside the same engine and ranks in one process, and two "
               "ranks beside one:", tables.cost_table(rows)),
        titled("Speculation, through the cluster, one stream; the tokens are the same:",
               tables.speculation_table(rows)),
        titled("All-reduce of two processes:", tables.collectives_table(rows, aims)),
        titled("Time of a step by operation, on the leader (`facet bench --profile`); rates and "
               "shares of the limits are those of all ranks together:",
               tables.profile_table(profiles)),
        answer_lines(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def replace_between(text, new):
    """`text` with what lies between the two marks replaced; ValueError without them."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"no {BEGIN} ... {END}")
    return text[:begin + len(BEGIN)] + "\n" + new.rstrip() + "\n" + text[end:]


def write(folder, results, rows, aims):
    """Returns the table."""
    table = markdown(results, rows, aims)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.csv").write_text(figures.csv_text(rows))
    (folder / "table.md").write_text(table)
    return table
