"""The page docs/evidence.md and its two pictures, from the lines that ``benchmarks/evidence.py`` wrote."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from scipy.stats import ttest_1samp  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "evidence.md"

ARMS = {
    "resmlp": "ResMLP",
    "resmlp_injected": "ResMLP + injection",
    "repmlpnet": "RepMLPNet",
    "repmlpnet_no_local": "RepMLPNet, no Local Perceptron",
    "repmlpnet_no_global": "RepMLPNet, no Global Perceptron",
}
COMPARISONS = (
    ("Locality Injection, ResMLP", "resmlp_injected", "resmlp"),
    ("Local Perceptron, RepMLPNet", "repmlpnet", "repmlpnet_no_local"),
    ("Global Perceptron, RepMLPNet", "repmlpnet", "repmlpnet_no_global"),
)
"""What is compared, the arm with it, the arm without it."""
BUDGETS = {"full": "All training images", "small": "1,000 training images"}
LEVEL = 0.05


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, with its 95% t-interval, in percent or percentage points."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Its ends."""
        low, high = ttest_1samp(self.values, 0).confidence_interval(1 - LEVEL)
        return float(low), float(high)

    @property
    def p(self) -> float:
        """Of a mean of 0, two-sided."""
        return float(ttest_1samp(self.values, 0).pvalue)


@dataclass(frozen=True)
class Results:
    """The lines, and what they depend on."""

    rows: tuple[dict[str, str], ...]
    settings: dict[str, Any]

    def of(self, budget: str, arm: str) -> list[dict[str, str]]:
        """The lines of one arm, in the order of the seeds."""
        found = [row for row in self.rows if (row["budget"], row["arm"]) == (budget, arm)]
        return sorted(found, key=lambda row: int(row["seed"]))

    def accuracy(self, budget: str, arm: str) -> Estimate:
        """On the test images, seed by seed."""
        return Estimate(tuple(100 * float(row["accuracy"]) for row in self.of(budget, arm)))

    def difference(self, budget: str, arm: str, other: str) -> Estimate:
        """How much better `arm` is than `other`, seed by seed."""
        pairs = zip(self.accuracy(budget, arm).values, self.accuracy(budget, other).values, strict=True)
        return Estimate(tuple(a - b for a, b in pairs))


def read(path: Path) -> Results:
    with path.open(newline="") as file:
        rows = tuple(csv.DictReader(file))
    return Results(rows, json.loads(path.with_suffix(".json").read_text()))


def write(path: Path) -> None:
    """Write the page."""
    PAGE.write_text(page(read(path)))
    print(PAGE.relative_to(ROOT))


# --- the page --------------------------------------------------------------------------------------------


def page(results: Results) -> str:
    """The text of docs/evidence.md."""
    parts = [introduction(results), *(section(results, budget) for budget in BUDGETS), fused(results), limits(results)]
    return "\n".join(parts)


def introduction(results: Results) -> str:
    s = results.settings
    return f"""\
# Evidence

Does locality help an MLP over images, and most where images are few?
The paper [RepMLPNet](https://arxiv.org/abs/2112.11081) says so of ImageNet and much larger nets. This page asks small
nets on Fashion-MNIST: {seeds(results)} seeds per arm; the same recipe, steps and batches for all arms of a seed, and
the same first weights in layers that two arms share. The learning rate was chosen once for all arms, with ResMLP and
the whole RepMLPNet on held-out training images. The accuracy is that after the last epoch, on the 10,000 test images.

    {s["command"]}

{len(results.rows)} runs, {hours(results):.1f} hours of training on one CPU thread; torch {s["torch"]}, Python
{s["python"]}, {s["machine"]}, float32. A stopped command goes on with the first run that is missing, and `--page`
writes this page from `benchmarks/results/evidence.csv`.

## What each part brings

Points of test accuracy with the part minus without it, seed by seed: the mean and its 95% t-interval. Of these
{len(COMPARISONS) * len(BUDGETS)} differences, {established(results)} are established.

{verdicts(results)}

![The difference that each part makes, seed by seed, with its mean and 95% interval](img/evidence-differences.svg)
"""


