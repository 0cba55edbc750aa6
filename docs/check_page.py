"""Open pages of `Report.to_html` in a real browser, use them, and check what they show.

    python docs/check_page.py             exits with 1 if a page fails; needs chromium
    python docs/check_page.py --write     also takes the screenshots of the docs

A page is opened from a file, without network, with a script at its end that searches, filters and clicks as a user
would and writes what it found into the document.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reparamkit
from reparamkit.cli.demo import Branches, example, network
from reparamkit.reporting import Merge, Node, Price, Refusal, Report
from reparamkit.testing import randomize

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCREEN = (1440, 860)
PROBE = """
<script>
{
  const found = { start: performance.now(), boxes: () => document.querySelectorAll("#drawing rect.box").length };
  found.first = found.boxes();
  found.scrolled = $("graphs").scrollTop;
  const bottom = $("graphs").clientHeight / zoom + BUCKET + 40;
  const drawn = [...document.querySelectorAll("#drawing rect.box")];
  found.outside = drawn.filter((box) => box.y.baseVal.value > bottom).length;
  found.costs = report.merges.map((_, site) => $(`site-${site}`).textContent.includes("FLOPs"));
  document.querySelector(".row").click();
  found.detail = $("detail").innerText;
  found.canvases = document.querySelectorAll("#detail canvas").length;
  found.chosen = document.querySelectorAll("#drawing rect.box.on").length;
  const type = (text) => { $("search").value = text; $("search").dispatchEvent(new Event("input")); };
  type("batchnorm");
  found.hits = hits.size;
  found.lit = document.querySelectorAll("#drawing rect.box.hit").length;
  type("no such layer anywhere");
  found.none = document.querySelectorAll(".row:not(.warning)").length;
  type("");
  found.rows = document.querySelectorAll(".row:not(.warning)").length;
  found.filtered = {};
  for (const option of $("rule").options) {
    $("rule").value = option.value;
    $("rule").dispatchEvent(new Event("change"));
    found.filtered[option.value] = document.querySelectorAll(".row:not(.warning)").length;
  }
  $("rule").value = "";
  $("rule").dispatchEvent(new Event("change"));
  const before = performance.now();
  $("minor").click();
  found.rebuilt = performance.now() - before;
  found.withViews = scene.boxes.length;
  $("minor").click();
  found.all = scene.boxes.length;
  choose(null);
  $("graphs").scrollTop = 1e9;
  draw();
  found.last = found.boxes();
  const box = document.querySelector("#drawing rect.box[style]") || document.querySelector("#drawing rect.box");
  box.dispatchEvent(new MouseEvent("mousemove", { clientX: 9, clientY: 9 }));
  found.tip = $("tip").textContent;
  const paper = () => getComputedStyle(document.body).backgroundColor;
  found.papers = [paper()];
  $("theme").click();
  found.papers.push(paper());
  found.overlaps = 0;
  const sorted = [...scene.boxes].sort((a, b) => a.y - b.y);
  const overlap = (a, b) => a.side === b.side && Math.abs(a.x - b.x) < (a.width + b.width) / 2 - 0.5
    && b.y - a.y < (a.height + b.height) / 2 - 0.5;
  sorted.forEach((a, k) => {
    for (let j = k + 1; j < sorted.length && sorted[j].y - a.y < 40; j++) found.overlaps += overlap(a, sorted[j]);
  });
  found.warnings = document.querySelectorAll(".row.warning").length;
  found.left = [...document.querySelectorAll(".row.left")].map((row) => (row.click(), $("detail").innerText));
  document.body.dataset.found = JSON.stringify(found);
}
</script>
"""


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser without a window; `options` say what to do with it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("there is no browser: apt-get install chromium")
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={SCREEN[0]},{SCREEN[1]}", "--enable-logging=stderr"]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=300)


def used(report: Report, folder: Path, name: str) -> dict[str, Any]:
    """What the probe finds in the page of a report, and what the browser complains of."""
    page = folder / f"{name}.html"
    page.write_text(report.to_html().replace("</body>", f"{PROBE}</body>"))
    done = browse(page, "--dump-dom", page.as_uri())
    found = re.search(r'data-found="(.*?)"', done.stdout)
    if found is None:
        sys.exit(f"{name}: the page stopped\n" + "\n".join(re.findall(r".*CONSOLE.*", done.stderr)))
    return {**json.loads(html.unescape(found[1])), "console": re.findall(r"CONSOLE.*", done.stderr)}


def repeated(report: Report, count: int) -> Report:
    """A report of `count` copies of a model in a row, as if they had been fused."""
    merges = tuple(
        replace(merge, path=f"{k}.{merge.path}", members=tuple(f"{k}.{m}" for m in merge.members))
        for k in range(count)
        for merge in report.merges
    )
    graphs = (tuple(_copies(graph, count, len(report.merges))) for graph in (report.graph_before, report.graph_after))
    before, after = graphs
    return replace(report, merges=merges, graph_before=before, graph_after=after)


def _copies(graph: tuple[Node, ...], count: int, sites: int) -> list[Node]:
    found, last = [graph[0]], graph[0].name
    for k in range(count):
        names = {node.name: f"{node.name}_{k}" for node in graph} | {graph[0].name: last}
        for node in graph[1:-1]:
            inputs = tuple(names[name] for name in node.inputs)
            marks = tuple(site + k * sites for site in node.sites)
            found.append(replace(node, name=names[node.name], path=f"{k}.{node.path}", inputs=inputs, sites=marks))
        last = found[-1].name
    return [*found, replace(graph[-1], inputs=(last,))]


def dense(depth: int) -> Report:
    """A network in which everything reads everything before it: no two pieces can be laid out by themselves."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)) for _ in range(depth))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = [x]
            for layer in self.layers:
                found.append(layer(sum(found[1:], found[0]).relu()))
            return torch.cat(found, 1)

    return reparamkit.explain(randomize(Dense()), torch.randn(1, 2, 3, 3))


