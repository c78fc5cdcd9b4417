"""Who draws the tokens: our own generation on the training model, or vLLM on a copy of it that is
kept the same."""

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
    """Continues right-padded prompts until a stop token or `max_new_tokens`, by the present weights
    of the model."""

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
    """vLLM in this process on a copy of `model`, whose folder or hub name is `source`; the weights
    are handed over whenever they have changed.

    Its log-probabilities come from other kernels than those of the update, so `rl.importance_cap`
    must correct for the gap. Raises ValueError without vLLM, for filters (what they left is not
    told), and for a model with adapters.
    """

    def __init__(self, model: nn.Module, source: str) -> None:
        if hasattr(model, "get_base_model"):
            raise ValueError(
                "language_model.engine=vllm does not take adapters: set language_model.lora=null"
            )
        os.environ.setdefault(
            "VLLM_ENABLE_V1_MULTIPROCESSING", "0"
        )  # its model must be within reach
        try:
            import vllm
        except ImportError as error:
            raise ValueError(
                "language_model.engine=vllm needs the package vllm, which is not installed: `pip install vllm` on a"
                " machine with a GPU, or language_model.engine=own"
            ) from error
        self.model = model
        self._vllm = vllm
        self._llm = vllm.LLM(
            model=source, logprobs_mode="processed_logprobs", gpu_memory_utilization=0.4
        )
        self._handed_over = self._version()

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
        """As `Engine`; one request a row, equal prompts share vLLM's prefix cache."""
        if sampling.filters:
            raise ValueError(
                f"language_model.engine=vllm draws without filters: set top_k ({sampling.top_k}) to 0 and top_p"
                f" ({sampling.top_p}) to 1, or language_model.engine=own"
            )
        self._hand_over()
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
        said = [
            output.outputs[0] for output in self._llm.generate(prompts, settings, use_tqdm=False)
        ]
        return make_generation(
            [(list(s.token_ids), s.logprobs) for s in said], max_new_tokens, pad_id, tokens.device
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> VllmEngine:
        """A frozen copy of a policy only scores: it shares the engine."""
        return self

    def _version(self) -> int:
        """Grows with every change of a weight in place."""
        return sum(parameter._version for parameter in self.model.parameters())

    def _hand_over(self) -> None:
        if self._version() == self._handed_over:
            return
        worker: Any = self._llm.llm_engine.model_executor.driver_worker
        worker.model_runner.model.load_weights(self.model.state_dict().items())
        self._llm.reset_prefix_cache()
        self._handed_over = self._version()


def make_generation(
    said: Sequence[tuple[list[int], Sequence[Any]]], length: int, pad_id: int, device: torch.device
) -> Generation:
    """Token ids with {id: log-probability} of each draw, as a generation."""
    tokens = torch.full((len(said), length), pad_id)
    mask = torch.zeros(len(said), length, dtype=torch.bool)
    logprobs = torch.zeros(len(said), length)
    for row, (ids, own) in enumerate(said):
        tokens[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = True
        chosen = [draw[token].logprob for token, draw in zip(ids, own, strict=True)]
        logprobs[row, : len(ids)] = torch.tensor(chosen)
    return Generation(tokens.to(device), mask.to(device), logprobs.to(device), None, None)
