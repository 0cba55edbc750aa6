"""The models of the zoo, with random weights: of timm, torchvision and transformers, and with adapters of peft."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Of every timm module the model with the fewest parameters among its plain ones, and the families issue trackers name.
TIMM = str.split("""
    beit_base_patch16_224 halonet_h1 mobileone_s0 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext
    cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121
    dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvim_m1
    efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny
    ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 test_mambaout maxvit_pico_rw_256
    poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050 mobilevit_xxs mvitv2_tiny nasnetalarge nest_tiny nextvit_small
    nf_regnet_b0 pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50
    resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
    tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224
    test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception
    xception41p xcit_nano_12_p8_224
    repvgg_a0 mobileone_s1 resnet18 resnet50 resmlp_12_224 mixer_s32_224 ghostnetv2_100 ghostnetv3_050
    mobilenetv2_050 mobilenetv4_conv_small efficientnet_b0 tf_efficientnet_lite0 regnety_002 repvit_m0_9 fastvit_sa12
    test_efficientnet test_byobnet test_resnet convnext_atto
""")
TOO_LARGE = {
    "deepseek_vit_412m": "412 million parameters",
    "gemma4_vit_167m": "167 million parameters, images of 768 x 768",
    "mobilenetv5_300m": "294 million parameters, images of 768 x 768",
    "naflexvit_so150m2_patch16_reg1_gap": "136 million parameters, images of 384 x 384",
    "qwen3_vit_88m": "images of 768 x 768",
}
"""The smallest of their modules, and not run."""
CLASSIFICATION = str.split("""
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
    mobilenet_v2 mobilenet_v3_small regnet_x_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t
    swin_v2_t vgg11_bn vit_b_32 wide_resnet50_2
""")
SEGMENTATION = str.split("deeplabv3_mobilenet_v3_large fcn_resnet50 lraspp_mobilenet_v3_large")
DETECTION = str.split("""
    fasterrcnn_mobilenet_v3_large_320_fpn fcos_resnet50_fpn keypointrcnn_resnet50_fpn maskrcnn_resnet50_fpn
    retinanet_resnet50_fpn ssdlite320_mobilenet_v3_large ssd300_vgg16
