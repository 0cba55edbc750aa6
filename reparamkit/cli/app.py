"""The commands of ``reparamkit``."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor, nn

from .. import Recipe, __version__, benchmark, convert_state_dict, explain, fuse, recipe, report, verify
from ..errors import RecipeError
from ..reporting import Report
from ..timing import FEWEST
from .demo import example, network
from .failures import Code, Failure, as_failure
from .files import check_distinct, check_target, write_exported, write_onnx, write_text, write_weights
from .given import loaded, options
from .options import (
    AsJson,
    Debug,
    Input,
    Model,
    Objective,
    Only,
    Quiet,
    ReportFile,
    Rules,
    Skip,
    Weights,
    Without,
)
from .spec import load_weights, redrawn
from .voice import STATUS, Voice, voice

HELP = """\
Merge the linear pieces of a trained PyTorch model: fewer operations, the same outputs, proved.

\b
reparamkit demo --report demo.html
reparamkit fuse timm:repvgg_a0 --weights model.safetensors -o fused.safetensors
reparamkit explain mypkg.models:build_net --input 1,3,224,224

Exit codes: 0 done; 1 a check failed; 2 wrong arguments; 3 the model cannot be loaded, fused or exported;
4 an optional package is missing; 5 an unexpected error.
"""
"""The ``\\b`` keeps the lines of a paragraph as they are."""

app = typer.Typer(name="reparamkit", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

# --- what the commands share --------------------------------------------------------------------------


def brief(found: Report) -> dict[str, Any]:
    """The report without graphs and pictures, and with what to do about each layer that was left, for --json."""
    data = json.loads(found.to_json())
    for merge in data["merges"]:
        del merge["pictures"]
    for refusal, said in zip(found.refusals, data["refusals"], strict=True):
        said["what_to_do"] = refusal.advice.advice
    coverage = found.coverage
    kept = {name: each for name, each in data.items() if not name.startswith("graph_")}
    return {**kept, "coverage": {"merged": coverage.merged, "left": coverage.left, "share": coverage.share}}


def keep_report(voice: Voice, path: Path | None, found: Report) -> None:
    """Write the report if it was asked for."""
    if path is not None:
        write_text(path, found.to_html() if path.suffix == ".html" else found.to_json())
        voice.wrote("report", path)


def keep_fused(
    tell: Voice,
    fused: nn.Module,
    exporting: tuple[Tensor, ...],
    *,
    weights: Path | None,
    pt2: Path | None,
    onnx: Path | None,
    recipe_file: Path | None,
) -> None:
    """Write a fused model in the forms that were asked for. exporting: inputs to export it with."""
    if weights is not None:
        write_weights(weights, fused)
        tell.wrote("weights", weights, ": load it by safetensors.torch.load_model(reparamkit.fuse(model), ...)")
    if pt2 is not None:
        with tell.working("torch.export"):
            write_exported(pt2, fused, exporting)
        tell.wrote("pt2", pt2)
    if onnx is not None:
        with tell.working("exporting to ONNX"):
            check = write_onnx(onnx, fused, exporting)
        tell.said["onnx"] = {"error": check.error, "tolerance": check.tolerance, "onnxruntime": check.runtime}
        tell.wrote("onnx", onnx, f": ONNX Runtime {check.runtime} agrees with torch, relative error {check.error:.1e}")
    if recipe_file is not None:
        write_text(recipe_file, recipe(fused).to_json())
        tell.wrote("recipe", recipe_file)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file."""
    next_step = "reparamkit fuse MODEL --recipe writes it"
    if not path.is_file():
        raise Failure(Code.USAGE, f"there is no file '{path}'", next_step)
    try:
        return Recipe.from_json(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecipeError) as error:
        raise Failure(Code.MODEL, f"{path}: {error}", next_step) from error


# --- commands -----------------------------------------------------------------------------------------


