"""Draws a run's plots: plots.py RESULTS.json FOLDER. Needs matplotlib; everything else does not."""

import json
import pathlib
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PEER, FACET, WHOLE_HEAD = "llama.cpp", "Facet", "Facet, screening off"
COLOURS = {PEER: "#8a8a8a", FACET: "#0b6e4f", WHOLE_HEAD: "#6fb98f", "limit": "#c44536"}


def decode_rows(results, model):
    rows = [row for row in results["rows"]
            if row["model"] == model and re.fullmatch(r"decode \d+", row["work"])]
    return sorted(rows, key=lambda row: int(row["work"].split()[1]))


def plot_batches(results, folder):
    """Tokens/s against batch, of every model that was measured at several."""
    for model in dict.fromkeys(row["model"] for row in results["rows"]):
        rows = decode_rows(results, model)
        if len(rows) < 2:
            continue
        figure, axes = plt.subplots(figsize=(6, 4))
        batches = [int(row["work"].split()[1]) for row in rows]
        for series in (PEER, FACET, WHOLE_HEAD):
            axes.plot(batches, [row["medians"].get(series) for row in rows], "o-", label=series,
                      color=COLOURS[series])
        axes.plot(batches, [row["limit"] for row in rows], "--", label="limit",
                  color=COLOURS["limit"])
        axes.set(xscale="log", yscale="log", xlabel="streams", ylabel="tokens/s",
                 title=f"decode, {model}")
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.legend()
        save(figure, folder / f"decode-{model.replace(' ', '-')}.png")


def plot_load(results, folder):
    """TTFT and TPOT against offered load."""
    if not results["load"]:
        return
    figure, panels = plt.subplots(1, 2, figsize=(10, 4))
    for axes, key, title in ((panels[0], "ttft_p50_s", "time to first token, p50"),
                             (panels[1], "tpot_p50_s", "time per output token, p50")):
        for series in (PEER, FACET):
            points = [(point["rate"], 1e3 * point[series][key]) for point in results["load"]
                      if series in point]
            axes.plot([x for x, _ in points], [y for _, y in points], "o-", label=series,
                      color=COLOURS[series])
        axes.set(xlabel="requests/s offered (Poisson)", ylabel="ms", yscale="log", title=title)
        axes.legend()
    save(figure, folder / "load.png")


def plot_steps(results, folder):
    """A step's time split by operation."""
    profiles = results["profiles"]
    if not profiles:
        return
    figure, axes = plt.subplots(figsize=(1.6 * max(4, len(profiles)), 4.5))
    labels = [f"{profile['model']}\n{profile['work']}\n"
              f"{1e3 * profile['seconds'] / profile['steps']:.1f} ms" for profile in profiles]
    names = [operation["name"] for operation in profiles[0]["operations"]]
    below = [0.0] * len(profiles)
    for index, name in enumerate(names):
        shares = [profile["operations"][index]["seconds"] / profile["seconds"]
                  for profile in profiles]
        axes.bar(labels, shares, bottom=below, label=name, color=plt.cm.tab20(index))
        below = [a + b for a, b in zip(below, shares)]
    axes.set(ylabel="share of the step on rank 0")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, folder / "steps.png")


def save(figure, path):
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
    print(path)


def main():
    results = json.loads(pathlib.Path(sys.argv[1]).read_text())
    folder = pathlib.Path(sys.argv[2])
    for plot in (plot_batches, plot_load, plot_steps):
        plot(results, folder)


if __name__ == "__main__":
    main()
