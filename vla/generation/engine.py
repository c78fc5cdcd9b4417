"""Generation engines: the protocol, and vLLM on a synchronised copy of the training model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from vla.generation.generate import Generation
from vla.generation.sampling import Sampling


@runtime_checkable
class Engine(Protocol):
    """A function that continues right-padded prompts until a stop token or `max_new_tokens`, with
    the model's present weights."""

    def __call__(
        self,
        tokens: Int[Tensor, "B n"],
        mask: Bool[Tensor, "B n"],
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        greedy: bool,
    ) -> Generation: ...


class VllmEngine:
    """vLLM in this process on a copy of `model`; `source` is its folder or hub name.

    The weights are copied over whenever they have changed. The log-probabilities come from other
    kernels than those of the update, so `rl.importance_cap` must correct for the gap.

    Raises:
        ValueError: vLLM is not installed, the model has adapters, or (in a call) `sampling` has
            filters, whose support vLLM does not report.
    """

    def __init__(self, model: nn.Module, source: str) -> None:
        if hasattr(model, "get_base_model"):
            raise ValueError(
                "language_model.engine=vllm does not take adapters: set language_model.lora=null"
            )
        # In this process, so that its weights can be set.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            import vllm
        except ImportError as error:
            raise ValueError(
                "language_model.engine=vllm needs the package vllm, which is not installed: "
                "`pip install vllm` on a machine with a GPU, or set language_model.engine=own"
            ) from error
        self.model = model
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=source, logprobs_mode="processed_logprobs", gpu_memory_utilization=0.4
        )
        self._copied_version = self._version()

    def __call__(
        self,
        tokens: Int[Tensor, "B n"],
        mask: Bool[Tensor, "B n"],
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        greedy: bool,
    ) -> Generation:
        """Continue prompts as `Engine`; one request a row, equal prompts share vLLM's prefix
        cache."""
        if sampling.filters:
            raise ValueError(
                f"language_model.engine=vllm draws without filters: set top_k "
                f"({sampling.top_k}) to 0 and top_p ({sampling.top_p}) to 1, or "
                "language_model.engine=own"
            )
        self._copy_weights()
        settings = self._vllm.SamplingParams(
            temperature=0.0 if greedy else sampling.temperature,
            max_tokens=max_new_tokens,
            logprobs=0,
            stop_token_ids=list(stop_ids),
            detokenize=False,
            seed=None,
        )
        lengths = mask.sum(1).tolist()
        prompts = [
            {"prompt_token_ids": row[:n]} for row, n in zip(tokens.tolist(), lengths, strict=True)
        ]
        completions = [
            output.outputs[0] for output in self._llm.generate(prompts, settings, use_tqdm=False)
        ]
        return make_generation(
            [(list(s.token_ids), s.logprobs) for s in completions],
            max_new_tokens,
            pad_id,
            tokens.device,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> VllmEngine:
        """The engine itself: a frozen copy of a policy only scores, so it shares the engine."""
        return self

    def _version(self) -> int:
        """A number that grows with every change of a weight in place."""
        return sum(parameter._version for parameter in self.model.parameters())

    def _copy_weights(self) -> None:
        if self._version() == self._copied_version:
            return
        worker: Any = self._llm.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights(self.model.state_dict().items())
        self._llm.reset_prefix_cache()
        self._copied_version = self._version()


def make_generation(
    completions: Sequence[tuple[list[int], Sequence[Any]]],
    length: int,
    pad_id: int,
    device: torch.device,
) -> Generation:
    """A generation from token ids and {id: log-probability} of each draw."""
    tokens = torch.full((len(completions), length), pad_id)
    mask = torch.zeros(len(completions), length, dtype=torch.bool)
    logprobs = torch.zeros(len(completions), length)
    for row, (ids, own) in enumerate(completions):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
        chosen = [draw[token].logprob for token, draw in zip(ids, own, strict=True)]
        logprobs[row, : len(ids)] = torch.tensor(chosen)
    return Generation(tokens.to(device), mask.to(device), logprobs.to(device), None, None)
