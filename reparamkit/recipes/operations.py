"""The operations a recipe may use: a fixed table of ATen functions from names to what is called.

They compute numbers from numbers. None of them draws random numbers, or reads files or memory that nobody wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

ARITHMETIC = """
    add.Tensor add.Scalar add_.Tensor add_.Scalar sub.Tensor sub.Scalar sub_.Tensor rsub.Scalar rsub.Tensor
    mul.Tensor mul.Scalar mul_.Tensor mul_.Scalar div.Tensor div.Scalar div_.Tensor div_.Scalar
    div.Tensor_mode div.Scalar_mode neg.default neg_.default reciprocal.default remainder.Tensor remainder.Scalar
    pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar square.default sqrt.default sqrt_.default rsqrt.default
    exp.default exp2.default expm1.default log.default log2.default log1p.default
    abs.default sign.default floor.default ceil.default round.default trunc.default
    sin.default cos.default tan.default tanh.default atan.default erf.default sigmoid.default softplus.default
    relu.default gelu.default silu.default hardtanh.default hardsigmoid.default leaky_relu.default
    clamp.default clamp.Tensor clamp_min.default clamp_max.default clamp_.default clamp_min_.default
    maximum.default minimum.default addcmul.default addcdiv.default lerp.Scalar lerp.Tensor
    eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor gt.Scalar gt.Tensor ge.Scalar
    ge.Tensor isfinite.default isnan.default logical_and.default logical_or.default logical_not.default
    bitwise_and.Tensor bitwise_or.Tensor bitwise_not.default where.self masked_fill.Scalar masked_fill_.Scalar
"""
SUMS = """
    sum.default sum.dim_IntList mean.default mean.dim var.default var.dim var.correction std.correction
    var_mean.correction prod.default prod.dim_int amax.default amin.default max.default min.default
    argmax.default argmin.default topk.default sort.default
    max.dim min.dim any.default any.dim all.default all.dim linalg_vector_norm.default norm.ScalarOpt_dim
    norm.Scalar cumsum.default cumprod.default _softmax.default _log_softmax.default
    mm.default bmm.default mv.default dot.default vdot.default outer.default addmm.default addmv.default baddbmm.default
    linalg_matrix_exp.default linalg_householder_product.default linalg_solve_triangular.default
    linalg_inv_ex.default triu.default tril.default triu_.default tril_.default
    _weight_norm_interface.default block_diag.default cross.default linalg_cross.default
    _fft_c2c.default _fft_r2c.default _fft_c2r.default view_as_real.default view_as_complex.default complex.default
    _conj.default resolve_conj.default
"""
LAYERS = """
    convolution.default constant_pad_nd.default im2col.default col2im.default avg_pool1d.default avg_pool2d.default
    avg_pool3d.default _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default
    native_batch_norm.default _native_batch_norm_legit_no_training.default native_layer_norm.default
    reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default
    replication_pad1d.default replication_pad2d.default replication_pad3d.default
    upsample_nearest1d.default upsample_nearest2d.default upsample_nearest3d.default upsample_linear1d.default
    upsample_bilinear2d.default upsample_bicubic2d.default upsample_trilinear3d.default
    _upsample_nearest_exact1d.default _upsample_nearest_exact2d.default pixel_shuffle.default
    pixel_unshuffle.default roll.default flip.default channel_shuffle.default
"""
CREATION = """
    zeros.default ones.default full.default eye.default eye.m arange.default arange.start arange.start_step
    linspace.default zeros_like.default ones_like.default full_like.default new_zeros.default new_ones.default
    new_full.default scalar_tensor.default zero_.default fill_.Scalar fill_.Tensor clone.default copy_.default
    _to_copy.default lift_fresh.default fill.Scalar copy.default
"""
VIEWS = """
    view.default _unsafe_view.default _reshape_alias.default view.dtype permute.default transpose.int t.default
    unsqueeze.default squeeze.default squeeze.dim squeeze.dims expand.default alias.default detach.default
    slice.Tensor select.int diagonal.default unbind.int split.Tensor split_with_sizes.default unfold.default
    movedim.int movedim.intlist cat.default stack.default repeat.default repeat_interleave.self_int
    index_select.default index.Tensor index_put_.default index_add_.default index_add.default
    scatter.src scatter_.src scatter_add.default scatter_add_.default gather.default diag_embed.default
    unsafe_split.Tensor unsafe_chunk.default
"""
BY_DATA = "nonzero.default masked_select.default _unique2.default"
"""Operations whose result has a shape that depends on numbers."""
PYTHON: dict[str, Callable[[torch.Tensor], Any]] = {"tolist": lambda x: x.tolist(), "shape": lambda x: list(x.shape)}
READS = frozenset({"_local_scalar_dense.default", "equal.default", "allclose.default", *PYTHON})
"""What takes numbers out of a tensor, for Python code to decide on."""


def _table() -> dict[str, Callable[..., Any]]:
    names = " ".join((ARITHMETIC, SUMS, LAYERS, CREATION, VIEWS, BY_DATA, *(READS - PYTHON.keys()))).split()
    found = {name: _overload(*name.split(".")) for name in names}
    # A name that this version of torch does not have is a name that no recipe can use.
    return {name: function for name, function in found.items() if function is not None} | PYTHON


def _overload(packet: str, overload: str) -> Callable[..., Any] | None:
    return getattr(getattr(torch.ops.aten, packet, None), overload, None)


OPERATIONS = _table()
"""By name, as "add.Tensor", the functions that a recipe may call."""
