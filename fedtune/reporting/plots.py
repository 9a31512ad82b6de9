"""Pictures of a record: learning curves, the price of accuracy, a map of two axes, the clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from fedtune.reporting.claim import claimed_reports
from fedtune.reporting.figure import MUTED, WIDTH, label_ends, new_figure, tidy
from fedtune.reporting.heatmap import draw_heatmap
from fedtune.reporting.measures import MIB, SHARES
from fedtune.reporting.style import Style, styles

Record = Mapping[str, Any]
STRATEGY = "strategy.name"
HEIGHT, LINE_HEIGHT, LETTER_WIDTH, USUAL_LABEL = 3.4, 0.17, 0.075, 15


def pictures(record: Record) -> dict[str, tuple[Figure, str]]:
    """Every picture that the record has data for, by file name, with its caption."""
    makers: dict[str, Callable[[Record], Figure | None]] = {
        "curves": draw_curves,
        "upload": draw_upload,
        "heatmap": draw_heatmap,
        "clients": draw_clients,
        "epsilon": lambda record: draw_reported(record, "epsilon"),
    }
    made = {name: maker(record) for name, maker in makers.items()}
    made.update({name: draw_reported(record, name) for name in claimed_reports(record)})
    return {n: (figure, caption(n, record)) for n, figure in made.items() if figure is not None}


def caption(name: str, record: Record) -> str:
    """What a picture shows, in a sentence."""
    metric, several = record["metric"], record["seeds"] > 1
    measured = next(
        (c["clients_measured_on"] for f in record["families"] for c in f["cells"] if c["clients"]),
        "",
    )
    if name in claimed_reports(record):
        return f"{name.replace('_', ' ').capitalize()} over the rounds, mean over seeds."
    return {
        "curves": f"{metric.capitalize()} on {record['evaluated_on']} over the rounds"
        + (": mean over seeds, band of one standard deviation." if several else "."),
        "upload": f"{metric.capitalize()} against what all clients have sent; the grey line joins "
        "those that no other beats in both.",
        "heatmap": f"Final {metric}, mean over seeds (and over axes that are not named).",
        "clients": f"Final {metric} of each client, on {measured}: box from the 25th to the 75th "
        "percentile, line from the 10th to the 90th, dot at the worst.",
        "epsilon": "ε that the most exposed client has spent, over the rounds.",
    }[name]


def draw_curves(record: Record) -> Figure | None:
    """Metric over rounds, a line a family with its band."""
    drawn = [(f, s, curve) for f, s in styled(record) if len(curve := curves_of(f, record)) > 0]
    if not drawn:
        return None
    figure, axes = _panel([family["label"] for family, *_ in drawn])
    ends = []
    for family, style, curve in drawn:
        rounds, mean, sd = curve[:, 0], curve[:, 1], curve[:, 2]
        _line(axes, rounds, mean, style)
        axes.fill_between(rounds, mean - sd, mean + sd, color=style.colour, alpha=0.15, linewidth=0)
        ends.append((rounds[-1], mean[-1], family["label"], style))
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _metric_axis(axes, record)
    label_ends(axes, ends)
    return figure


def draw_reported(record: Record, name: str) -> Figure | None:
    """What rule or strategy report of each round under that name, mean over seeds."""
    drawn = []
    for family, style in styled(record):
        found = [
            {number: value for number, value in c["reported"][name] if value is not None}
            for c in family["cells"] if name in c["reported"]
        ]  # fmt: skip
        rounds = sorted(set.intersection(*(set(one) for one in found))) if found else []
        if rounds:
            means = [float(np.mean([one[number] for one in found])) for number in rounds]
            drawn.append((rounds, means, family["label"], style))
    if not drawn:
        return None
    figure, axes = _panel([label for _, _, label, _ in drawn])
    for rounds, means, _, style in drawn:
        _line(axes, rounds, means, style)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("ε" if name == "epsilon" else name.replace("_", " "))
    tidy(axes, name)
    label_ends(axes, [(rounds[-1], means[-1], label, s) for rounds, means, label, s in drawn])
    return figure


def draw_upload(record: Record) -> Figure | None:
    """Metric over uploaded bytes, with the Pareto front of the finals."""
    drawn = [(f, s, c) for f, s in styled(record) if len(c := curves_of(f, record)) > 1]
    if not drawn:
        return None
    figure, axes = _panel([family["label"] for family, *_ in drawn])
    ends = []
    for family, style, curve in drawn:
        spent = curve[curve[:, 3] > 0]
        if not len(spent):
            continue
        sent, mean = spent[:, 3] / MIB, spent[:, 1]
        axes.plot(sent, mean, color=style.colour, alpha=0.35, linewidth=1.2, linestyle=style.dash)
        end = _final_point(family) or (sent[-1], mean[-1])
        axes.plot(*end, style.marker, color=style.colour, markersize=7)
        ends.append((*end, family["label"], style))
    if not ends:
        return None
    front = pareto_front([(x, y) for x, y, *_ in ends], record["lower_is_better"])
    if len(front) > 1:
        axes.plot(*zip(*front, strict=True), color=MUTED, linewidth=1.4, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=7))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("sent by all clients, MiB")
    _metric_axis(axes, record)
    label_ends(axes, ends)
    return figure


def draw_clients(record: Record) -> Figure | None:
    """The spread of the final metric over clients, all seeds together."""
    drawn = []
    for family, style in styled(record):
        found = [value for cell in family["cells"] for value in cell["clients"]]
        if found:
            drawn.append((family["label"], style, np.asarray(found, dtype=np.float64)))
    if not drawn:
        return None
    figure = new_figure(WIDTH + _beside([label for label, *_ in drawn]), 1.0 + 0.42 * len(drawn))
    axes = figure.add_subplot()
    lower = record["lower_is_better"]
    for place, (_, style, values) in enumerate(reversed(drawn)):
        low, first, middle, third, high = np.percentile(values, (10, 25, 50, 75, 90))
        axes.plot((low, high), (place, place), color=style.colour, linewidth=1.5)
        axes.plot((first, third), (place, place), color=style.colour, linewidth=9, alpha=0.45,
                  solid_capstyle="butt")  # fmt: skip
        axes.plot([middle], [place], "|", color=style.colour, markersize=13, markeredgewidth=2)
        worst = values.max() if lower else values.min()
        axes.plot([worst], [place], style.marker, color=style.colour, markersize=5)
    axes.set_yticks(range(len(drawn)), [label for label, _, _ in reversed(drawn)])
    axes.set_ylim(-0.6, len(drawn) - 0.4)
    axes.set_xlabel(f"final {record['metric']} of a client")
    tidy(axes, record["metric"], vertical=False)
    return figure


def pareto_front(
    points: Sequence[tuple[float, float]], lower_is_better: bool
) -> list[tuple[float, float]]:
    """Points (cost, value) that no other beats in both, by rising cost."""
    sign = 1.0 if lower_is_better else -1.0
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((cost, value))
    return front


def curves_of(family: Record, record: Record) -> np.ndarray[Any, Any]:
    """Round, mean and standard deviation of the metric, mean bytes up: (looks, 4).

    A seed that ended earlier counts with its last value. The curve ends where a seed diverges.
    """
    started = [cell["looks"] for cell in family["cells"] if cell["looks"]]
    done = [cell["looks"] for cell in family["cells"] if cell["status"] == "done"] or started[:1]
    rounds = sorted({look["round"] for looks in done for look in looks})
    rows = []
    for number in rounds:
        last = [[look for look in looks if look["round"] <= number][-1:] for looks in done]
        if not all(last):
            continue
        values = [look["eval"].get(record["metric"]) for (look,) in last]
        if None in values:
            break
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        rows.append((number, np.mean(values), sd, np.mean([look["bytes_up"] for (look,) in last])))
    return np.asarray(rows, dtype=np.float64).reshape(-1, 4)


def styled(record: Record) -> list[tuple[Record, Style]]:
    """Each family with its style: a colour a strategy where strategies are compared."""
    families = record["families"]
    by_strategy = STRATEGY in record["axes"] or len(families) == 1
    names = [family["strategy"] if by_strategy else None for family in families]
    return list(zip(families, styles(names), strict=True))


def _final_point(family: Record) -> tuple[float, float] | None:
    """Mean bytes up and mean final metric, as the tables have them."""
    sent, final = (family["measures"][key] for key in ("bytes_up", "final"))
    return (sent["mean"] / MIB, final["mean"]) if sent and sent["mean"] and final else None


def _panel(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Room for the lines' names beside the axes, whose width stays the same."""
    height = max(HEIGHT, 1.2 + LINE_HEIGHT * len(labels))
    figure = new_figure(WIDTH + _beside(labels), height)
    return figure, figure.add_subplot()


def _beside(labels: Sequence[str]) -> float:
    """Inches that names need beyond what usual ones do."""
    return LETTER_WIDTH * max(0, max(map(len, labels)) - USUAL_LABEL)


def _line(axes: Axes, xs: Any, ys: Any, style: Style) -> None:
    axes.plot(
        xs, ys, color=style.colour, linestyle=style.dash, linewidth=2,
        marker=style.marker, markersize=3.5, markevery=max(1, len(xs) // 10),
    )  # fmt: skip


def _metric_axis(axes: Axes, record: Record) -> None:
    metric = record["metric"]
    axes.set_ylabel(metric)
    if metric not in SHARES and metric == "perplexity":
        axes.set_yscale("log")
    tidy(axes, metric)