@app.command("fuse")
def fuse_command(
    model: Model,
    weights: Weights = None,
    inputs: Input = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Fused weights, .safetensors.")
    ] = None,
    pt2: Annotated[
        Path | None, typer.Option("--pt2", metavar="FILE", help="Fused model by torch.export, .pt2.")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option("--onnx", metavar="FILE", help="Fused model as .onnx, checked with ONNX Runtime.")
    ] = None,
    recipe_file: Annotated[
        Path | None,
        typer.Option("--recipe", metavar="FILE", help="How to fuse other weights of the model, .json, for convert."),
    ] = None,
    report_file: ReportFile = None,
    rules: Rules = None,
    without: Without = None,
    only: Only = None,
    skip: Skip = None,
    objective: Objective = "default",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fuse a model, and write what comes out."""
    tell = voice("fuse", as_json, quiet, debug)
    targets = (("-o", output, (".safetensors",)), ("--pt2", pt2, (".pt2",)), ("--onnx", onnx, (".onnx",)))
    texts = (("--recipe", recipe_file, (".json",)), ("--report", report_file, (".html", ".json")))
    for option, path, suffixes in (*targets, *texts):
        check_target(option, path, suffixes)
    check_distinct({"--weights": weights, **{option: path for option, path, _ in (*targets, *texts)}})
    found = loaded(tell, model, weights, inputs)
    exporting = found.needed("--pt2" if pt2 else "--onnx") if pt2 or onnx else ()
    with tell.working("fusing"):
        fused = fuse(found.model, found.inputs, **options(found, rules, without, only, skip, objective))
    made = report(fused)
    tell.said.update(brief(made))
    tell.say(made)
    keep_fused(tell, fused, exporting, weights=output, pt2=pt2, onnx=onnx, recipe_file=recipe_file)
    keep_report(tell, report_file, made)
    tell.finish()


@app.command("convert")
def convert_command(
    recipe_file: Annotated[Path, typer.Argument(help="What fuse --recipe wrote.", metavar="RECIPE")],
    checkpoint: Annotated[
        Path, typer.Argument(help="Weights of the model as it was: .safetensors, or a .json index.", metavar="WEIGHTS")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Weights of the fused model: .safetensors, or a .json index."
        ),
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fuse other weights of a model, without the model."""
    tell = voice("convert", as_json, quiet, debug)
    check_target("-o", output, (".safetensors", ".json"))
    check_distinct({"RECIPE": recipe_file, "WEIGHTS": checkpoint, "-o": output})
    found = read_recipe(recipe_file)
    if not checkpoint.is_file():
        raise Failure(Code.USAGE, f"there is no file '{checkpoint}'", "check the path of the weights")
    tell.say(found)
    with tell.working("converting"):
        convert_state_dict(found, checkpoint, output)
    tell.wrote("weights", output)
    tell.finish()


@app.command("explain")
def explain_command(
    model: Model,
    weights: Weights = None,
    inputs: Input = None,
    min_coverage: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Exit with 1 if a smaller share of the mergeable layers is merged."
        ),
    ] = None,
    report_file: ReportFile = None,
    rules: Rules = None,
    without: Without = None,
    only: Only = None,
    skip: Skip = None,
    objective: Objective = "default",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Tell what fuse would do, and why it would leave the rest."""
    tell = voice("explain", as_json, quiet, debug)
    check_target("--report", report_file, (".html", ".json"))
    found = loaded(tell, model, weights, inputs)
    with tell.working("fusing"):
        made = explain(found.model, found.inputs, **options(found, rules, without, only, skip, objective))
    tell.said.update(brief(made))
    tell.say(made)
    tell.say(f"merged: {made.coverage}")
    keep_report(tell, report_file, made)
    enough = min_coverage is None or made.coverage.share >= min_coverage
    tell.said["passed"] = enough
    tell.finish()
    if not enough:
        what = f"coverage {made.coverage.share:.1%} is below {min_coverage:.1%}"
        raise Failure(Code.CHECK, what, "the report says what to do about each layer that was left")


@app.command("verify")
def verify_command(
    model: Model,
    weights: Weights = None,
    inputs: Input = None,
    fused_weights: Annotated[
        Path | None,
        typer.Option("--fused", metavar="FILE", help="Weights that fuse -o wrote; default: fuse the model now."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="How many random inputs to compare on.")] = 3,
    rules: Rules = None,
    without: Without = None,
    only: Only = None,
    skip: Skip = None,
    objective: Objective = "default",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the fused model with the model, on random inputs."""
    tell = voice("verify", as_json, quiet, debug)
    found = loaded(tell, model, weights, inputs)
    given = found.needed("verify")
    with tell.working("fusing"):
        fused = fuse(found.model, given, **options(found, rules, without, only, skip, objective))
    if fused_weights is not None:
        load_weights(fused, fused_weights)
    with tell.working("comparing"):
        results = [verify(fused, found.model, redrawn(given, seed)) for seed in range(trials)]
    for result in results:
        tell.say(str(result))
    tell.said["trials"] = [{"error": r.error, "tolerance": r.tolerance, "passed": r.passed} for r in results]
    tell.said["passed"] = all(result.passed for result in results)
    tell.finish()
    if not tell.said["passed"]:
        raise Failure(Code.CHECK, "the fused model is not equal to the model", "were both weights of one model?")