def seeds(results: Results) -> int:
    return len({row["seed"] for row in results.rows})


def hours(results: Results) -> float:
    return sum(float(row["seconds"]) for row in results.rows) / 3600


def verdicts(results: Results) -> str:
    """A table of the questions, with an answer per budget."""
    lines = [f"| | {' | '.join(BUDGETS.values())} |", "|---|---|---|"]
    for what, arm, other in COMPARISONS:
        cells = (verdict(results.difference(budget, arm, other)) for budget in BUDGETS)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(difference: Estimate) -> str:
    """Whether a difference is established, with the numbers that say so.

    As several differences are asked for, each has to pass LEVEL divided by their number (Bonferroni).
    """
    low, high = difference.interval
    numbers = f"{difference.mean:+.2f} ({low:+.2f} to {high:+.2f}), p = {difference.p:.2g}"
    if difference.p > LEVEL / (len(COMPARISONS) * len(BUDGETS)):
        return f"{numbers}: a difference is **not established**"
    return f"{numbers}: **{'better' if difference.mean > 0 else 'worse'}** with it"


def established(results: Results) -> int:
    """How many differences are not called "not established"."""
    answers = [verdict(results.difference(b, arm, other)) for b in BUDGETS for _, arm, other in COMPARISONS]
    return sum("not established" not in answer for answer in answers)


def section(results: Results, budget: str) -> str:
    return "\n".join([f"## {BUDGETS[budget]}\n", spent(results, budget), "", *accuracies(results, budget), ""])


def spent(results: Results, budget: str) -> str:
    b = results.settings["budgets"][budget]
    which = "all 60,000 images" if budget == "full" else f"the same {b['images']:,} images in all runs"
    return f"{which[0].upper()}{which[1:]}, {b['epochs']} epochs, batches of {b['batch_size']}, no augmentation."


def accuracies(results: Results, budget: str) -> Iterator[str]:
    """A table of the arms."""
    yield "| | test accuracy | 95% interval | parameters | fused | training, CPU seconds |"
    yield "|---|---|---|---|---|---|"
    for arm, name in ARMS.items():
        rows, accuracy = results.of(budget, arm), results.accuracy(budget, arm)
        low, high = accuracy.interval
        sizes = f"{int(rows[0]['parameters']):,} | {int(rows[0]['fused_parameters']):,}"
        seconds = mean(float(row["seconds"]) for row in rows)
        yield f"| {name} | {accuracy.mean:.2f}% | {low:.2f} to {high:.2f} | {sizes} | {seconds:.0f} |"


def fused(results: Results) -> str:
    rows = results.rows
    same = sum(row["accuracy"] == row["fused_accuracy"] for row in rows)
    flipped, tested = (sum(int(row[name]) for row in rows) for name in ("flipped", "tested"))
    return f"""\
## Fused and unfused

Each of the {len(rows)} trained nets was fused with all rules, and both forms answered all test images in float32. The
accuracy is identical in {same} of {len(rows)} runs; {flipped} of {tested:,} predictions flipped; the largest error of
a logit was {max(float(row["logit_error"]) for row in rows):.0e} of the largest logit.

![Test accuracy of every run](img/evidence-accuracy.svg)
"""


def limits(results: Results) -> str:
    count = len(COMPARISONS) * len(BUDGETS)
    return f"""\
## What this does not show

- The intervals are over seeds: first weights and the order of images. One test set, one subset of 1,000 images, one
  recipe and one size of net stand behind all of them.
- {count} differences were asked for; one counts as established if p < {LEVEL}/{count} (Bonferroni). With
  {seeds(results)} seeds, a small one can be missed.
- Equal budgets are equal epochs. An arm with branches takes longer per step while it trains: the last column says how
  much, in CPU seconds on a machine that did other work at the same time, other runs among it.
- ResMLP and RepMLPNet differ in size and time, and ran at different times: the page compares each with itself only.
- All runs are on a CPU; ImageNet was not tried.
"""
