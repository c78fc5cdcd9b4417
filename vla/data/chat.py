"""Conversations as token ids, by the tokenizer's own chat template.

A completion keeps the ids that were sampled. Later turns are appended as ids. Nothing is decoded
and tokenized a second time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from jinja2 import TemplateError
from torch import Tensor

from vla.data.messages import Message, user_message
from vla.types import Observation

PLACEHOLDER = "8f3a"
"""Placeholder for an assistant's text where only the template's text around it matters."""


@dataclass(frozen=True)
class ChatFormat:
    """The chat format of a tokenizer, defined by its template; the template also defines the end of
    a turn.

    `system` is a system message before every chat; None keeps the template's default. `closing` is
    text appended to the last message of every prompt.
    """

    tokenizer: Any
    system: str | None = None
    closing: str = ""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages and of the start of the assistant's turn."""
        return self.encode(self.render(self._closed(messages), add_generation_prompt=True))

    def reply(self, messages: Sequence[Message], text: str, finished: bool = True) -> list[int]:
        """Ids of the assistant's turn `text` after a prompt, up to its end-of-turn token.

        Where the answer was cut (`finished` False) the end-of-turn token is left out. Raises
        ValueError where the template renders a complete chat differently from a prompt.
        """
        messages = self._closed(messages)
        prompt = self.render(messages, add_generation_prompt=True)
        whole = self.render([*messages, {"role": "assistant", "content": text}])
        return self.turn(prompt, whole, finished)

    def turn(self, prompt: str, whole: str, finished: bool = True) -> list[int]:
        """Ids of the assistant's turn in the rendered chat `whole` after the rendered `prompt`; see
        `reply`."""
        if not whole.startswith(prompt):
            raise ValueError(
                "the chat template renders a complete chat differently from the prompt "
                "of its last turn"
                f" ({prompt[-20:]!r}): choose a model whose template extends the prompt"
            )
        ids = self.encode(whole[len(prompt) :])
        if self.turn_end in ids:
            ids = ids[: len(ids) - 1 - ids[::-1].index(self.turn_end)]
        return [*ids, self.turn_end] if finished else ids

    @cached_property
    def turn_end(self) -> int:
        """The end-of-turn token.

        It is the first special token that the template puts after an assistant's text, or else the
        tokenizer's eos_token. Raises ValueError where there is neither.
        """
        special = {*self.tokenizer.all_special_ids}
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        end = next(
            (i for i in self.encode(self._after_assistant_text) if i in special),
            self.tokenizer.eos_token_id,
        )
        if end is None:
            raise ValueError(
                "the tokenizer has no eos_token, and its chat template ends a turn with no "
                "special token"
            )
        return end

    @cached_property
    def _after_assistant_text(self) -> str:
        answered = self.render([*user_message("x"), {"role": "assistant", "content": PLACEHOLDER}])
        return answered[answered.rindex(PLACEHOLDER) + len(PLACEHOLDER) :]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text of the messages by the template.

        Raises ValueError for messages that the template refuses, and for a system message that it
        ignores.
        """
        from_settings = self.system is not None and messages[0]["role"] != "system"
        if from_settings:
            messages = [{"role": "system", "content": str(self.system)}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            if messages[0]["role"] == "system":
                raise ValueError(f"{_system_message_error(from_settings)} ({error})") from None
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        if messages[0]["role"] == "system" and messages[0]["content"].strip() not in text:
            raise ValueError(f"{_system_message_error(from_settings)} (it ignores the message)")
        return text

    def next_turn(self, message: Message, finished: bool) -> list[int]:
        """Ids from the end of a completion through `message` to the start of the next completion.

        `finished`: the completion ended with its stop token; if not, the turn is closed first.
        Raises ValueError where the template cannot continue a chat.
        """
        answered = [*user_message("x"), {"role": "assistant", "content": PLACEHOLDER}]
        before = self.render(answered)
        end = self.tokenizer.decode([self.turn_end])
        after = self.render([*answered, message], add_generation_prompt=True)
        closing = self._after_assistant_text
        if not after.startswith(before) or end not in closing:
            raise ValueError(
                f"the chat template cannot continue a chat after {end!r}; use a model with a "
                "ChatML template"
            )
        if finished:
            closing = closing[closing.index(end) + len(end) :]
        return self.encode(closing + after[len(before) :])

    def plain_text(self, text: str) -> list[int]:
        """Ids of a text that is no chat, with the tokenizer's start tokens and its end token."""
        ids = list(self.tokenizer(text).input_ids)
        # The text itself may begin with the start token that the tokenizer adds.
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id:
            del ids[0]
        end = self.tokenizer.eos_token_id
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _closed(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self.closing:
            return messages
        last = messages[-1]
        return [*messages[:-1], {**last, "content": f"{last['content']} {self.closing}"}]

    def completion_text(self, ids: Sequence[int]) -> str:
        """The text of a completion, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text that may contain special tokens; none are added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _system_message_error(from_settings: bool) -> str:
    where = (
        "text.system, text.generation.system or text.tool gives one: set it to null"
        if from_settings
        else "this is one"
    )
    return (
        f"the model's chat template has no system messages, and {where}, and put its words into "
        "the user's message"
    )


def stop_ids(tokenizer: Any, model: Any) -> list[int]:
    """The ids that end a completion: of the tokenizer, of the model's generation settings, and of
    the chat template's end of turn."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = configured if isinstance(configured, list) else [configured]
    turn_end = ChatFormat(tokenizer).turn_end if tokenizer.chat_template else None
    return sorted({i for i in (tokenizer.eos_token_id, turn_end, *own) if i is not None})


def pad_prompts(
    prompts: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """Prompts right-padded to `width`, as (ids, mask).

    Raises ValueError for a prompt longer than `width`.
    """
    longest = max(map(len, prompts))
    if longest > width:
        raise ValueError(
            f"a prompt takes {longest} tokens, text.max_prompt_tokens is {width}: raise it"
        )
    tokens = torch.tensor([[*prompt, *[pad_id] * (width - len(prompt))] for prompt in prompts])
    return tokens, torch.arange(width) < torch.tensor([len(prompt) for prompt in prompts])[:, None]


def observe_prompts(
    prompts: Sequence[Sequence[int]], width: int, pad_id: int, device: torch.device
) -> Observation:
    """The observation of a batch of prompts: tokens [B, width] and their mask, without images and
    state."""
    tokens, mask = pad_prompts(prompts, width, pad_id)
    return Observation({}, None, tokens.to(device), mask.to(device))