@app.command("bench")
def bench_command(
    model: Model,
    weights: Weights = None,
    inputs: Input = None,
    rounds: Annotated[int, typer.Option(min=FEWEST, metavar="N", help="Measured calls of each model.")] = 30,
    rules: Rules = None,
    without: Without = None,
    only: Only = None,
    skip: Skip = None,
    objective: Objective = "default",
    as_json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Time the model and the fused model, in turns, eagerly on the CPU."""
    tell = voice("bench", as_json, quiet, debug)
    found = loaded(tell, model, weights, inputs)
    given = found.needed("bench")
    with tell.working("fusing"):
        fused = fuse(found.model, given, **options(found, rules, without, only, skip, objective))
    with tell.working("measuring"):
        result = benchmark(found.model, fused, given, rounds=rounds)
    tell.say(str(result))
    for name, timing in (("model", result.model), ("fused", result.fused)):
        tell.said[name] = {"median_ms": timing.median, "low_ms": timing.low, "high_ms": timing.high}
    tell.said["speedup"] = asdict(result.speedup)
    tell.said |= {name: getattr(result, name) for name in ("error", "rounds", "threads", "device")}
    tell.finish()


@app.command("demo")
def demo_command(
    report_file: ReportFile = None, as_json: AsJson = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Fuse a small network with branches, and show the report."""
    tell = voice("demo", as_json, quiet, debug)
    check_target("--report", report_file, (".html", ".json"))
    made = report(fuse(network(), example()))
    tell.said.update(brief(made))
    tell.say(made)
    keep_report(tell, report_file, made)
    if report_file is None:
        tell.say("reparamkit demo --report demo.html draws it")
    tell.finish()


def _version(asked: bool) -> None:
    if asked:
        print(f"reparamkit {__version__}")
        raise typer.Exit


@app.callback(help=HELP)
def reparamkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """What all commands have in common."""


# --- running ------------------------------------------------------------------------------------------


def run(arguments: Sequence[str]) -> int:
    """Run the command line; returns the exit code. Errors are one line on stderr."""
    # For errors of the arguments themselves, before a command has read its options.
    STATUS.update(debug="--debug" in arguments, json="--json" in arguments)
    try:
        return int(app(list(arguments) or ["--help"], standalone_mode=False, prog_name="reparamkit") or 0)
    except Exception as error:
        # typer's own errors, of whichever click it has.
        message: Callable[[], str] | None = getattr(error, "format_message", None)
        usage = None if message is None else Failure(Code.USAGE, message(), "reparamkit COMMAND --help")
        return _failed(error, usage or as_failure(error))
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        # typer's answer to a shell that asks for completions, and to a pipe that nobody reads any more.
        return 141 if isinstance(error.__context__, BrokenPipeError) else int(error.code or 0)


def _failed(error: BaseException, failure: Failure) -> int:
    if STATUS["debug"]:
        traceback.print_exception(error)
    print(f"reparamkit: {failure}", file=sys.stderr)
    if STATUS["json"]:
        said = {"error": failure.what, "next": failure.next_step, "exit_code": int(failure.code)}
        print(json.dumps(said))
    return int(failure.code)
