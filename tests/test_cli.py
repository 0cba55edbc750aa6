"""The command line, called in this process; what a process of its own shows is run as one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import reparamkit
from reparamkit.cli import app, entry, files, spec
from reparamkit.cli.failures import Code, Failure, as_failure
from reparamkit.reporting import Report
from reparamkit.testing import randomize

TINY = '''
"""A model of this file's own."""
import os
import torch
from torch import nn
from reparamkit.testing import randomize


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.before, self.padded = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.padded(self.before(self.norm(self.conv(x)).relu()))


def build():
    return randomize(Net())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 9)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.b(self.a(self.embed(x))))


class Talking(Net):
    def forward(self, x):
        print("called")
        return super().forward(x)


class Ending(Net):
    def forward(self, x):
        raise SystemExit(0)


def talking():
    print("made")
    return randomize(Talking())


def broken():
    raise OSError("no such\\nlicence")


def moves():
    os.chdir("/")
    return build()


def ends():
    raise SystemExit(0)


number = 3
'''
INPUT = ("--input", "1,3,9,9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, and weights for it that its file does not have."""
    made = tmp_path_factory.mktemp("cli")
    (made / "tiny.py").write_text(TINY)
    (made / "script.py").write_text("raise SystemExit(1)")
    save_file(randomize(built(made), seed=7).state_dict(), made / "weights.safetensors")
    return made


def built(folder: Path, name: str = "build") -> nn.Module:
    """The model, in this process."""
    return spec.load_model(f"{folder / 'tiny.py'}:{name}")


def environment(**variables: str) -> dict[str, str]:
    """That of a process that finds this package."""
    package = str(Path(reparamkit.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", **variables}


class Run(Protocol):
    """``reparamkit`` with these arguments, and these variables in its environment."""

    def __call__(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The console script in that folder, in this process: what it says to either stream, and its exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def called(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["reparamkit", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            entry.main()
        return subprocess.CompletedProcess(arguments, ended.value.code, *capfd.readouterr())

    return called


# --- as processes ---------------------------------------------------------------------------------------


def test_a_terminal_without_the_letters_of_a_path(folder: Path):
    """The whole command in a process of its own, which says nothing but that."""
    (folder / "nétz.py").write_text(TINY)
    done = subprocess.run(
        [sys.executable, "-m", "reparamkit.cli", "fuse", "nétz.py:build", "--recipe", "nétz.json"],
        cwd=folder,
        env=environment(PYTHONIOENCODING="ascii"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (Code.DONE, "")
    assert "wrote n\\xe9tz.json" in done.stdout


def test_a_closed_pipe_is_no_error():
    """``reparamkit demo | true``."""
    command, said = [sys.executable, "-m", "reparamkit.cli", "demo"], environment(PYTHONUNBUFFERED="1")
    with subprocess.Popen(command, env=said, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_core_needs_neither_typer_nor_rich():
    """And the console script says what to install."""
    code = """
import sys
sys.modules["typer"] = sys.modules["rich"] = None
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "typer" else find(name)
import reparamkit, torch
print(reparamkit.explain(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()))
from reparamkit.cli.entry import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == Code.MISSING, done.stderr
    assert done.stdout.startswith("1 merge,")
    assert done.stderr == "reparamkit: this needs the package 'typer' (pip install 'reparamkit[cli]')\n"


# --- whole commands, in this process --------------------------------------------------------------------


def test_convert_fuses_other_weights_without_the_model(folder: Path, run: Run):
    """A recipe of one set of weights makes of another what fuse makes of it."""
    assert run("fuse", "tiny.py:build", *INPUT, "--recipe", "recipe.json", "-q").returncode == Code.DONE
    done = run("convert", "recipe.json", "weights.safetensors", "-o", "converted.safetensors", "--json")
    assert done.returncode == Code.DONE, done.stderr
    assert json.loads(done.stdout)["written"] == {"weights": "converted.safetensors"}
    model = built(folder)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    wanted = reparamkit.fuse(model, torch.randn(1, 3, 9, 9)).state_dict()
    found = load_file(folder / "converted.safetensors")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    none = run("convert", "recipe.json", "nothing.safetensors", "-o", "none.safetensors")
    assert (none.returncode, none.stdout) == (Code.USAGE, "")
    again = run("convert", "recipe.json", "converted.safetensors", "-o", "twice.safetensors")
    assert (again.returncode, again.stdout) == (Code.MODEL, "recipe for Net: 14 tensors -> 9, 2 of them computed\n")
    assert "one of the fused model already" in again.stderr
    assert not (folder / "twice.safetensors").exists()


def test_convert_without_a_recipe_is_refused(folder: Path, run: Run):
    (folder / "no.json").write_text("{}")
    for name, code in (("none.json", Code.USAGE), ("no.json", Code.MODEL)):
        assert run("convert", name, "weights.safetensors", "-o", "x.safetensors").returncode == code


def test_fuse_writes_what_is_asked_for(folder: Path, run: Run):
    targets = ("-o", "fused.safetensors", "--pt2", "fused.pt2", "--report", "report.html")
    done = run("fuse", "tiny.py:build", "--weights", "weights.safetensors", *INPUT, *targets)
    assert done.returncode == Code.DONE, done.stderr
    assert done.stdout.startswith("1 merge, 2 refusals")
    assert done.stderr == ""

    model = randomize(built(folder), seed=7)
    fused = reparamkit.fuse(model, torch.randn(1, 3, 9, 9))
    state = load_file(folder / "fused.safetensors")
    assert state.keys() == fused.state_dict().keys()
    torch.testing.assert_close(state["conv.weight"], fused.conv.weight.detach())

    x = torch.randn(1, 3, 9, 9)
    exported = torch.export.load(folder / "fused.pt2").module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)
    assert "<svg" in (folder / "report.html").read_text()
    assert [path.name for path in folder.glob(".*")] == []


def test_fuse_speaks_json(folder: Path, run: Run):
    done = run("fuse", "tiny:build", *INPUT, "--json", "--skip", "conv", "--report", "report.json")
    assert done.returncode == Code.DONE, done.stderr
    said = json.loads(done.stdout)
    assert said["merges"] == []
    assert "left out by skip=" in {refusal["reason"] for refusal in said["refusals"]}
    assert all(refusal["what_to_do"] for refusal in said["refusals"])
    assert said["warnings"] == []
    assert [part["path"] for part in said["parts"]] == [""]
    assert not {"graph_before", "pictures"} & {*said, *(name for merge in said["merges"] for name in merge)}
    kept = Report.from_json((folder / "report.json").read_text())
    assert said["coverage"]["share"] == kept.coverage.share
    assert said["written"] == {"report": "report.json"}


def test_explain_fails_below_a_coverage(run: Run):
    done = run("explain", "tiny.py:build", *INPUT, "--min-coverage", "0.95", "--quiet")
    assert done.returncode == Code.CHECK
    assert done.stdout == ""
    assert done.stderr.startswith("reparamkit: coverage 50.0% is below 95.0%")
    assert done.stderr.count("\n") == 1


def test_verify_finds_weights_of_another_model(folder: Path, run: Run):
    other = reparamkit.fuse(randomize(built(folder), seed=3), torch.randn(1, 3, 9, 9))
    save_file(other.state_dict(), folder / "other.safetensors")
    done = run("verify", "tiny.py:build", *INPUT, "--fused", "other.safetensors", "--json")
    assert done.returncode == Code.CHECK
    said = json.loads(done.stdout)
    assert said["passed"] is False
    assert all(trial["error"] > trial["tolerance"] for trial in said["trials"])
    assert "not equal" in done.stderr


def test_an_infinite_error_is_json_too(folder: Path, run: Run):
    run("fuse", "tiny.py:build", *INPUT, "-o", "infinite.safetensors")
    state = load_file(folder / "infinite.safetensors")
    state["padded.weight"][0] = torch.inf
    save_file(state, folder / "infinite.safetensors")
    done = run("verify", "tiny.py:build", *INPUT, "--fused", "infinite.safetensors", "--json")

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    said = json.loads(done.stdout, parse_constant=refused)
    assert [trial["error"] for trial in said["trials"]] == ["inf"] * 3
    assert done.returncode == Code.CHECK


def test_verify_passes_on_the_fused_weights(folder: Path, run: Run):
    model = randomize(built(folder), seed=7)
    save_file(reparamkit.fuse(model, torch.randn(1, 3, 9, 9)).state_dict(), folder / "good.safetensors")
    weights = ("--weights", "weights.safetensors", "--fused", "good.safetensors")
    done = run("verify", "tiny.py:build", *weights, *INPUT, "--trials", "2")
    assert done.returncode == Code.DONE, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == ["equal", "equal"]


def test_bench_compares_in_one_run(run: Run):
    done = run("bench", "tiny.py:build", *INPUT, "--rounds", "6", "--json")
    assert done.returncode == Code.DONE, done.stderr
    said = json.loads(done.stdout)
    assert said["speedup"]["low"] <= said["speedup"]["median"] <= said["speedup"]["high"]
    assert (said["rounds"], said["threads"], said["device"]) == (6, 1, "cpu")
    assert all(0 < said[name]["low_ms"] <= said[name]["high_ms"] for name in ("model", "fused"))


def test_demo_shows_a_merge_of_each_kind(run: Run):
    done = run("demo")
    assert done.returncode == Code.DONE, done.stderr
    assert all(rule in done.stdout for rule in ("chain", "parallel_sum", "locality_injection"))
    assert "whole model: relative error" in done.stdout


def test_errors_are_one_line_with_the_next_step(run: Run):
    done = run("fuse", "tiny.py:broken", "--json")
    assert done.returncode == Code.MODEL
    assert (
        done.stderr == "reparamkit: tiny.py:broken raised OSError: no such licence (run with --debug for the trace)\n"
    )
    assert json.loads(done.stdout)["exit_code"] == Code.MODEL


def test_debug_shows_the_trace(run: Run):
    done = run("fuse", "tiny.py:broken", "--debug")
    assert done.returncode == Code.MODEL
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr


@pytest.mark.parametrize("command", ["fuse", "explain", "verify"])
def test_what_a_model_prints_is_no_part_of_the_answer(run: Run, command: str):
    done = run(command, "tiny.py:talking", *INPUT, "--json")
    assert done.returncode == Code.DONE, done.stderr
    assert json.loads(done.stdout)["command"] == command
    assert "made" in done.stderr
    assert "called" in done.stderr


def test_wrong_arguments_are_one_line(run: Run):
    done = run("fuse", "tiny.py:build", "--objective")
    assert done.returncode == Code.USAGE
    assert done.stderr.startswith("reparamkit: ")
    assert done.stderr.count("\n") == 1


def test_wrong_arguments_are_json_where_that_was_asked_for(run: Run):
    done = run("explain", "--json")
    assert done.returncode == Code.USAGE
    assert json.loads(done.stdout)["exit_code"] == Code.USAGE


def test_a_damaged_program_is_one_line(folder: Path, run: Run):
    (folder / "damaged.pt2").write_bytes(b"PK")
    done = run("explain", "damaged.pt2")
    assert done.returncode == Code.MODEL
    assert done.stderr.count("\n") == 1, done.stderr


def test_tied_weights_come_back(folder: Path, run: Run):
    """They are in the file once."""
    ids = ("--input", "2,5:int64")
    state = built(folder, "Tied").state_dict()
    save_file({n: t for n, t in state.items() if n != "head.weight"}, folder / "once.safetensors")
    done = run("fuse", "tiny.py:Tied", *ids, "--weights", "once.safetensors", "-o", "tied.safetensors")
    assert done.returncode == Code.DONE, done.stderr
    assert len({"embed.weight", "head.weight"} & set(load_file(folder / "tied.safetensors"))) == 1
    weights = ("--weights", "once.safetensors", "--fused", "tied.safetensors")
    done = run("verify", "tiny.py:Tied", *ids, *weights)
    assert done.returncode == Code.DONE, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_completes_commands_and_rules(run: Run, shell: str):
    """As each shell asks for it, and without a word about anything else, which would be written into the prompt."""
    words = {"COMP_WORDS": "reparamkit fuse --without loc", "COMP_CWORD": "3"}
    asked = {"_TYPER_COMPLETE_ARGS": words["COMP_WORDS"], "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = run(_REPARAMKIT_COMPLETE=f"complete_{shell}", **words, **asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert "locality_injection" in done.stdout
    assert "chain" not in done.stdout


def test_completion_is_installed(run: Run, tmp_path: Path):
    known = {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = run("--install-completion", "bash", **known)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / ".bashrc").exists()


def test_a_forward_that_ends_the_process_is_a_failure_of_the_model(folder: Path, run: Run):
    done = run("fuse", "tiny.py:Ending", *INPUT, "-o", "ended.safetensors")
    assert (done.returncode, done.stdout) == (Code.MODEL, "")
    assert done.stderr == "reparamkit: the code of the model ended the process (run it by itself)\n"
    assert not (folder / "ended.safetensors").exists()


def test_an_exported_program_is_fused(folder: Path, run: Run):
    """From file to file; the size of its inputs is in it."""
    model, x = randomize(built(folder), seed=7), torch.randn(1, 3, 9, 9)
    torch.export.save(torch.export.export(model, (x,)), folder / "model.pt2")
    done = run("fuse", "model.pt2", "--pt2", "smaller.pt2", "--json")
    assert done.returncode == Code.DONE, done.stderr
    assert len(json.loads(done.stdout)["merges"]) == 1
    fused = torch.export.load(folder / "smaller.pt2")
    assert [str(node.target) for node in fused.graph.nodes].count("aten.batch_norm.default") == 1
    torch.testing.assert_close(fused.module()(x), model(x), rtol=1e-4, atol=1e-5)


# --- their parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--objective", "fastest"), "choose one of default"),
        (("--rules", "chian"), "no rule 'chian'"),
        (("--without", "chian"), "no rule 'chian'"),
        (("--only", "heads.*"), "names no module"),
        (("--skip", "heads.*"), "names no module"),
        (("--objective", "measured"), "--objective measured runs the model (give its inputs: --input"),
    ],
)
def test_choices_that_cannot_be_followed(folder: Path, capsys, arguments: tuple[str, str], message: str):
    assert app.run(["explain", f"{folder / 'tiny.py'}:build", *arguments]) == Code.USAGE
    assert message in capsys.readouterr().err


def test_a_place_that_cannot_be_written(folder: Path, capsys):
    """A name that is too long, since tests may run with all rights."""
    assert app.run(["demo", "--report", f"{'a' * 300}.html"]) == Code.USAGE
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_is_no_recipe(folder: Path, capsys):
    arguments = [str(folder / "weights.safetensors"), str(folder / "weights.safetensors"), "-o", str(folder / "x.json")]
    assert app.run(["convert", *arguments]) == Code.USAGE  # one file for two
    (folder / "noise.json").write_bytes(b"\xff\xfe")
    assert app.run(["convert", str(folder / "noise.json"), *arguments[1:]]) == Code.MODEL
    assert "noise.json: " in capsys.readouterr().err


def test_inputs_that_the_model_rejects_say_which_option(folder: Path, capsys):
    assert app.run(["fuse", f"{folder / 'tiny.py'}:build", "--input", "1,4,9,9"]) == Code.MODEL
    assert capsys.readouterr().err.endswith("(here: --input 1,3,224,224)\n")


def test_errors_cannot_command_a_terminal():
    failure = as_failure(ValueError("\x1b[31mred\x1b]0;title\x07\u202e\nnext"))
    assert str(failure).isprintable()
    assert "\\x1b]0;title\\x07\\u202e next" in str(failure)


def test_numbers_on_a_terminal_have_no_markup(folder: Path):
    """Whether markup is on, as by default, or off, as the command line has it."""
    console = pytest.importorskip("rich.console").Console
    found = reparamkit.explain(built(folder))
    for markup in (True, False):
        shown = io.StringIO()
        console(file=shown, width=120).print(found, markup=markup)
        assert f"{found.after.ops}  (" in shown.getvalue()
        assert "[bold]" not in shown.getvalue()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("tiny", Code.USAGE, "write package.module:callable"),
        ("{}/none.py:build", Code.USAGE, "there is no file"),
        ("{}/tiny.py:biuld", Code.USAGE, "did you mean build"),
        ("{}/tiny.py:number", Code.MODEL, "gives a int"),
        ("{}/tiny.py:ends", Code.MODEL, "SystemExit"),
        ("{}/script.py:build", Code.MODEL, "SystemExit"),
        ("no_such_package_here.models:build", Code.USAGE, "there is no module"),
    ],
)
def test_specs_that_name_no_model(folder: Path, words: str, code: Code, message: str):
    with pytest.raises(Failure, match=message) as found:
        spec.load_model(words.format(folder))
    assert found.value.code == code


@pytest.mark.parametrize("zoo", ["torchvision", "timm"])
def test_names_of_a_zoo(zoo: str):
    pytest.importorskip(zoo)
    with pytest.raises(Failure, match=r"did you mean .*resnet1\d"):
        spec.load_model(f"{zoo}:resnet19")
    assert type(spec.load_model(f"{zoo}:resnet18")).__name__ == "ResNet"


class Written(nn.Module):
    """Writes in place, through a view, and has two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.point = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.act(self.norm(self.conv(x)))
        z = y.view(y.shape[0], -1)
        kept = y[:, 1:3] * 2
        z.add_(1)
        return self.point(y), kept


def test_exported_programs_compute_the_same(tmp_path: Path):
    """As the model does, before and after they are fused; what is written in place is seen to be."""
    model, x = randomize(Written(), seed=3), torch.randn(2, 3, 7, 7)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "model.pt2")
    program = spec.load_model(str(tmp_path / "model.pt2"))
    assert [tuple(each.shape) for each in spec.example_inputs([], "model.pt2", program)] == [(2, 3, 7, 7)]
    fused = reparamkit.fuse(program, x, as_graph=True)
    assert len(reparamkit.report(fused).merges) >= len(reparamkit.explain(model, x).merges) > 0
    for outputs in (program(x), fused(x)):
        torch.testing.assert_close(outputs, model(x), rtol=1e-4, atol=1e-5)


def test_a_program_that_is_none(tmp_path: Path):
    (tmp_path / "bad.pt2").write_bytes(b"PK no program")
    for name, code in (("none.pt2", Code.USAGE), ("bad.pt2", Code.MODEL)):
        with pytest.raises(Failure) as found:
            spec.load_model(str(tmp_path / name))
        assert found.value.code == code


def test_configurations_of_transformers(tmp_path: Path):
    """By kind, by file, by folder, with the class that the file names."""
    transformers = pytest.importorskip("transformers")
    small = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "num_labels": 3}
    config = transformers.ResNetConfig(**small, architectures=["ResNetForImageClassification"])
    config.save_pretrained(tmp_path)
    for name in (tmp_path, tmp_path / "config.json"):
        assert type(spec.load_model(f"hf:{name}")).__name__ == "ResNetForImageClassification"
    assert type(spec.load_model("hf:resnet")).__name__ == "ResNetModel"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Failure, match="hf:resnet") as found:
        spec.load_model(f"hf:{tmp_path}")
    assert found.value.code == Code.USAGE


def test_a_model_that_changes_the_folder_does_not_move_what_is_written(folder: Path, monkeypatch):
    monkeypatch.chdir(folder)
    assert app.run(["fuse", "tiny.py:moves", *INPUT, "-o", "moved.safetensors", "-q"]) == Code.DONE
    assert (folder / "moved.safetensors").exists()


def test_specs_that_name_a_model(folder: Path):
    assert not built(folder).training
    assert type(spec.load_model(f"{folder / 'tiny.py'}:Net")).__name__ == "Net"
    assert isinstance(spec.load_model("reparamkit.cli.demo:network"), nn.Sequential)


@pytest.mark.parametrize(
    "text", ["1,3,x", "1,-3", "1,3:floot32", "1;3", "1,3:nn", f"{2**40},{2**40}", f"{2**70}", "1,3:bits8"]
)
def test_inputs_that_are_refused(text: str):
    with pytest.raises(Failure, match="for example") as found:
        spec.drawn([text], 0)
    assert found.value.code == Code.USAGE


def test_inputs_have_the_shape_and_the_dtype_that_is_asked_for():
    image, words, flag = spec.drawn(["2,3,8,8", "1,16:int64", ":bool"], 0)
    assert (image.shape, image.dtype) == ((2, 3, 8, 8), torch.float32)
    assert (words.shape, words.dtype) == ((1, 16), torch.int64)
    assert (flag.shape, flag.dtype) == ((), torch.bool)
    again, _, _ = spec.redrawn((image, words, flag), 0)
    assert torch.equal(again, image)
    assert not torch.equal(spec.redrawn((image,), 1)[0], image)


def test_weights_that_do_not_fit(folder: Path):
    state = {**randomize(built(folder)).state_dict(), "extra": torch.ones(1)}
    del state["norm.bias"]
    state["conv.weight"] = torch.ones(4, 3, 5, 5)
    torch.save({"state_dict": state}, folder / "misfit.pt")
    with pytest.raises(Failure, match=r"1 missing \(norm.bias\); 1 unexpected \(extra\); 1 of another shape") as found:
        spec.load_weights(built(folder), folder / "misfit.pt")
    assert found.value.code == Code.MODEL


def test_names_with_the_prefix_of_a_wrapper_are_recognised(folder: Path):
    torch.save(nn.DataParallel(built(folder)).state_dict(), folder / "wrapped.pt")
    with pytest.raises(Failure) as found:
        spec.load_weights(built(folder), folder / "wrapped.pt")
    assert "take 'module.' off" in found.value.next_step


class Hostile:
    """Runs code when it is unpickled as usual."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_weights_are_never_code(folder: Path, tmp_path: Path, name: str):
    """No file can run code, whatever it is called."""
    torch.save({"conv.weight": Hostile(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(Failure, match="cannot be read") as found:
        spec.load_weights(built(folder), tmp_path / name)
    assert found.value.code == Code.MODEL
    assert not (tmp_path / "ran").exists()


def header(shape: list[int], offsets: list[int], dtype: str = "F32") -> bytes:
    """A safetensors file that says so, with 16 bytes of data."""
    said = json.dumps({"conv.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return len(said).to_bytes(8, "little") + said + bytes(16)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(4),
        (2**63).to_bytes(8, "little") + b"{}",
        b"\xff" * 64,
        header([2**40, 2**20], [0, 16]),
        header([4], [0, 2**60]),
        header([4], [16, 0]),
        header([-4], [0, 16]),
        header([4], [0, 16], dtype="EVIL"),
        header([4], [0, 16])[:-9],
    ],
    ids=["empty", "short", "long header", "noise", "huge shape", "far end", "backwards", "negative", "dtype", "cut"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_files_that_lie(folder: Path, tmp_path: Path, data: bytes, suffix: str):
    """A damaged or hostile file ends in one of our errors, and the model is as before."""
    path, model = tmp_path / f"bad{suffix}", built(folder)
    path.write_bytes(data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(Failure) as found:
        spec.load_weights(model, path)
    assert found.value.code == Code.MODEL
    assert len(str(found.value)) < 700
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("conv.bias", lambda t: t * float("nan"), r"1 not a number \(conv.bias\)"),
        ("conv.weight", lambda t: t.to(torch.complex64), r"1 of another kind \(conv.weight\)"),
        ("conv.weight", lambda t: t.to(torch.int64), r"1 of another kind \(conv.weight\)"),
        ("conv.weight", lambda t: t.to_sparse(), r"1 of another kind \(conv.weight\)"),
        ("conv.weight", lambda t: t.to("meta"), r"1 of another kind \(conv.weight\)"),
        ("conv.weight", lambda t: torch.zeros(1).expand(10**12), r"1 of another shape \(conv.weight\)"),
        (3, lambda t: torch.ones(1), "holds no state_dict"),
    ],
)
def test_numbers_that_do_not_fit(folder: Path, tmp_path: Path, name: object, change: object, message: str):
    """What torch would load with a warning, or without a word, is refused."""
    model = built(folder)
    state = model.state_dict()
    torch.save({**state, name: change(state.get(name))}, tmp_path / "bad.pt")
    with pytest.raises(Failure, match=message) as found:
        spec.load_weights(model, tmp_path / "bad.pt")
    assert found.value.code == Code.MODEL


def test_files_are_complete_or_not_there(tmp_path: Path):
    target = tmp_path / "kept.txt"
    target.write_text("old")

    def fail() -> None:
        with files.atomic(target) as part:
            part.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert target.read_text() == "old"
    files.write_text(target, "new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


@pytest.mark.parametrize(
    ("name", "message"), [("x.bin", "must end in"), ("none/x.pt2", "mkdir"), ("dir.pt2", "folder")]
)
def test_targets_are_checked_before_the_work(tmp_path: Path, name: str, message: str):
    (tmp_path / "dir.pt2").mkdir()
    with pytest.raises(Failure, match=message) as found:
        files.check_target("--pt2", tmp_path / name, (".pt2",))
    assert found.value.code == Code.USAGE


def test_no_file_is_written_over_another(folder: Path):
    weights, other = folder / "weights.safetensors", folder / "other.safetensors"
    files.check_distinct({"--weights": weights, "-o": other, "--report": None})
    with pytest.raises(Failure, match="--weights and -o name one file"):
        files.check_distinct({"--weights": weights, "-o": folder / "." / weights.name})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter
def test_onnx_of_half_precision_has_the_tolerance_of_half_precision(folder: Path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).half().eval()
    check = files.write_onnx(folder / "half.onnx", model, (torch.randn(4, 64).half(),))
    assert check.tolerance > 1e-2


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter
def test_onnx_is_checked_against_torch(folder: Path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    model, x = built(folder), torch.randn(1, 3, 9, 9)
    check = files.write_onnx(folder / "model.onnx", model, (x,))
    assert check.passed
    assert (folder / "model.onnx").stat().st_size > 0


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter
def test_onnx_that_differs_is_not_kept(folder: Path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)

    class Wrong(nn.Module):
        """Exports as twice its input, and computes three times."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * (2 if torch.compiler.is_exporting() else 3)

    with pytest.raises(Failure, match="differs from torch") as found:
        files.write_onnx(folder / "wrong.onnx", Wrong().eval(), (torch.randn(1, 3),))
    assert found.value.code == Code.CHECK
    assert not (folder / "wrong.onnx").exists()
