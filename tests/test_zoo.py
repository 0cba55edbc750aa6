"""A dozen real models, one of each kind: the whole zoo is benchmarks/zoo.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("timm", reason="timm is not installed: pip install timm")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import zoo
import zoo_models

import reparamkit

pytestmark = pytest.mark.filterwarnings("ignore")  # other people's models warn
DOZEN = {
    "test_resnet": "plain convolutions",
    "test_efficientnet": "depthwise convolutions and gates",
    "test_byobnet": "re-parameterised blocks",
    "repvgg_a0": "branches with norms",
    "repvit_m0_9": "norms inside sums",
    "repghostnet_050": "concatenations",
    "fastvit_t8": "token mixers",
    "efficientvit_m0": "attention over channels in groups",
    "levit_128s": "linear layers with norms",
    "test_vit": "no norm to fold",
    "test_convnext": "layer scales",
    "gmlp_ti16_224": "tokens as channels",
}


@pytest.mark.parametrize("name", DOZEN)
def test_a_real_model_is_equal_and_keeps_no_norm_that_could_go(name: str):
    """Equal to float64 at two batch sizes and another image size, of its class, the original as it was, and no batch
    norm left that a neighbour could take."""
    torch.manual_seed(0)
    line = zoo.examine(zoo_models.timm_model(name), peers=False)
    assert zoo.verdict(line) == ""
    assert line["after"]["ops"] <= line["before"]["ops"]
    assert line["before"]["bn"] == 0 or line["after"]["bn"] < line["before"]["bn"]


def test_a_transformer_takes_images_of_another_size():
    """Its table of positions is resampled then: what holds for the size of the example is no size of its layers."""
    pytest.importorskip("transformers")
    line = zoo.examine(zoo_models.transformer("dinov2"), peers=False)
    assert zoo.verdict(line) == ""
    assert isinstance(line["size_error"], float)


def test_other_tools_take_a_fused_model():
    """timm looks for methods that re-parameterise a block; those that were merged have none any more."""
    from timm.utils import reparameterize_model

    model = zoo.randomize(zoo_models.timm_model("repvgg_a0").make().model)
    images = torch.randn(1, 3, 64, 64)
    fused = reparamkit.fuse(model, images, verify=False)
    with torch.no_grad():
        wanted = model(images)
        assert zoo.error([reparameterize_model(fused)(images)], [wanted]) <= 1e-5
    assert not any(hasattr(module, "reparameterize") for module in fused.modules())


def test_the_zoo_names_every_timm_module():
    """Each module of timm has a model in the zoo, or a reason why not."""
    import timm

    named = {*zoo_models.TIMM, *zoo_models.TOO_LARGE}
    assert {module for module in timm.list_modules() if named.isdisjoint(timm.list_models(module=module))} == set()
