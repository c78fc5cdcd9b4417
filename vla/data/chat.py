"""Conversations as token ids, by the chat template that belongs to the tokenizer.

A completion stays the ids that were drawn: what follows it (a tool's answer, the next turn) is put
behind as ids of its own, and nothing is ever read back into text and tokenized again.
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
"""Stands for what an assistant says where only the template's own words around it are looked at."""


@dataclass(frozen=True)
class ChatFormat:
    """How a tokenizer writes chats: what its template renders decides, also how a turn ends.
    `system`: a system message put before every chat (None: what the template does by itself).
    `closing`: words that stand behind the last message of every prompt.
    """

    tokenizer: Any
    system: str | None = None
    closing: str = ""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the messages and of the beginning of the assistant's turn."""
        return self.encode(self.render(self._closed(messages), add_generation_prompt=True))

    def reply(self, messages: Sequence[Message], text: str, finished: bool = True) -> list[int]:
        """Ids of what the assistant says behind a prompt, up to the token that ends its turn;
        without that token where the answer was cut (`finished` False).

        Raises ValueError for a template that writes a given answer in another way than it asks for
        one.
        """
        messages = self._closed(messages)
        asked = self.render(messages, add_generation_prompt=True)
        whole = self.render([*messages, {"role": "assistant", "content": text}])
        return self.turn(asked, whole, finished)

    def turn(self, asked: str, whole: str, finished: bool = True) -> list[int]:
        """Ids of the assistant's turn with which the rendered chat `whole` goes on behind `asked`;
        see `reply`."""
        if not whole.startswith(asked):
            raise ValueError(
                "the chat template does not write a given answer behind the words with which it "
                "asks for one"
                f" ({asked[-20:]!r}): choose a model whose template does"
            )
        ids = self.encode(whole[len(asked) :])
        if self.turn_end in ids:
            ids = ids[: len(ids) - 1 - ids[::-1].index(self.turn_end)]
        return [*ids, self.turn_end] if finished else ids

    @cached_property
    def turn_end(self) -> int:
        """The token that ends a turn: the first special one that the template puts behind an
        assistant's words; the tokenizer's own where there is none.

        Raises ValueError where there is neither.
        """
        special = {*self.tokenizer.all_special_ids}
        special |= {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        end = next(
            (i for i in self.encode(self._behind_an_answer) if i in special),
            self.tokenizer.eos_token_id,
        )
        if end is None:
            raise ValueError(
                "the tokenizer has no eos_token, and its chat template ends a turn with no "
                "special token"
            )
        return end

    @cached_property
    def _behind_an_answer(self) -> str:
        answered = self.render([*user_message("x"), {"role": "assistant", "content": PLACEHOLDER}])
        return answered[answered.rindex(PLACEHOLDER) + len(PLACEHOLDER) :]

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The text that the template makes of the messages.

        Raises ValueError for messages that the template refuses, and for a system message that it
        leaves out.
        """
        own = self.system is not None and messages[0]["role"] != "system"
        if own:
            messages = [{"role": "system", "content": str(self.system)}, *messages]
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            if messages[0]["role"] == "system":
                raise ValueError(f"{_no_system(own)} ({error})") from None
            raise ValueError(f"the chat template refuses these messages: {error}") from None
        if messages[0]["role"] == "system" and messages[0]["content"].strip() not in text:
            raise ValueError(f"{_no_system(own)} (it leaves the message out)")
        return text

    def next_turn(self, message: Message, finished: bool) -> list[int]:
        """Ids that lead from the end of a completion through `message` to the beginning of the next
        completion.

        `finished`: the completion ended with its stop token; if not, the turn is closed first.
        """
        answered = [*user_message("x"), {"role": "assistant", "content": PLACEHOLDER}]
        before = self.render(answered)
        end = self.tokenizer.decode([self.turn_end])
        after = self.render([*answered, message], add_generation_prompt=True)
        closing = self._behind_an_answer
        if not after.startswith(before) or end not in closing:
            raise ValueError(
                f"the chat template cannot continue a chat after {end!r}; use a model with a "
                "ChatML template"
            )
        if finished:
            closing = closing[closing.index(end) + len(end) :]
        return self.encode(closing + after[len(before) :])

    def plain_text(self, text: str) -> list[int]:
        """Ids of a text that is no chat: with the beginning that the tokenizer gives texts, and its
        end."""
        ids = list(self.tokenizer(text).input_ids)
        if (
            len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id
        ):  # the text names it, too
            del ids[0]
        end = self.tokenizer.eos_token_id
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    def _closed(self, messages: Sequence[Message]) -> Sequence[Message]:
        if not self.closing:
            return messages
        last = messages[-1]
        return [*messages[:-1], {**last, "content": f"{last['content']} {self.closing}"}]

    def completion_text(self, ids: Sequence[int]) -> str:
        """What a completion says, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which special tokens may stand; none are added."""
        return self.tokenizer(text, add_special_tokens=False).input_ids


def _no_system(own: bool) -> str:
    where = (
        "text.system, text.generation.system or text.tool gives one: set it to null"
        if own
        else "this is one"
    )
    return f"the model's chat template has no system messages, and {where}, and put its words into the user's message"


def stop_ids(tokenizer: Any, model: Any) -> list[int]:
    """The ids that end a completion: the tokenizer's, those of the model's generation settings, and
    the one with which the chat template ends a turn.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = configured if isinstance(configured, list) else [configured]
    turn_end = ChatFormat(tokenizer).turn_end if tokenizer.chat_template else None
    return sorted({i for i in (tokenizer.eos_token_id, turn_end, *own) if i is not None})


def pad_prompts(
    prompts: Sequence[Sequence[int]], width: int, pad_id: int
) -> tuple[Int[Tensor, "B n"], Bool[Tensor, "B n"]]:
    """(ids, mask), right-padded to `width`.

    Raises ValueError for a prompt that is longer.
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
    """The prompts as a policy sees them."""
    tokens, mask = pad_prompts(prompts, width, pad_id)
    return Observation({}, None, tokens.to(device), mask.to(device))
