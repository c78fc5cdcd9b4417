"""Conversations as token ids, by the chat template that belongs to the tokenizer.

A completion stays the ids that were drawn: what follows it (a tool's answer, the next turn) is put behind as ids of
its own, and nothing is ever read back into text and tokenized again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from vla.data.messages import Message
from vla.types import Observation


@dataclass(frozen=True)
class ChatFormat:
    """How a tokenizer writes chats. `system`: a system message put before every chat (None: what the template does by
    itself). `closing`: words that stand behind the last message of every prompt.
    """

    tokenizer: Any
    system: str | None = None
    closing: str = ""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages and of the beginning of the assistant's turn."""
        if self.closing:
            last = messages[-1]
            messages = [*messages[:-1], {**last, "content": f"{last['content']} {self.closing}"}]
        return self.encode(self.render(messages, add_generation_prompt=True))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text that the template makes of the messages."""
        if self.system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        return self.tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def next_turn(self, message: Message, finished: bool) -> list[int]:
        """Ids that lead from the end of a completion through `message` to the beginning of the next completion.

        `finished`: the completion ended with its stop token; if not, the turn is closed first.
        """
        before = self.render([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}])
        both = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, message]
        after = self.render(both, add_generation_prompt=True)
        end = self.tokenizer.eos_token
        closing = before[before.rindex("y") + 1 :]
        if not after.startswith(before) or not closing.startswith(end):
            raise ValueError(
                f"the chat template cannot continue a chat after {end!r}; use a model with a ChatML template"
            )
        return self.encode(closing[len(end) if finished else 0 :] + after[len(before) :])

    def completion_text(self, ids: Sequence[int]) -> str:
        """What a completion says, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens may stand; none are added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids


def stop_ids(tokenizer: Any, model: Any) -> list[int]:
    """The ids that end a completion: the tokenizer's and those of the model's generation settings."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in (tokenizer.eos_token_id, *own) if i is not None})


def pad_prompts(
    prompts: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """(ids, mask), right-padded to `width`.

    Raises ValueError for a prompt that is longer.
    """
    longest = max(map(len, prompts))
    if longest > width:
        raise ValueError(f"a prompt takes {longest} tokens, text.max_prompt_tokens is {width}: raise it")
    tokens = torch.tensor([[*prompt, *[pad_id] * (width - len(prompt))] for prompt in prompts])
    return tokens, torch.arange(width) < torch.tensor([len(prompt) for prompt in prompts])[:, None]


def observe_prompts(prompts: Sequence[Sequence[int]], width: int, pad_id: int, device: torch.device) -> Observation:
    """The prompts as a policy sees them."""
    tokens, mask = pad_prompts(prompts, width, pad_id)
    return Observation({}, None, tokens.to(device), mask.to(device))
