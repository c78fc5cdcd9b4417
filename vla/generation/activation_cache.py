"""What the linear layers gave in a rollout, kept for the update, which then has only its backward
pass to compute.

A rollout has already sent every token of the token tree through the model, with the weights that
the first optimizer step starts from. A third of an update would repeat those products. The outputs
of the decoder's linear layers are kept instead, by place (one token behind one beginning); in the
update each layer hands out what it gave and has the gradient of the product it stands for.
Everything between linear layers (norms, attention, activations) is computed again, so
log-probabilities and gradients are those of an ordinary pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from threading import Lock, local
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.models.loading import plain_model

DEFAULT_BYTES = 5 * 2**28
"""For the tokens of an iteration of a small model: 2100 of SmolLM2-135M."""


class _Given(torch.autograd.Function):
    """`output` as the value of x W^T + b, with the gradient of that product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return output

    @staticmethod
    def backward(
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        of_x = (grad @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        of_weight = grad.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, grad.sum(0) if ctx.has_bias else None, None


class ActivationCache:
    """Outputs of the linear layers of a model's decoder, `max_bytes` of them at most, for its
    present weights.

    Places are numbered on, over rollouts, until a weight changes: then all are forgotten. Beyond
    `max_bytes` a place has the number -1. Several threads may keep, or be given, at once: each its
    own pass.
    """

    def __init__(self, model: nn.Module, max_bytes: int) -> None:
        self.model = model
        self.max_bytes = max_bytes
        self.layers = [
            part
            for part in plain_model(model).get_decoder().modules()
            if isinstance(part, nn.Linear)
        ]
        self.first = self.next = 0
        self._kept: list[list[tuple[int, Tensor]]] = []
        self._weights = -1
        self._lock = Lock()
        self._mine = local()
        self._givers = 0
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> ActivationCache:
        """A copy of the policy has weights of its own, and nothing to recall."""
        return ActivationCache(memo.get(id(self.model), self.model), 0)

    def clear(self) -> None:
        """Let go of everything."""
        self.first = self.next
        self._kept = [[] for _ in self.layers]
        self._full = False

    def state_dict(self) -> dict[str, Any]:
        """What is kept, for another process that has the same weights."""
        return {
            "first": self.first,
            "next": self.next,
            "full": self._full,
            "kept": [list(k) for k in self._kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first = state["first"]
        self.next = state["next"]
        self._full = state["full"]
        self._kept = [[(start, output) for start, output in kept] for kept in state["kept"]]
        self._weights = self._version()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Within the block, passes announced by `number` are kept."""
        if self._weights != self._version():
            self.clear()
            self._weights = self._version()
        hooks = [
            layer.register_forward_hook(self._hook(kept))
            for layer, kept in zip(self.layers, self._kept, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def assign_slots(
        self, rows: int, length: int, device: torch.device
    ) -> Int[Tensor, "rows length"]:
        """Numbers of the places of this thread's pass that follows, -1 where there is no room for
        them."""
        room = self.max_bytes // max(1, sum(4 * layer.out_features for layer in self.layers))
        with self._lock:
            self._full = self._full or self.next - self.first + rows * length > room
            self._mine.start = None if self._full else self.next
            if self._full:
                return torch.full((rows, length), -1, device=device)
            start = self.next
            self.next = self.next + rows * length
        return torch.arange(start, start + rows * length, device=device).view(rows, length)

    def covers(self, places: Int[Tensor, "*B"]) -> bool:
        """Whether the outputs at all these places are there, and are those of the present
        weights."""
        known = bool(((places >= self.first) & (places < self.next)).all())
        return known and self._weights == self._version()

    @contextmanager
    def replay(self, places: Int[Tensor, "P S"]) -> Iterator[None]:
        """Within the block the layers hand out what they gave at these places, in this thread."""
        with self._lock:
            for layer, kept in zip(self.layers, self._kept, strict=True):
                if (
                    len(kept) > 1 or kept[0][1].dim() > 2
                ):  # passes end in any order where several threads draw
                    passes = [
                        output.flatten(0, -2) for _, output in sorted(kept, key=itemgetter(0))
                    ]
                    kept[:] = [(self.first, torch.cat(passes))]
                if self._givers == 0:
                    layer.forward = self._hand_out(layer, kept[0][1])
            self._givers += 1
        self._mine.index = (places - self.first).flatten()
        try:
            yield
        finally:
            self._mine.index = None
            with self._lock:
                self._givers -= 1
                for layer in self.layers if self._givers == 0 else ():
                    layer.__dict__.pop("forward", None)

    def _hook(self, kept: list[tuple[int, Tensor]]) -> Any:
        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            start = getattr(self._mine, "start", None)  # a thread that announced no pass keeps none
            if start is not None:
                kept.append((start, output))

        return keep

    def _hand_out(self, layer: nn.Linear, kept: Float[Tensor, "K d"]) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            index = getattr(self._mine, "index", None)
            if index is None:
                return nn.functional.linear(x, layer.weight, layer.bias)
            return _Given.apply(x, layer.weight, layer.bias, kept[index].view(*x.shape[:-1], -1))

        return forward

    def _version(self) -> int:
        """Grows with every change of a weight in place."""
        return sum(parameter._version for parameter in self.model.parameters())
