"""Time and memory of fusing large models: ``python benchmarks/large.py``, each in a process of its own.

Weights and norms are random. Writes benchmarks/results/large.md. The memory is what the process needs beyond what it
has before, sampled while it runs; with ``inplace`` that is no second model. Needs ``pip install transformers peft``.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reparamkit

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "examples" / "repmlpnet"), str(ROOT / "benchmarks")]
from processor import processor_seconds  # noqa: E402
from repmlpnet import peak_memory  # noqa: E402
from zoo import randomize  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "large.md"


def repmlpnet_l256() -> tuple[nn.Module, Tensor]:
    """The largest network of the paper, and an image."""
    from model import create_model

    return create_model("repmlpnet_l256"), torch.randn(1, 3, 256, 256)


def llama_with_lora() -> tuple[nn.Module, Tensor]:
    """A decoder of 1.3 billion parameters with an adapter of rank 16 at each linear layer, and 16 tokens."""
    import peft
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=16, use_cache=False
    )
    model = transformers.LlamaForCausalLM(config)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    return peft.get_peft_model(model, lora), torch.randint(0, config.vocab_size, (1, 16))


@dataclass(frozen=True)
class Row:
    """make: the model and its example input. inplace: as an option of `fuse`."""

    make: Callable[[], tuple[nn.Module, Tensor]]
    inplace: bool = False


ROWS = {
    "RepMLPNet-L256": Row(repmlpnet_l256),
    "RepMLPNet-L256, in place": Row(repmlpnet_l256, inplace=True),
    "Llama, 1.3 billion parameters, with LoRA, in place": Row(llama_with_lora, inplace=True),
}


def measured(row: Row) -> dict[str, Any]:
    """What fusing takes, and what it brings."""
    torch.manual_seed(0)
    made, x = row.make()
    model = randomize(made).eval()
    with torch.no_grad():
        wanted = model(x)
    fused: list[nn.Module] = []
    with peak_memory() as peak:
        seconds = processor_seconds(lambda: fused.append(reparamkit.fuse(model, x, inplace=row.inplace)))
    report = reparamkit.report(fused[0])
    with torch.no_grad():
        error = _error(fused[0](x), wanted)
    return {
        "parameters": report.before.parameters,
        "left": report.after.parameters,
        "merges": len(report.merges),
        "ops": [report.before.ops, report.after.ops],
        "model": _mebibytes(made, report.before.parameters),
        "largest": max(p.numel() * p.element_size() for p in fused[0].parameters()) / 2**20,
        "peak": peak[0],
        "seconds": seconds,
        "error": error,
    }


def _mebibytes(model: nn.Module, count: int) -> float:
    return count * next(model.parameters()).element_size() / 2**20


def _error(found: Any, wanted: Any) -> float:
    found, wanted = (getattr(each, "logits", each).double() for each in (found, wanted))
    return float((found - wanted).abs().max() / wanted.abs().max())


def _table(rows: dict[str, dict[str, Any]], threads: int) -> list[str]:
    version = torch.__version__.split("+")[0]
    return [
        "# Large models",
        "",
        f"`python benchmarks/large.py`; torch {version}, {threads} CPU threads, {platform.machine()}, float32, proofs"
        " included. *Memory*: at most, beyond the model itself. *Error*: against the model in float32.",
        "",
        "| model | parameters | operations | merges | processor time | model | largest layer | memory | error |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {_cells(row)} |" for name, row in rows.items()),
    ]


def _cells(row: dict[str, Any]) -> str:
    cells = (
        f"{row['parameters']:,} -> {row['left']:,}",
        f"{row['ops'][0]} -> {row['ops'][1]}",
        str(row["merges"]),
        f"{row['seconds']:.0f} s",
        *(f"{row[key]:,.0f} MiB" for key in ("model", "largest", "peak")),
        f"{row['error']:.1e}",
    )
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--row", choices=list(ROWS), help="one row only, as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.row:
        print(json.dumps(measured(ROWS[options.row])))
        return
    text = "\n".join(_table({name: _apart(name, options.threads) for name in ROWS}, options.threads)) + "\n"
    RESULTS.write_text(text)
    print(text)


def _apart(name: str, threads: int) -> dict[str, Any]:
    """A row, measured in a process of its own."""
    command = [sys.executable, __file__, "--row", name, "--threads", str(threads)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return dict(json.loads(out.splitlines()[-1]))


if __name__ == "__main__":
    main()
