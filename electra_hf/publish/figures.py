"""Pictures of a run."""

from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot: it needs no screen and keeps no global state
from sklearn.metrics import ConfusionMatrixDisplay


def draw_curves(log_history: list[dict], path: str | Path) -> None:
    """Draw losses, detection, generator and speed over the steps of a run, from the Trainer's `state.log_history`."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    panels = [
        ("Losses", ("generator_loss", "discriminator_loss"), None),
        (
            "Detection, or prediction of tokens",
            ("rtd_auc", "rtd_accuracy", "rtd_majority_baseline", "token_accuracy"),
            None,
        ),
        ("Generator accuracy and share replaced", ("generator_accuracy", "replaced_share"), None),
        ("Speed", ("tokens_per_second",), "tokens per second"),
    ]
    for axis, (title, names, label) in zip(axes.flat, panels, strict=True):
        # A dot and its line have one colour; only the line is named in the legend.
        for color, name in enumerate(names):
            _draw(axis, log_history, name, f"C{color}", linestyle="-", label=name.replace("_", " "))
            _draw(axis, log_history, f"eval_{name}", f"C{color}", linestyle="none", marker="o")
        axis.set(title=title, xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    figure.suptitle("Lines: training text. Dots: held-out text.", fontsize=10)
    # The discriminator's loss is a tenth of the generator's, and both fall by shares.
    axes[0, 0].set_yscale("log")
    # A speed that varies by a hundredth would look like a mountain range.
    axes[1, 1].set_ylim(bottom=0)
    figure.savefig(Path(path), dpi=110)


def draw_comparison(results: list[dict], score: str, path: str | Path) -> None:
    """Draw a score against training operations, a line per variant, and a band from its lowest to its highest seed.

    `results`: each with `objective`, `embedding_sharing` and `points`; each point with `flops` and a list of scores.
    """
    figure = Figure(figsize=(9, 6), layout="constrained")
    axis = figure.subplots()
    for result in results:
        flops = [point["flops"] for point in result["points"]]
        values = [point[score] for point in result["points"]]
        name = result["objective"] + (
            "" if result["embedding_sharing"] == "shared" else f", {result['embedding_sharing']}"
        )
        (line,) = axis.plot(flops, [sum(seeds) / len(seeds) for seeds in values], marker="o", label=name)
        axis.fill_between(flops, list(map(min, values)), list(map(max, values)), color=line.get_color(), alpha=0.12)
    axis.set(xlabel="operations of pretraining", ylabel=score.removeprefix("eval_"))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.savefig(Path(path), dpi=110)


def draw_confusion(
    predictions: list[list[str]],
    references: list[list[str]],
    path: str | Path,
    title: str = "Share of the words of each gold tag",
) -> None:
    """Draw which tag or label is taken for which, each row a gold one in shares of its words or texts."""
    predicted, gold = list(chain(*predictions)), list(chain(*references))
    # A tag that is only predicted needs a column, too.
    tags = sorted({*predicted, *gold})
    # Fifty tags stay readable: every tag gets the same room.
    figure = Figure(figsize=(2 + 0.5 * len(tags),) * 2, layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        gold, predicted, labels=tags, normalize="true", values_format=".2f", ax=axes, cmap="Blues",
        xticks_rotation="vertical", text_kw={"fontsize": 7}, colorbar=False,
    )  # fmt: skip
    axes.set(xlabel="predicted", ylabel="gold", title=title)
    figure.savefig(Path(path), dpi=110)


def draw_scatter(predictions: list[float], references: list[float], path: str | Path) -> None:
    """Draw a dot per text, gold number to the right and predicted one upwards, and the line where both agree."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(references, predictions, s=9, alpha=0.4)
    ends = [min(*references, *predictions), max(*references, *predictions)]
    axes.plot(ends, ends, color="gray", linewidth=1)
    axes.set(xlabel="gold", ylabel="predicted", title="A dot per text of the test")
    axes.grid(alpha=0.3)
    figure.savefig(Path(path), dpi=110)


def _draw(axis, log_history, name, color, **style):
    points = [(log["step"], log[name]) for log in log_history if name in log]
    if points:
        axis.plot(*zip(*points, strict=True), color=color, **style)