def parts() -> Report:
    """A model that is traced in parts, with layers that are left, and a norm of a dead channel."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Branches(4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) if x.sum() > 0 else x

    model = randomize(nn.Sequential(Branches(4), Branching(), nn.ReLU(), nn.BatchNorm2d(4)))
    statistics = model.get_submodule("0.skip").get_buffer("running_var")
    statistics[0], statistics[1] = 1e-14, 1e3
    return reparamkit.explain(model, torch.rand(1, 4, 5, 5))


def check(name: str, report: Report, folder: Path) -> list[str]:
    """What is wrong with the page of a report; prints what was measured."""
    found = used(report, folder, name)
    nodes = sum(node.role in ("compute", "input", "output") for node in (*report.graph_before, *report.graph_after))
    everything = len(report.graph_before) + len(report.graph_after)
    norms = sum("BatchNorm" in node.kind for node in (*report.graph_before, *report.graph_after))
    merge = report.merges[0]
    wanted = {
        "the console is silent": not found["console"],
        "it opens at the start": found["scrolled"] == 0,
        "boxes at the top and at the end": found["first"] > 0 and found["last"] > 0,
        "only what is in view is drawn": found["outside"] == 0,
        "all operations are laid out": found["all"] == nodes,
        "views can be shown": nodes <= found["withViews"] <= everything,
        "boxes do not overlap": found["overlaps"] == 0,
        "a click shows path, equation and cost": all(
            text in found["detail"] for text in (merge.path, merge.equations[0], f"{merge.before.flops:,}")
        ),
        "FLOPs are of what has a price": found["costs"] == [_is_priced(merge) for merge in report.merges]
        and ("FLOPs" in found["detail"]) == _is_priced(merge),
        "and the weights": found["canvases"] == len(merge.pictures) > 0,
        "and marks the merge": found["chosen"] > 0,
        "search finds": found["hits"] >= norms > 0,
        "search lists nothing for nothing": found["none"] == 0,
        "each rule filters": found["filtered"] == listed(report),
        "all merges and refusals are listed": found["rows"] == len(report.merges) + len(report.refusals),
        "all warnings are": found["warnings"] == len(report.warnings),
        "what was left says why, and what to do": len(found["left"]) == len(report.refusals)
        and all(
            r.reason in text and r.advice.advice in text for r, text in zip(_shown(report), found["left"], strict=True)
        ),
        "hovering tells": any(text in found["tip"] for text in ("input", "output", *merge.equations)),
        "light and dark differ": found["papers"][0] != found["papers"][1],
    }
    times = f"ready after {found['start']:5.0f} ms, with views after {found['rebuilt']:5.0f} ms more"
    print(f"{name:<8} {everything:>6} nodes, {times}")
    return [f"{name}: not so: {what}" for what, good in wanted.items() if not good]


def _shown(report: Report) -> list[Refusal]:
    """In the order of the list."""
    return [refusal for group in report.groups for refusal in group.refusals]


def _is_priced(merge: Merge) -> bool:
    return max(merge.before.flops, merge.after.flops) > 0


def unpriced(report: Report) -> Report:
    """As if graph rules had merged what has no price."""
    free = Price(0, 0, 1)
    return replace(report, merges=tuple(replace(merge, before=free, after=free) for merge in report.merges))


def listed(report: Report) -> dict[str, int]:
    """How many lines of the list each choice of the filter leaves."""
    rules = {rule: sum(rule in merge.rules for merge in report.merges) for m in report.merges for rule in m.rules}
    return {"": len(report.merges) + len(report.refusals), "left": len(report.refusals), **rules}


def screenshots(report: Report, folder: Path) -> None:
    """The pictures of the docs: a merge in light and dark, and the page as it opens."""
    page = folder / "shown.html"
    report.to_html(page)
    for name, view in (("light", "site=2&theme=light"), ("dark", "site=2&theme=dark"), ("start", "theme=light")):
        target = ROOT / "docs" / "img" / f"report-{name}.png"
        browse(page, f"--screenshot={target}", f"{page.as_uri()}#{view}")
        print(f"wrote {target.relative_to(ROOT)}")


def main() -> int:
    """Check pages of all sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="take the screenshots of the docs")
    options = parser.parse_args()
    demo = replace(reparamkit.explain(network(), example()), model="Demo")
    block = reparamkit.explain(randomize(nn.Sequential(Branches(8))), torch.randn(1, 8, 9, 9))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reports = {
            "block": block,
            "free": unpriced(block),
            "demo": demo,
            "dense": dense(12),
            "parts": parts(),
            "large": repeated(block, 5000 // 8),
        }
        wrong = [line for name, report in reports.items() for line in check(name, report, folder)]
        if options.write:
            screenshots(demo, folder)
    print("\n".join(wrong) or "all pages do what they should")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