""")
VIDEO = str.split("r3d_18 mc3_18 r2plus1d_18 s3d mvit_v1_b swin3d_t")
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""
Inputs = Callable[[int, int | None], Call]
"""The arguments for a batch, and an image size or a number of tokens (None: as usual)."""


class NotRun(Exception):
    """A model that is not in the zoo: why."""


@dataclass(frozen=True)
class Sample:
    """A model, and what it is called with. merge: what its own library has to make it smaller, if anything."""

    model: nn.Module
    inputs: Inputs
    merge: Callable[[nn.Module], nn.Module] | None = None


@dataclass(frozen=True)
class Entry:
    """A model of the zoo. make: raises `NotRun` if it cannot be had small, or with plain inputs."""

    name: str
    make: Callable[[], Sample]


def entries() -> list[Entry]:
    """Every model, by unique names."""
    found = [timm_model(name) for name in TIMM]
    kinds = [("", CLASSIFICATION), ("segmentation.", SEGMENTATION), ("detection.", DETECTION), ("video.", VIDEO)]
    found += [_torchvision(kind, name) for kind, names in kinds for name in names]
    with suppress(ImportError):
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

        found += [transformer(kind) for kind in MODEL_MAPPING_NAMES]
    with suppress(ImportError):
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        names = [*(str(kind.value).lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING), *VARIANTS]
        found += [_adapter(name, base) for base in BASES for name in names]
    return found


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def timm_model(name: str) -> Entry:
    """A model of timm by its name."""
    import timm

    config = timm.get_pretrained_cfg(name)
    usual = (config.input_size if config is not None else (3, 224, 224))[-1]
    free = config is not None and not config.fixed_input_size
    small = 160 if free and usual > 160 and "csat" not in name and "halonet" not in name else usual

    def inputs(batch: int, size: int | None) -> Call:
        n = size or small
        return (_noise(batch, 3, n, n),), {}

    return Entry(f"timm/{name}", lambda: Sample(timm.create_model(name, pretrained=False), inputs))


def _torchvision(kind: str, name: str) -> Entry:
    def make() -> Sample:
        from torchvision import models

        options: dict[str, Any] = {"weights_backbone": None} if kind in ("segmentation.", "detection.") else {}
        options |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        # Detectors scale every image up to 800 pixels otherwise.
        options |= {"min_size": 160, "max_size": 320} if name.endswith("resnet50_fpn") else {}
        return Sample(models.get_model(name, weights=None, **options), inputs)

    usual = {"inception_v3": 299, "maxvit_t": 224, "vit_b_32": 224, "swin_t": 224, "swin_v2_t": 256}.get(name, 160)

    def inputs(batch: int, size: int | None) -> Call:
        n = size or usual
        if kind == "detection.":
            return ([_noise(3, n, n) for _ in range(batch)],), {}
        if kind == "video.":
            fixed = name in ("mvit_v1_b", "swin3d_t")
            n = 224 if fixed else size or (224 if name == "s3d" else 112)
            return (_noise(batch, 3, 16 if fixed or name == "s3d" else 8, n, n),), {}
        return (_noise(batch, 3, n, n),), {}

    return Entry(f"torchvision/{kind}{name}", make)


# --- transformers -------------------------------------------------------------------------------------

DEPTH = dict.fromkeys(str.split("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers"), 2)
HEADS = {"head_dim": 8, "d_kv": 8, "d_head": 8}
SMALL = {
    **DEPTH, **HEADS,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embedding_size": 32, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64, "ffn_dim": 64,
    "d_ff": 64, "d_inner": 64, "hidden_dim": 64, "vocab_size": 99, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 64,
    "word_embed_proj_dim": 32, "block_sizes": [1, 1], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "time_step_rank": 4,
}  # fmt: skip
LEVELS = (SMALL, {name: value for name, value in SMALL.items() if name not in HEADS}, DEPTH, {})
"""What makes a configuration smaller, from the smallest on: not every model can have any width."""
MOST = 70_000_000
"""Parameters of a model of transformers that is run."""


def transformer(kind: str) -> Entry:
    """A model of transformers by its type, as small as it can be had, called with tokens, images or sound."""

    def make() -> Sample:
        said = "takes none of the inputs that are tried"
        for level, cached in itertools.product(LEVELS, (True, False)):
            try:
                model = _configured(kind, level, cached)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
                continue
            for inputs in _attempts(model):
                with suppress(Exception), torch.no_grad():
                    model(**inputs(2, None)[1])
                    return Sample(model, inputs)
        raise NotRun(said.partition("\n")[0][:80])

    return Entry(f"transformers/{kind}", make)


def _configured(kind: str, level: Mapping[str, Any], cached: bool = True) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    config = _shrunk(AutoConfig.for_model(kind), level)
    config.use_cache = cached and getattr(config, "use_cache", True)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in AutoModel.from_config(copy.deepcopy(config)).parameters())
    if count > MOST:
        raise ValueError(f"{count / 1e6:.0f} million parameters")
    return AutoModel.from_config(config).eval()  # type: ignore[no-any-return]


def _shrunk(config: Any, level: Mapping[str, Any]) -> Any:
    """The configuration, and those inside of it, with smaller numbers; what it does not let be set stays."""
    for name, value in level.items():
        with suppress(Exception):
            if type(getattr(config, name)) is type(value):
                setattr(config, name, value)
    if isinstance(getattr(config, "layer_types", None), list):
        config.layer_types = config.layer_types[: getattr(config, "num_hidden_layers", None)]
    for inner in [value for value in vars(config).values() if hasattr(value, "model_type")]:
        _shrunk(inner, level)
    return config


def _attempts(model: Any) -> Iterator[Inputs]:
    """What a model may take, by the names of its arguments."""
    names = inspect.signature(model.forward).parameters
    sizes = [size for size in (_found(model.config, "image_size"), 224, 128, 64) if isinstance(size, int)]
    mels = next((n for name in ("num_mel_bins", "n_mels", "feature_size") if (n := _found(model.config, name))), 80)
    sounds = {"input_values": [(8000,), (1, 8000)], "input_features": [(mels, 200), (200, mels), (mels, 3000)]}
    ways: list[dict[str, tuple[int, ...]]] = [{"input_ids": ()}, {"input_ids": (), "decoder_input_ids": ()}]
    ways += [{"pixel_values": (3, size, size)} for size in sizes]
    ways += [{"input_ids": (), "pixel_values": (3, size, size)} for size in sizes]
    heard = [{name: shape} for name, shapes in sounds.items() for shape in shapes]
    ways += [{**way, **more} for way in heard for more in ({}, {"decoder_input_ids": ()})]
    main = model.main_input_name
    ways.sort(key=lambda way: main not in way)
    yield from (_named(way) for way in ways if way.keys() <= names.keys())


def _found(config: Any, name: str) -> Any:
    """A setting of a configuration, or of one inside of it."""
    inner = (value for value in vars(config).values() if hasattr(value, "model_type"))
    return getattr(config, name, None) or next((found for each in inner if (found := _found(each, name))), None)


def _named(shapes: Mapping[str, tuple[int, ...]]) -> Inputs:
    """Arguments of these shapes; without one they are tokens."""

    def inputs(batch: int, size: int | None) -> Call:
        tokens = torch.randint(3, 99, (batch, size or 12), generator=torch.Generator().manual_seed(batch))
        images = {
            name: (*shape[:1], size, size) if size and len(shape) == 3 else shape for name, shape in shapes.items()
        }
        return (), {name: _noise(batch, *shape) if shape else tokens for name, shape in images.items()}

    return inputs


def _sized(shape: tuple[int, ...], size: int | None) -> tuple[int, ...]:
    """The shape of an image in another size; that of anything else as it is."""
    return (shape[0], size, size) if size and len(shape) == 3 else shape


# --- adapters -----------------------------------------------------------------------------------------

BASES = {"llama": "all-linear", "resnet": ["convolution"]}
"""Models of transformers that get an adapter, and the layers that it is for."""
PROMPT = {"target_modules": None, "num_virtual_tokens": 4, "task_type": "FEATURE_EXTRACTION"}
NEEDED: dict[str, dict[str, Any]] = {
    "adalora": {"total_step": 10},
    "miss": {"r": 4}, "shira": {"r": 4}, "psoft": {"r": 4}, "xlora": {"target_modules": None},
    "fourierft": {"n_frequency": 20}, "waveft": {"n_frequency": 20},
    "c3a": {"block_size": 8}, "vblora": {"vector_length": 8, "num_vectors": 16}, "road": {"group_size": 8},
    "trainable_tokens": {"token_indices": [3, 5]}, "ia3": {"feedforward_modules": []},
    "shadow": {"target_modules": None},
    "prompt_tuning": PROMPT, "multitask_prompt_tuning": PROMPT, "p_tuning": PROMPT, "prefix_tuning": PROMPT,
    "cartridge": PROMPT, "cpt": {"target_modules": None}, "adaption_prompt": {"target_modules": None},
}  # fmt: skip
"""What the configuration of an adapter must be given."""
VARIANTS = {
    "rank-stabilised lora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora with biases": {"lora_bias": True},
}
"""LoRA with a setting."""


def _adapter(name: str, base: str) -> Entry:
    def make() -> Sample:
        try:
            return _adapted(name, base)
        except Exception as error:
            raise NotRun(f"{type(error).__name__}: {error}".partition("\n")[0][:80]) from error

    return Entry(f"peft/{name} of {base}", make)


def _adapted(name: str, base: str) -> Sample:
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    found = {str(kind.value).lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    options = {"target_modules": BASES[base], **NEEDED.get(name, {}), **VARIANTS.get(name, {})}
    config = found["lora" if name in VARIANTS else name](**{k: v for k, v in options.items() if v is not None})
    sample = transformer(base).make()
    model = peft.get_peft_model(sample.model, config).eval()
    with torch.no_grad():
        model(**sample.inputs(2, None)[1])
    return Sample(model, sample.inputs, _merged if hasattr(model, "merge_and_unload") else None)


def _merged(model: Any) -> nn.Module:
    return model.merge_and_unload()  # type: ignore[no-any-return]
