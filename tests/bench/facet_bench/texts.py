"""What is written to see what speculation gains and costs: a text that repeats what its prompt has,
as edited code and filled lists do, and one that hardly repeats anything."""

import dataclasses

_CODE = '''STATIONS = [
    {"name": "Harbour", "mean": 1.42, "constituents": {"M2": (0.51, 102.0), "S2": (0.17, 146.0)}},
    {"name": "Lighthouse", "mean": 1.38, "constituents": {"M2": (0.49, 99.5), "S2": (0.16, 143.0)}},
    {"name": "Western bank", "mean": 1.45, "constituents": {"M2": (0.53, 104.5)}},
]


def height(station, hours):
    """Height of the water in metres."""
    total = station["mean"]
    for name, (amplitude, phase) in station["constituents"].items():
        angle = math.radians(SPEEDS[name] * hours - phase)
        total += amplitude * math.cos(angle)
    return total
'''

_STORY = ("On the northern shore of the island, where the road gives up and becomes a path, there "
          "stands a lighthouse that has not been lit for forty years. The keeper's daughter came "
          "back in the autumn, and the first thing that she noticed was")


@dataclasses.dataclass(frozen=True)
class Text:
    work: str  # the row's
    prompt: str
    temperature: float


REPEATING = Text("write code of the prompt again, greedy",
                 f"tides.py:\n\n{_CODE}\ntides.py, with its imports:\n\nimport math\n\nSTATIONS", 0)
STORY = Text("write a story, temperature 1", _STORY, 1)
TEXTS = (REPEATING, STORY)
