"""Fused operations of a Llama-like decoder on a CPU in float32: norms, rotations and gated
activations with gradients of their own.

Between its matrix products such a decoder is bound by memory: each of these parts is a chain of
small operations, and autograd stores a tensor for each of them. As one operation a part stores only
the inputs of its gradient, and passes over memory half as often. The values equal those of
transformers to the bit.

Only the instances of one model change: each part gets a `forward` of its own, which
`remove_fused_ops` takes away again. Classes and functions of transformers stay as they are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from vla.models.loading import plain_model

ROTATION = "apply_rotary_pos_emb"
"""Name of the rotation of queries and keys in modelling files of transformers."""


class _Normed(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * w over the last dimension; stores x and one number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        factor = x.pow(2).mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, factor = ctx.saved_tensors
        normed = x * factor
        scale_grad = grads[0] * normed
        # The part of the gradient along x: a norm does not change with the length of x.
        along = (scale_grad @ weight).div_(-len(weight)).unsqueeze(-1)
        x_grad = (grads[0] * weight).addcmul_(normed, along).mul_(factor)
        return x_grad, scale_grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None, None


class _Rotated(torch.autograd.Function):
    """x cos + (-x2, x1) sin for the halves x1, x2 of x; stores cos and sin.

    The gradient is the rotation by the opposite angle.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = x.chunk(2, -1)
        sin_first, sin_second = sin.chunk(2, -1)
        out = x * cos
        left, right = out.chunk(2, -1)
        left.sub_(second * sin_first)
        right.add_(first * sin_second)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = grads[0].chunk(2, -1)
        sin_first, sin_second = sin.chunk(2, -1)
        out = grads[0] * cos
        left, right = out.chunk(2, -1)
        left.addcmul_(second, sin_second)
        right.addcmul_(first, sin_first, value=-1)
        return out, None, None


class _Gated(torch.autograd.Function):
    """silu(gate) up; stores both inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), silu(gate).mul_(grads[0])


def fused_norm(part: Any, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
    """Forward of an RMS norm of transformers (`weight`, `variance_epsilon`)."""
    if not _fits(x):
        return type(part).forward(part, x)
    return _Normed.apply(x, part.weight, part.variance_epsilon)


def fused_mlp(part: Any, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
    """Forward of an MLP of transformers with a SiLU gate (`gate_proj`, `up_proj`, `down_proj`)."""
    gate = part.gate_proj(x)
    up = part.up_proj(x)
    return part.down_proj(_Gated.apply(gate, up) if _fits(gate) else silu(gate) * up)


def _fits(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


class Rotation:
    """A fused `apply_rotary_pos_emb`; other types and shapes fall back to the library's `own`."""

    def __init__(self, own: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.own = own

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        if (
            not all(_fits(tensor) for tensor in (q, k, cos))
            or cos.requires_grad
            or cos.shape[-1] != q.shape[-1]
        ):
            return self.own(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)
        cos = cos.unsqueeze(unsqueeze_dim)
        sin = sin.unsqueeze(unsqueeze_dim)
        return _Rotated.apply(q, cos, sin), _Rotated.apply(k, cos, sin)


class RotatedForward:
    """The code of a `forward` with another rotation among its globals.

    The library's module keeps its own. A policy pickles with it: the copy is made again from the
    function of the library.
    """

    def __init__(self, function: Any, rotation: Rotation) -> None:
        self.function = function
        self.rotation = rotation
        self.rebound = FunctionType(
            function.__code__,
            {**function.__globals__, ROTATION: rotation},
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        self.rebound.__kwdefaults__ = function.__kwdefaults__
        self.__wrapped__ = self.rebound  # `inspect.signature` is that of the function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.rebound(*args, **kwargs)

    def __reduce__(self) -> tuple[type, tuple[Any, Rotation]]:
        return RotatedForward, (self.function, self.rotation)


@torch.no_grad()
def use_fused_ops(model: nn.Module) -> list[str]:
    """Give the parts of a decoder fused forwards, and return the names of what changed.

    Names are those of classes, and of the rotation. A part changes only if the fused forward
    computes the same bits on random numbers. Names of weights stay as they are.
    """
    changed = set()
    is_equal: dict[type, bool] = {}
    plain = plain_model(model)
    own = getattr(sys.modules[type(plain).__module__], ROTATION, None)
    rotation = Rotation(own) if own is not None and _rotates_as(own) else None
    for part in plain.get_decoder().modules():
        kind = type(part)
        if "forward" in vars(part):  # changed before
            continue
        if rotation is not None and _rotates(part):
            part.forward = MethodType(RotatedForward(kind.forward, rotation), part)
            changed.add(ROTATION)
        fused = _fused_forward(part)
        if fused is None:
            continue
        if kind not in is_equal:
            is_equal[kind] = _computes_as(part, fused)
        if is_equal[kind]:
            part.forward = MethodType(fused, part)
            changed.add(kind.__name__)
    return sorted(changed)


def remove_fused_ops(model: nn.Module) -> None:
    """Give the parts of a decoder the forwards of their classes again."""
    for part in plain_model(model).get_decoder().modules():
        function = getattr(vars(part).get("forward"), "__func__", None)
        if function in (fused_norm, fused_mlp) or isinstance(function, RotatedForward):
            del part.forward


def _fused_forward(part: nn.Module) -> Callable[..., Tensor] | None:
    if hasattr(part, "variance_epsilon") and isinstance(getattr(part, "weight", None), Tensor):
        return fused_norm
    if all(hasattr(part, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
        return fused_mlp
    return None


def _rotates(part: nn.Module) -> bool:
    """Whether the forward of a part calls the rotation of its modelling file."""
    function = type(part).forward
    return isinstance(function, FunctionType) and ROTATION in function.__code__.co_names


def _computes_as(part: nn.Module, fused: Callable[..., Tensor]) -> bool:
    is_norm = fused is fused_norm
    width = part.weight.shape[0] if is_norm else getattr(part.gate_proj, "in_features", 0)
    if not width or not all(_fits(parameter) for parameter in part.parameters()):
        return False
    x = _numbers(0, 2, 3, width)
    return torch.equal(fused(part, x), part(x))


def _rotates_as(own: Callable[..., tuple[Tensor, Tensor]]) -> bool:
    q = _numbers(0, 1, 4, 3, 8)
    k = _numbers(1, 1, 2, 3, 8)
    cos = _numbers(2, 1, 3, 8)
    sin = _numbers(3, 1, 3, 8)
    try:
        usual = own(q, k, cos, sin)
    except (TypeError, RuntimeError, ValueError):  # a rotation of another kind
        return False
    pairs = zip(usual, Rotation(own)(q, k, cos, sin), strict=False)
    return len(usual) == 2 and all(torch.equal(a, b) for a, b in pairs)


def _numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
