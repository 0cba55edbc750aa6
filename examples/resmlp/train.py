"""Train ResMLP without and with locality injection, equally long; fuse the second back into the first's form."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent
# Data, checkpoints, comparison and timing are those of the RepMLPNet example.
sys.path.append(str(EXAMPLES / "repmlpnet"))

import parallel  # noqa: E402
import torch  # noqa: E402
from arguments import ARMS, Options, parse  # noqa: E402
from command import command  # noqa: E402
from data import Data, load_images  # noqa: E402
from errors import FusionError  # noqa: E402
from evaluate import accuracy, compare  # noqa: E402
from figures import Figures, print_answers, print_size, print_speed, write_figures  # noqa: E402
from resmlp import ResMLP  # noqa: E402
from torch import nn  # noqa: E402
from training import Trainer  # noqa: E402
from weights import save_weights  # noqa: E402

import reparamkit  # noqa: E402


def run(options: Options) -> None:
    """Train both, fuse the injected one, compare."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    data = load_images(options)
    models = {arm: train(options.of_arm(arm), data) for arm in ARMS}
    if parallel.rank() > 0:
        return
    fused, figures = fuse(models["injected"], models["plain"], data, options)
    save_weights(fused, options.output / "fused.safetensors")
    correct = {
        arm: accuracy(model, data.test_batches(options.batch_size), options.device) for arm, model in models.items()
    }
    write_figures({**figures, "arms": correct, "epochs": options.epochs, "seed": options.seed}, options.output)
    print(f"\ntest accuracy after {options.epochs} epochs, one seed: ", end="")
    print(f"{correct['plain']:.2%} without injection, {correct['injected']:.2%} with it")
    print(f"written to {options.output}")


def new_model(options: Options, data: Data) -> nn.Module:
    """An untrained model; both arms have the same weights, and compute the same."""
    torch.manual_seed(options.seed)
    model: nn.Module = ResMLP(
        data.num_classes,
        image_size=options.image_size,
        patch_size=options.patch_size,
        in_channels=data.in_channels,
        dim=options.dim,
        depth=options.depth,
    )
    if options.arm == "injected":
        model = reparamkit.inject_locality(
            model, layers="blocks.*.linear_tokens", kernels=options.kernels, init=options.init, compute=options.compute
        )
    return model.to(options.device)


def train(options: Options, data: Data) -> nn.Module:
    """The trained model of one arm, in eval mode; weights and history lie in the folder of the arm."""
    print(f"\n{options.arm}: computing on {options.device}")
    model = new_model(options, data)
    # The same batches and shifts for both arms: injection draws random numbers as well.
    torch.manual_seed(options.seed)
    trained = Trainer(model, data, options).train().eval()
    if parallel.rank() == 0:
        save_weights(trained, options.output / "model.safetensors")
    return trained


def fuse(injected: nn.Module, plain: nn.Module, data: Data, options: Options) -> tuple[nn.Module, Figures]:
    """The injected model in the form of the plain one, and the figures of the comparison, which are printed too."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    images = next(iter(data.test_batches(options.batch_size)))[0].to(options.device)
    fused: nn.Module = reparamkit.fuse(injected, images, rules=["locality_injection"])
    report = reparamkit.report(fused)
    print(f"\n{report}\n")
    check_structure(fused, plain)
    answers = print_answers(compare(injected, fused, data.test_batches(options.batch_size), options.device))
    return fused, {**answers, **print_size(report), **print_speed(injected, fused, images)}


def check_structure(fused: nn.Module, plain: nn.Module) -> None:
    """Refuse a fused model that is not of the form of the model without injection."""
    found, wanted = ({n: tuple(t.shape) for n, t in model.state_dict().items()} for model in (fused, plain))
    if found != wanted:
        names = ", ".join(sorted(set(found) ^ set(wanted))) or "a shape"
        raise FusionError(f"the fused model is not of the form of the one without injection: {names}")
    print(f"structure            that of the model without injection, {len(found)} tensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    options = parse(arguments)
    return command(lambda: run(options), options.device)


if __name__ == "__main__":
    sys.exit(main())
