"""A vision-language model: images, proprioception and text in one sequence of a causal language
model.

The sequence is `[prefix | text | queries]`. The prefix (image patches of every camera, one
proprioception token) attends to itself in both directions and to nothing else, so it can be
computed once and shared by several texts (PaliGemma's prefix, without the text in it). Text is
causal and attends to the prefix. Queries attend to the prefix, the text and each other (parallel
decoding as in OpenVLA-OFT).

Images and state may also stand anywhere in the text (PaLM-E's multimodal sentences): a token -1 - k
is no word but token k of the prefix. A text with such slots has no prefix before it.

Shapes: `B` rows, `P` prefix tokens, `p` image tokens, `n` text tokens, `q` queries, `T` tokens of
the whole sequence, `s` numbers of proprioception, `a` numbers of a plan, `c` places, `m` tokens of
an answer, `d` hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from vla.devices import constant, to_device
from vla.models.action_queries import ActionQueries
from vla.models.backbone import Backbone, join_tokens
from vla.models.pretrained_vlm import PretrainedVision
from vla.models.projector import mlp_projector
from vla.models.token_layout import FLAT, PrefixLayout
from vla.models.vision import VisionEncoder
from vla.models.vocabulary import NUM_ACTION_IDS, NUM_LOCATIONS, action_ids, location_ids
from vla.types import Observation

MIN_PROPRIO_STD = 1e-3
"""Floor of the standard deviation of a proprioceptive number: noise of a joint that hardly moved
must not be amplified."""


def attention_mask(
    num_prefix: int,
    text_mask: Bool[Tensor, "B n"],
    num_queries: int = 0,
    segments: Int[Tensor, "B n"] | None = None,
    instruction_mask: Bool[Tensor, "B n"] | None = None,
    layout: PrefixLayout | None = None,
    prompt: Bool[Tensor, "B n"] | None = None,
) -> Bool[Tensor, "B T T"]:
    """The attention mask of `[prefix | text | queries]`: True where token i attends to token j.

    With `segments`, text tokens attend within their segment only: several questions share one
    prefix. Queries attend to the text of `instruction_mask` (None: `text_mask`). The prefix attends
    to itself as its `layout` says (None: in both directions). Where that is the whole prompt
    (PaliGemma), `prompt` marks the text in it.
    """
    batch, length = text_mask.shape
    total = num_prefix + length + num_queries
    attend = torch.zeros(batch, total, total, dtype=torch.bool, device=text_mask.device)
    attend[:, :, :num_prefix] = True
    if layout is not None and num_prefix:
        attend[:, :num_prefix, :num_prefix] = layout.attend
    text = slice(num_prefix, num_prefix + length)
    causal = torch.ones(length, length, dtype=torch.bool, device=text_mask.device).tril()
    visible = causal & text_mask[:, None, :]
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    if layout is not None and layout.attention == "prompt" and prompt is not None:
        visible = visible | (prompt[:, :, None] & prompt[:, None])
        attend[:, :num_prefix, text] = prompt[:, None]
    attend[:, text, text] = visible
    attend[:, num_prefix + length :, text] = (
        text_mask if instruction_mask is None else instruction_mask
    )[:, None, :]
    attend[:, num_prefix + length :, num_prefix + length :] = True
    return attend


def text_positions(
    num_prefix: int, text_mask: Bool[Tensor, "B n"], segments: Int[Tensor, "B n"] | None
) -> Int[Tensor, "B n"]:
    """Position ids of text tokens: they follow the prefix, skip padding, and restart with every
    segment."""
    if segments is None:
        return num_prefix + text_mask.long().cumsum(1).sub(1).clamp(min=0)
    same = (segments[:, :, None] == segments[:, None, :]) & text_mask[:, None, :]
    earlier = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril(-1)
    return num_prefix + (same & earlier).sum(-1)


class VisionLanguageModel(nn.Module):
    """timm encoder -> MLP projector -> causal LM, with one learned embedding a camera and one
    proprioception token.

    `plan`, if given, predicts the locations of an instruction's objects (grounding trains it).

    Raises:
        ValueError: the vocabulary has no room for the location and action ids of a plan.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    left_out: frozenset[str] = frozenset()
    """Names of the parameters that the state dict leaves out (`vla.models.base_model`)."""
    first_rows: Mapping[str, int] = MappingProxyType({})
    load_prefix: str = ""
    autocast: torch.dtype | None = None
    """Type of matrix products (None: that of the weights, which stay in float32)."""

    def __init__(
        self,
        vision: VisionEncoder | PretrainedVision,
        backbone: Backbone,
        cameras: tuple[str, ...],
        proprio_size: int,
        plan: ActionQueries | None = None,
    ):
        super().__init__()
        if plan is not None and location_ids(backbone.vocabulary_size).start < 0:
            raise ValueError(
                f"a vocabulary of {backbone.vocabulary_size} ids has no room for the "
                f"{NUM_LOCATIONS} locations and "
                f"{NUM_ACTION_IDS} actions at its end: raise model.backbone.vocabulary_size"
            )
        self.plan = plan
        self.vision = vision
        self.backbone = backbone
        self.cameras = cameras
        projected = getattr(vision, "projected", False)
        self.projector = nn.Identity() if projected else mlp_projector(vision.width, backbone.width)
        self.camera_embedding = nn.Parameter(torch.randn(len(cameras), backbone.width) * 0.02)
        image_layout = getattr(vision, "layout", FLAT)
        self.layout = PrefixLayout(image_layout, len(cameras), vision.num_patches)
        if image_layout != FLAT:
            # The features of a pretrained model enter as they are; training may move them.
            nn.init.zeros_(self.camera_embedding)
        self.proprio_projector = mlp_projector(proprio_size, backbone.width)
        # A LayerNorm over raw joint values would mix metres with radians; `fit_proprio` normalises
        # each number instead.
        self.proprio_projector[0] = nn.Identity()
        self.register_buffer("proprio_mean", torch.zeros(proprio_size))
        self.register_buffer("proprio_std", torch.ones(proprio_size))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.proprio_mean.device

    @property
    def width(self) -> int:
        return self.backbone.width

    @property
    def num_prefix(self) -> int:
        return len(self.cameras) * self.vision.num_patches + 1

    def fit_proprio(self, proprio: Float[Tensor, "N s"]) -> None:
        """Fit the normalisation of proprioception (metres, radians) to data."""
        self.proprio_mean.copy_(proprio.mean(0))
        self.proprio_std.copy_(proprio.std(0).clamp(min=MIN_PROPRIO_STD))

    def prefix_parameters(self) -> list[nn.Parameter]:
        """Parameters of the prefix embeddings: vision, projectors, camera embeddings."""
        modules = (self.vision, self.projector, self.proprio_projector)
        return [p for m in modules for p in m.parameters()] + [self.camera_embedding]

    def image_tokens(
        self, images: Mapping[str, UInt8[Tensor, "B h w 3"]]
    ) -> Float[Tensor, "B p W"]:
        """Projected patches of all cameras, camera after camera; packed tokens, if deep-stacked.

        Raises:
            ValueError: a camera is missing.
        """
        missing = [camera for camera in self.cameras if camera not in images]
        if missing:
            raise ValueError(
                f"the model was trained with cameras {list(self.cameras)}, the observation "
                f"has {sorted(images)}: "
                f"add {missing} to sim.cameras or the dataset"
            )
        rows = len(images[self.cameras[0]])
        patches = self.projector(
            self.vision(torch.cat([images[camera] for camera in self.cameras]))
        )
        # Packed tokens have deep-stacked features behind the embedding.
        camera = functional.pad(self.camera_embedding, (0, patches.shape[-1] - self.width))
        patches = (
            patches.view(len(self.cameras), rows, -1, patches.shape[-1]) + camera[:, None, None]
        )
        return patches.transpose(0, 1).flatten(1, 2)

    def prefix(self, observation: Observation) -> Float[Tensor, "B P W"]:
        """Prefix embeddings: image tokens, then one proprioception token."""
        proprio = self.proprio_projector(self.normalized_proprio(observation))
        return join_tokens([self.image_tokens(observation.images), proprio[:, None]])

    def normalized_proprio(self, observation: Observation) -> Float[Tensor, "B s"]:
        """Proprioception normalised by the mean and standard deviation of the data.

        Raises:
            ValueError: the observation has none, or another number of values.
        """
        if observation.proprio is None:
            raise ValueError("the model takes proprioception and the observation has none")
        if observation.proprio.shape[-1] != len(self.proprio_mean):
            raise ValueError(
                f"observation.state holds {observation.proprio.shape[-1]} numbers, the model was "
                "made "
                f"for {len(self.proprio_mean)}: use data and an environment whose states are the "
                "same"
            )
        return (observation.proprio - self.proprio_mean) / self.proprio_std

    def forward(
        self,
        prefix: Float[Tensor, "B P W"],
        tokens: Int[Tensor, "B n"],
        token_mask: Bool[Tensor, "B n"],
        queries: Float[Tensor, "q d"] | None = None,
        segments: Int[Tensor, "B n"] | None = None,
        layers: list[Tensor] | None = None,
        cache: Any = None,
        instruction_mask: Bool[Tensor, "B n"] | None = None,
    ) -> tuple[Float[Tensor, "B n d"], Float[Tensor, "B q d"]]:
        """Hidden states of the text and of the queries.

        `layers` receives the states of the whole sequence at every depth, `cache` the keys and
        values. Queries attend to the text of `instruction_mask` only (None: all of it).
        """
        instruction_mask = token_mask if instruction_mask is None else instruction_mask
        if bool((tokens < 0).any()):
            assert segments is None, "questions that share a prefix have no slots"
            return self._forward_multimodal(
                prefix, tokens, token_mask, queries, layers, cache, instruction_mask
            )
        length = tokens.shape[1]
        parts = [prefix, self.backbone.embed(tokens)]
        num_prefix = prefix.shape[1]
        num_queries = 0 if queries is None else len(queries)
        text = text_positions(self.layout.span, token_mask, segments)
        if queries is not None:
            parts.append(queries.to(prefix.dtype).expand(len(tokens), -1, -1))
            # Queries follow the instruction directly: padding and labels take no positions.
            first = self.layout.span + instruction_mask.sum(1, keepdim=True)
            text = torch.cat([text, first + torch.arange(num_queries, device=tokens.device)], dim=1)
        attend = attention_mask(
            num_prefix,
            token_mask,
            num_queries,
            segments,
            instruction_mask,
            self.layout,
            instruction_mask if segments is None else None,
        )
        hidden = self.backbone(
            join_tokens(parts), attend, self.layout.positions(text), cache, layers
        )
        return hidden[:, num_prefix : num_prefix + length], hidden[:, num_prefix + length :]

    @property
    def slots(self) -> dict[str, range]:
        """The range of prefix tokens of each camera and of the state, for multimodal sentences."""
        count = self.vision.num_patches
        ranges = {
            camera: range(i * count, (i + 1) * count) for i, camera in enumerate(self.cameras)
        }
        return {**ranges, "state": range(self.num_prefix - 1, self.num_prefix)}

    def _forward_multimodal(
        self,
        prefix: Float[Tensor, "B P W"],
        tokens: Int[Tensor, "B n"],
        token_mask: Bool[Tensor, "B n"],
        queries: Float[Tensor, "q d"] | None,
        layers: list[Tensor] | None,
        cache: Any,
        instruction_mask: Bool[Tensor, "B n"],
    ) -> tuple[Float[Tensor, "B n d"], Float[Tensor, "B q d"]]:
        """`forward` for a text with slots: causal, but patches of one picture attend to each other
        in both directions."""
        slots = tokens < 0
        # A token -1 - k becomes embedding k of the prefix; words index 0 here and are replaced.
        place = (-1 - tokens).clamp(min=0)
        embedded = prefix.gather(1, place[..., None].expand(-1, -1, prefix.shape[2]))
        words = functional.pad(
            self.backbone.embed(tokens.clamp(min=0)), (0, prefix.shape[2] - self.width)
        )
        parts = [torch.where(slots[..., None], embedded, words)]
        positions = self.layout.slot_positions(tokens, token_mask)
        num_queries = 0
        if queries is not None:
            num_queries = len(queries)
            parts.append(queries.to(prefix.dtype).expand(len(tokens), -1, -1))
            first = self.layout.advances(tokens, instruction_mask).sum(1, keepdim=True)
            behind = first + torch.arange(num_queries, device=tokens.device)
            positions = torch.cat([positions, behind.expand(*positions.shape[:-1], -1)], dim=-1)
        attend = attention_mask(0, token_mask, num_queries, None, instruction_mask)
        length = tokens.shape[1]
        attend[:, :length, :length] |= self.layout.slot_attention(
            tokens, token_mask if self.layout.attention != "prompt" else instruction_mask
        )
        hidden = self.backbone(join_tokens(parts), attend, positions, cache, layers)
        return hidden[:, :length], hidden[:, length:]

    def encode_queries(
        self,
        prefix: Float[Tensor, "B P W"],
        observation: Observation,
        queries: Float[Tensor, "q d"],
        cache: Any = None,
    ) -> Float[Tensor, "B q d"]:
        """Hidden states of the queries behind images and instruction.

        An advantage label is masked out: a model that was never trained with one would process
        everything else differently. Heads add it afterwards (`with_advantage_label`).
        """
        instruction = observation.instruction_mask
        mask = observation.token_mask
        return self(
            prefix, observation.tokens, mask, queries, cache=cache, instruction_mask=instruction
        )[1]

    def with_advantage_label(
        self, hidden: Float[Tensor, "B q d"], observation: Observation
    ) -> Float[Tensor, "B q d"]:
        """States of the queries plus the advantage label: the mean embedding of its words, scaled
        to a root mean square of 1, as normalised states have."""
        if observation.label_mask is None:
            return hidden
        words = (
            self.backbone.embed(observation.tokens.clamp(min=0)) * observation.label_mask[..., None]
        )
        label = (
            words.sum(1, keepdim=True) / observation.label_mask.sum(1).clamp(min=1)[:, None, None]
        )
        return hidden + nn.functional.rms_norm(label, label.shape[-1:], eps=1e-6).to(hidden.dtype)

    def plan_logits(self, hidden: Float[Tensor, "B q d"]) -> Float[Tensor, "B q a c"]:
        """Logits over the location ids for every number of the plan."""
        assert self.plan is not None, "this model has no plan head"
        places = location_ids(self.backbone.vocabulary_size)
        return self.backbone.logits(self.plan(hidden), places.start, places.stop)

    @torch.no_grad()
    def generate(
        self, observation: Observation, max_new_tokens: int, end_token: int
    ) -> Int[Tensor, "B m"]:
        """Greedy answers to `observation.tokens`, with a KV cache, padded with `end_token`.

        Action ids are excluded: an answer consists of words.
        """
        observation = to_device(observation, self.device)
        prefix = self.prefix(observation)
        mask = observation.token_mask
        cache = Backbone.new_cache()
        embeddings = join_tokens([prefix, self.backbone.embed(observation.tokens)])
        positions = self.layout.positions(text_positions(self.layout.span, mask, None))
        attend = attention_mask(prefix.shape[1], mask, layout=self.layout, prompt=mask)
        hidden = self.backbone(embeddings, attend, positions, cache)
        last = prefix.shape[1] + mask.sum(1) - 1
        state = hidden[torch.arange(len(mask), device=mask.device), last]
        visible = torch.cat([mask.new_ones(prefix.shape[:2]), mask], dim=1)
        answers: list[Tensor] = []
        ids = action_ids(self.backbone.vocabulary_size)
        actions = constant(tuple(i for i in ids if i != end_token), mask.device, torch.long)
        done = mask.new_zeros(len(mask))
        for step in range(max_new_tokens):
            logits = self.backbone.logits(state).index_fill(-1, actions, -torch.inf)
            token = logits.argmax(-1).masked_fill(done, end_token)
            answers.append(token)
            done = done | (token == end_token)
            if done.all() or step == max_new_tokens - 1:
                break
            visible = torch.cat([visible, mask.new_ones(len(mask), 1)], dim=1)
            embedded = self.backbone.embed(token)[:, None]
            position = (self.layout.span + mask.sum(1) + step)[:, None]
            state = self.backbone(embedded, visible[:, None], position, cache)[:, 0]
        return torch.stack(answers, dim=1)
