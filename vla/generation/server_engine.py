"""A generation engine behind HTTP: draws of a server that holds a copy of the model's weights."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from vla.generation.generate import Generation
from vla.generation.http_client import RequestRefused, ServerUnavailable
from vla.generation.inference_servers import Completion, InferenceServer, SamplingRequest
from vla.generation.sampling import Sampling
from vla.generation.weight_transfer import WeightTransfer

PROMPTS_PER_REQUEST = 32
NUM_PARALLEL_REQUESTS = 16
"""512 prompts in flight, more than a server draws at once."""
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0
MAX_INCOMPLETE = 5
"""Times that a prompt is sent again after an answer without a complete completion of it."""
MAX_REPLACED = 5
"""Times that draws are made again because the server's weights were replaced meanwhile."""

logger = logging.getLogger(__name__)


class ServerEngine:
    """The engine of `language_model.engine`: it pushes changed weights, then asks for completions.

    A server that does not answer is asked again for up to `patience_seconds`. One that was started
    again, or got the weights of another run, gets the present weights again before it draws. A
    prompt without a complete completion is sent again. `num_pushes` and `num_repeated` count
    transfers of weights and prompts that were sent again.

    Raises:
        ValueError: in a call, the server is unreachable for too long, refuses a request, answers
            incompletely every time, or `sampling` has filters, whose support servers do not report.
    """

    def __init__(
        self,
        model: nn.Module,
        server: InferenceServer,
        transfer: WeightTransfer,
        patience_seconds: float,
    ) -> None:
        self.model, self.server, self.transfer = model, server, transfer
        self.patience_seconds = patience_seconds
        self.num_pushes = self.num_repeated = 0
        self._run = uuid.uuid4().hex[:12]
        self._pushed: tuple[tuple[int, int], ...] | None = None

    @property
    def version(self) -> str:
        """The name of the weights that were pushed last; no other run gives the same."""
        return f"{self._run}-{self.num_pushes}"

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
        """Continue prompts as `Engine`, all in flight at once."""
        if sampling.filters:
            raise ValueError(
                f"language_model.engine={self.server.name} draws without filters: set top_k "
                f"({sampling.top_k}) to 0 and top_p ({sampling.top_p}) to 1, or "
                "language_model.engine=own"
            )
        lengths = mask.sum(1).tolist()
        prompts = [row[:n] for row, n in zip(tokens.tolist(), lengths, strict=True)]
        request = SamplingRequest(
            0.0 if greedy else sampling.temperature, max_new_tokens, tuple(stop_ids)
        )
        for _ in range(MAX_REPLACED):
            self.push_weights()
            completions = self._draw_all(prompts, request)
            if self._patiently(self.server.weight_version) == self.version:
                return make_generation(completions, max_new_tokens, pad_id, tokens.device)
            logger.warning(
                "%s was started again or got other weights while it drew: its %d completions are "
                "drawn again",
                self.server.client.url,
                len(completions),
            )
        raise ValueError(
            f"language_model.engine_url ({self.server.client.url}): the server's weights were "
            f"replaced {MAX_REPLACED} times while it drew; does another run use this server?"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> ServerEngine:
        """The engine itself: a frozen copy of a policy only scores, so it shares the engine."""
        return self

    def push_weights(self) -> None:
        """Hand over the weights if they have changed, or if the server no longer has them."""
        state = tuple((p.data_ptr(), p._version) for p in self.model.parameters())
        if self._pushed == state and self._patiently(self.server.weight_version) == self.version:
            return
        self.num_pushes += 1
        self._patiently(lambda: self.transfer.push(self.model, self.version))
        self._pushed = state

    def _draw_all(
        self, prompts: Sequence[Sequence[int]], request: SamplingRequest
    ) -> list[Completion]:
        parts = [
            prompts[start : start + PROMPTS_PER_REQUEST]
            for start in range(0, len(prompts), PROMPTS_PER_REQUEST)
        ]
        with ThreadPoolExecutor(NUM_PARALLEL_REQUESTS) as pool:
            drawn = pool.map(lambda part: self._draw_part(part, request), parts)
            return [completion for part in drawn for completion in part]

    def _draw_part(
        self, prompts: Sequence[Sequence[int]], request: SamplingRequest
    ) -> list[Completion]:
        """A completion of each prompt; prompts without one are sent again."""
        found: dict[int, Completion] = {}
        for attempt in range(1 + MAX_INCOMPLETE):
            missing = [place for place in range(len(prompts)) if place not in found]
            if attempt:
                self.num_repeated += len(missing)
            part = [prompts[place] for place in missing]
            answers = self._patiently(lambda part=part: self.server.draw(part, request))
            found |= {
                place: answer
                for place, answer in zip(missing, answers, strict=True)
                if answer is not None
            }
            if len(found) == len(prompts):
                return [found[place] for place in range(len(prompts))]
        raise ValueError(
            f"language_model.engine_url ({self.server.client.url}): {len(prompts) - len(found)} of "
            f"{len(prompts)} prompts got no complete completion in {1 + MAX_INCOMPLETE} answers. A "
            "complete one has token ids and finite log-probabilities, and ends with a stop token "
            f"or has {request.max_new_tokens} tokens: is the server's context long enough?"
        )

    def _patiently[T](self, ask: Callable[[], T]) -> T:
        """The result of `ask`, which is called again with growing pauses while the server does not
        answer."""
        start, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return ask()
            except ServerUnavailable as error:
                waited = time.monotonic() - start
                if waited + pause > self.patience_seconds:
                    raise ValueError(
                        f"language_model.engine_url ({self.server.client.url}): no answer for "
                        f"{waited:.0f} s ({error}): start the server, or raise "
                        f"language_model.engine_timeout ({self.patience_seconds:g} s)"
                    ) from None
                if pause == FIRST_PAUSE_SECONDS:
                    logger.warning("%s: %s; asked again", self.server.client.url, error)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            except RequestRefused as error:
                raise ValueError(
                    f"language_model.engine_url ({self.server.client.url}): the server refuses: "
                    f"{error}"
                ) from None


def make_generation(
    completions: Sequence[Completion], length: int, pad_id: int, device: torch.device
) -> Generation:
    """Completions as right-padded tensors [B, length]."""
    tokens = torch.full((len(completions), length), pad_id)
    mask = torch.zeros(len(completions), length, dtype=torch.bool)
    logprobs = torch.zeros(len(completions), length)
    for row, completion in enumerate(completions):
        size = len(completion.tokens)
        tokens[row, :size] = torch.tensor(completion.tokens)
        mask[row, :size] = True
        logprobs[row, :size] = torch.tensor(completion.logprobs)
    return Generation(tokens.to(device), mask.to(device), logprobs.to(device), None, None)
