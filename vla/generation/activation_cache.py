"""An activation cache: outputs of linear layers from the rollout, reused in the update.

A rollout runs every token of the prefix tree through the model with the weights of the first
optimizer step. A third of an update would repeat those products. The cache stores the outputs of
the decoder's linear layers by slot, one slot for each token behind one beginning. In the update
each layer returns its stored output, with the gradient of the product. All other operations (norms,
attention, activations) run again, so log-probabilities and gradients equal those of an ordinary
pass.

Shapes: `P` packed rows, `S` tokens a row, `K` stored tokens, `d` outputs of a layer.
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
"""Room for an iteration of a small model: 2100 tokens of SmolLM2-135M."""


class _StoredLinear(torch.autograd.Function):
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
        x_grad = (grad @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        weight_grad = grad.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return x_grad, weight_grad, grad.sum(0) if ctx.has_bias else None, None


class ActivationCache:
    """Outputs of the linear layers of a model's decoder for its present weights.

    Slots are numbered consecutively over rollouts until a weight changes; then all are dropped.
    Beyond `max_bytes` a token gets slot -1 and is not stored. Several threads may record, or
    replay, at once: each its own pass.
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
        self._stored: list[list[tuple[int, Tensor]]] = []
        self._weights = -1
        self._lock = Lock()
        self._thread = local()
        self._num_replays = 0
        self.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> ActivationCache:
        """An empty cache: a copy of the policy has weights of its own."""
        return ActivationCache(memo.get(id(self.model), self.model), 0)

    def clear(self) -> None:
        """Drop everything."""
        self.first = self.next
        self._stored = [[] for _ in self.layers]
        self._full = False

    def state_dict(self) -> dict[str, Any]:
        """The stored outputs, for a process with the same weights."""
        return {
            "first": self.first,
            "next": self.next,
            "full": self._full,
            "kept": [list(k) for k in self._stored],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`, as outputs of the present weights."""
        self.first = state["first"]
        self.next = state["next"]
        self._full = state["full"]
        self._stored = [[(start, output) for start, output in outputs] for outputs in state["kept"]]
        self._weights = self._version()

    @contextmanager
    def record(self) -> Iterator[None]:
        """Within the block, passes announced by `assign_slots` are stored."""
        if self._weights != self._version():
            self.clear()
            self._weights = self._version()
        hooks = [
            layer.register_forward_hook(self._hook(outputs))
            for layer, outputs in zip(self.layers, self._stored, strict=True)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def assign_slots(
        self, rows: int, length: int, device: torch.device
    ) -> Int[Tensor, "rows length"]:
        """Slots of the tokens of this thread's next pass; -1 if there is no room for them."""
        room = self.max_bytes // max(1, sum(4 * layer.out_features for layer in self.layers))
        with self._lock:
            self._full = self._full or self.next - self.first + rows * length > room
            self._thread.start = None if self._full else self.next
            if self._full:
                return torch.full((rows, length), -1, device=device)
            start = self.next
            self.next = self.next + rows * length
        return torch.arange(start, start + rows * length, device=device).view(rows, length)

    def covers(self, places: Int[Tensor, "*B"]) -> bool:
        """True if the outputs of all these slots are stored, for the present weights."""
        stored = bool(((places >= self.first) & (places < self.next)).all())
        return stored and self._weights == self._version()

    @contextmanager
    def replay(self, places: Int[Tensor, "P S"]) -> Iterator[None]:
        """Within the block, in this thread, the layers return their stored outputs of these
        slots."""
        with self._lock:
            for layer, outputs in zip(self.layers, self._stored, strict=True):
                if len(outputs) > 1 or outputs[0][1].dim() > 2:
                    # Passes of several threads end in any order; slots are in that of the starts.
                    passes = [
                        output.flatten(0, -2) for _, output in sorted(outputs, key=itemgetter(0))
                    ]
                    outputs[:] = [(self.first, torch.cat(passes))]
                if self._num_replays == 0:
                    layer.forward = self._replaying_forward(layer, outputs[0][1])
            self._num_replays += 1
        self._thread.index = (places - self.first).flatten()
        try:
            yield
        finally:
            self._thread.index = None
            with self._lock:
                self._num_replays -= 1
                for layer in self.layers if self._num_replays == 0 else ():
                    layer.__dict__.pop("forward", None)

    def _hook(self, outputs: list[tuple[int, Tensor]]) -> Any:
        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            # A pass that was not announced has no slots.
            start = getattr(self._thread, "start", None)
            if start is not None:
                outputs.append((start, output))

        return keep

    def _replaying_forward(
        self, layer: nn.Linear, outputs: Float[Tensor, "K d"]
    ) -> Callable[[Tensor], Tensor]:
        def forward(x: Tensor) -> Tensor:
            index = getattr(self._thread, "index", None)
            if index is None:
                return nn.functional.linear(x, layer.weight, layer.bias)
            return _StoredLinear.apply(
                x, layer.weight, layer.bias, outputs[index].view(*x.shape[:-1], -1)
            )

        return forward

    def _version(self) -> int:
        """A number that grows with every change of a weight in place."""
        return sum(parameter._version for parameter in self.model.parameters())
