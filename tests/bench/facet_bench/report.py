"""What a run leaves: a table in markdown, JSON, CSV, plots."""

import json

from facet_bench import figures
from facet_bench.figures import number

BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


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


def answer_lines(results):
    return [f"{answer['model']}: {answer['same_tokens']} of {answer['tokens']} greedy tokens as the "
            f"peer's, log-probabilities {answer['mean_logprob_difference']:.4f} apart on average."
            for answer in results["answers"]]


def markdown(results, rows):
    parts = ["\n\n".join(machine_lines(results))]
    if results["warnings"]:
        parts.append("\n".join(f"**{warning}**  " for warning in results["warnings"]))
    parts.append(figures.peer_table(rows))
    costs = figures.cost_table(rows)
    if costs:
        parts.append(costs)
    parts.append("\n".join("- " + line for line in answer_lines(results)))
    return "\n\n".join(parts) + "\n"


def replace_between(text, new):
    """`text` with what lies between the two marks replaced; ValueError without them."""
    begin, end = text.find(BEGIN), text.find(END)
    if begin < 0 or end < begin:
        raise ValueError(f"no {BEGIN} ... {END}")
    return text[:begin + len(BEGIN)] + "\n" + new.rstrip() + "\n" + text[end:]


def write(folder, results, rows):
    """Returns the table."""
    table = markdown(results, rows)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "results.csv").write_text(figures.csv_text(rows))
    (folder / "table.md").write_text(table)
    return table
