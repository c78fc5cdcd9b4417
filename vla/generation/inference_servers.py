"""Routes of the inference servers vLLM and SGLang: drawing of tokens, and loading of weights.

Checked against the packages vllm 0.33.0 and sglang 0.5.23.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from vla.generation.http_client import HttpClient, RequestRefused

NOT_FOUND = 404


@dataclass(frozen=True)
class SamplingRequest:
    """Sampling of completions without filters; temperature 0 takes the likeliest token."""

    temperature: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """Drawn tokens, the stop token included, and the log-probability of each draw (nats)."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@runtime_checkable
class InferenceServer(Protocol):
    """A server that draws tokens, and takes new weights while it runs."""

    name: str
    client: HttpClient

    def draw(
        self, prompts: Sequence[Sequence[int]], request: SamplingRequest
    ) -> list[Completion | None]:
        """A completion of each prompt; None where the answer has none, or an incomplete one."""
        ...

    def weight_version(self) -> str:
        """The version that the last `load_folder` gave the weights, or a default of the server."""
        ...

    def load_folder(self, folder: str, version: str) -> None:
        """Replace the weights by those of a folder of transformers that the server can read."""
        ...


class VllmServer:
    """`vllm serve` with `VLLM_SERVER_DEV_MODE=1`, which adds the routes of weight updates.

    Token ids go in and come out of `/v1/completions`. Log-probabilities are those of the draw if
    the server runs with `--logprobs-mode processed_logprobs`.
    """

    name = "vllm"

    def __init__(self, client: HttpClient) -> None:
        self.client = client

    def draw(
        self, prompts: Sequence[Sequence[int]], request: SamplingRequest
    ) -> list[Completion | None]:
        body = {
            "prompt": [list(prompt) for prompt in prompts],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "stop_token_ids": list(request.stop_ids),
            # A folder's generation_config.json may set these; the policy's distribution has none.
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            # The policy's own stop tokens decide.
            "ignore_eos": True,
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        answer = self.client.post("/v1/completions", body)
        found: list[Completion | None] = [None] * len(prompts)
        for choice in _list(answer.get("choices")):
            index = choice.get("index")
            if isinstance(index, int) and 0 <= index < len(found):
                logprobs = choice.get("logprobs") or {}
                found[index] = make_completion(
                    choice.get("token_ids"),
                    logprobs.get("token_logprobs"),
                    choice.get("finish_reason"),
                    request,
                )
        return found

    def weight_version(self) -> str:
        try:
            return str(self.client.get("/weight_info").get("weight_version"))
        except RequestRefused as error:
            if error.status != NOT_FOUND:
                raise
            raise ValueError(
                f"the server at {self.client.url} has no route /weight_info: start it with "
                "VLLM_SERVER_DEV_MODE=1 in its environment, and a vllm of version 0.33 or later"
            ) from None

    def load_folder(self, folder: str, version: str) -> None:
        self.client.post(
            "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        )
        self.finish_loading(version)

    def finish_loading(self, version: str) -> None:
        """Forget activations of the earlier weights, and name the new ones."""
        self.client.post("/reset_prefix_cache", {})
        self.client.post("/update_weight_version", {"new_version": version})


class SglangServer:
    """`python -m sglang.launch_server`: token ids go in and come out of `/generate`."""

    name = "sglang"

    def __init__(self, client: HttpClient) -> None:
        self.client = client

    def draw(
        self, prompts: Sequence[Sequence[int]], request: SamplingRequest
    ) -> list[Completion | None]:
        sampling = {
            "temperature": request.temperature,
            "max_new_tokens": request.max_new_tokens,
            "stop_token_ids": list(request.stop_ids),
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "ignore_eos": True,
            "skip_special_tokens": False,
        }
        body = {
            "input_ids": [list(prompt) for prompt in prompts],
            "sampling_params": sampling,
            "return_logprob": True,
        }
        found: list[Completion | None] = [None] * len(prompts)
        answers = self.client.post_batch("/generate", body)
        for index, answer in enumerate(answers[: len(prompts)]):
            info = answer.get("meta_info") or {}
            draws = _draws(info.get("output_token_logprobs"))
            finish = info.get("finish_reason") or {}
            kind = finish.get("type") if isinstance(finish, Mapping) else finish
            ids, values = [draw[1] for draw in draws], [draw[0] for draw in draws]
            found[index] = make_completion(ids, values, kind, request)
        return found

    def weight_version(self) -> str:
        return str(self.client.get("/model_info").get("weight_version"))

    def load_folder(self, folder: str, version: str) -> None:
        answer = self.client.post(
            "/update_weights_from_disk",
            {"model_path": folder, "weight_version": version, "flush_cache": True},
        )
        if not answer.get("success", True):
            raise ValueError(
                f"the server at {self.client.url} did not load {folder}: {answer.get('message')}"
            )


SERVERS: Mapping[Literal["vllm", "sglang"], type[VllmServer] | type[SglangServer]] = {
    "vllm": VllmServer,
    "sglang": SglangServer,
}


def make_completion(
    tokens: object, logprobs: object, finish_reason: object, request: SamplingRequest
) -> Completion | None:
    """A completion from a server's lists; None if it is incomplete.

    A completion is complete if it has a finite log-probability for every token, and ends with a
    stop token or has `max_new_tokens` tokens. An aborted one is neither.
    """
    if not (isinstance(tokens, list) and isinstance(logprobs, list) and tokens):
        return None
    finite = all(isinstance(value, int | float) and math.isfinite(value) for value in logprobs)
    if finish_reason == "abort" or len(tokens) != len(logprobs) or not finite:
        return None
    length = min(len(tokens), request.max_new_tokens)
    for place, token in enumerate(tokens[:length]):
        if token in request.stop_ids:
            length = place + 1
            break
    else:
        if length < request.max_new_tokens:
            return None
    return Completion(tuple(tokens[:length]), tuple(float(value) for value in logprobs[:length]))


def _list(value: object) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _draws(value: object) -> list[Sequence[Any]]:
    """SGLang's [log-probability, token id, text] of every draw."""
    entries = value if isinstance(value, list) else []
    pair = 2
    return [entry for entry in entries if isinstance(entry, list) and len(entry) >= pair]
