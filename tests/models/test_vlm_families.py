"""Every tested family of vision-language models: our path computes what transformers does with the
same picture and prompt, and every head trains on it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.models.tiny import CAMERAS, PROPRIO_SIZE
from tests.models.vlm_families import (
    FAMILIES,
    IMAGE_TOKEN,
    TEXT,
    pictures,
    processed,
    tiny_model,
)
from tests.policies.kinds import settings
from tests.policies.test_kinds import restless
from tests.policies.tiny import token_policy
from vla.actions.bins import fit_bins
from vla.actions.diffusion import Diffusion
from vla.actions.fast import fit_fast
from vla.actions.flow import FlowMatching
from vla.actions.normalize import fit_normalizer
from vla.models.pretrained_vlm import check_vlm, load_pretrained_vlm, split_vlm
from vla.models.vlm import VisionLanguageModel
from vla.policies.denoising import DenoisingHead
from vla.policies.fast import FastHead
from vla.policies.regression import RegressionHead
from vla.policies.vla_policy import VlaPolicy
from vla.types import Observation

HEADS = ("token", "autoregressive", "fast", "regression", "flow", "diffusion")


def split(model, cameras=("front",), **options) -> VisionLanguageModel:
    halves = split_vlm(copy.deepcopy(model), 16, **options)
    return VisionLanguageModel(*halves, cameras, PROPRIO_SIZE).eval()


def whole_logits(family, model, images, ids) -> torch.Tensor:
    """Next-token logits of the whole model, called as its own processor and masks ask for."""
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    given |= processed(family, images)
    is_image = (ids == IMAGE_TOKEN).long()
    if family.startswith("paligemma"):
        given["token_type_ids"] = torch.zeros_like(ids)
    elif family == "gemma3":
        given["token_type_ids"] = is_image
    elif family.startswith("qwen"):
        given["mm_token_type_ids"] = is_image
    with torch.no_grad():
        return model(**given).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sentence_gives_the_logits_of_the_whole_model(family):
    """The picture stands in the prompt: two words, the picture, 20 words."""
    model = tiny_model(family)
    ours = split(model)
    count = ours.vision.num_patches
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 50, (2, 22), generator=generator)
    image = torch.full((2, count), IMAGE_TOKEN)
    ids = torch.cat([words[:, :2], image, words[:, 2:]], dim=1)
    slots = torch.tensor([-1 - place for place in ours.slots["front"]]).expand(2, -1)
    tokens = torch.cat([words[:, :2], slots, words[:, 2:]], dim=1)
    images = pictures()
    proprio = torch.zeros(2, PROPRIO_SIZE)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        prefix = ours.prefix(Observation({"front": images}, proprio, tokens, mask))
        hidden, _ = ours(prefix, tokens, mask)
        found = ours.backbone.logits(hidden)
    expected = whole_logits(family, model, images, ids)
    text = ids != IMAGE_TOKEN
    torch.testing.assert_close(found[text], expected[text], rtol=1e-4, atol=1e-4)
    # The pictures count: logits of another picture differ by far more than the tolerance.
    other = whole_logits(family, model, images.flip(0), ids)
    assert (other[text] - expected[text]).abs().max() > 1e-2


def seen(rows: int) -> Observation:
    """Instructions of 4, 6 and 3 words before two pictures."""
    generator = torch.Generator().manual_seed(3)
    images = {camera: pictures(rows) for camera in CAMERAS}
    mask = torch.arange(6) < torch.tensor([4, 6, 3][:rows])[:, None]
    tokens = torch.randint(3, 50, (rows, 6), generator=generator).masked_fill(~mask, 0)
    return Observation(images, torch.randn(rows, PROPRIO_SIZE, generator=generator), tokens, mask)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_is_a_sentence_that_begins_with_it(family):
    """`[prefix | text]` and a text with all slots at its beginning have the same states."""
    ours = split(tiny_model(family), CAMERAS)
    observation = seen(2)
    slots = torch.tensor([-1 - place for place in range(ours.num_prefix)]).expand(2, -1)
    tokens = torch.cat([slots, observation.tokens], dim=1)
    mask = torch.cat([torch.ones_like(slots, dtype=torch.bool), observation.token_mask], dim=1)
    queries = torch.randn(3, ours.width, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        prefix = ours.prefix(observation)
        text, hidden = ours(prefix, observation.tokens, observation.token_mask, queries)
        slot_text, slot_hidden = ours(prefix, tokens, mask, queries)
    real = observation.token_mask
    torch.testing.assert_close(
        slot_text[:, ours.num_prefix :][real], text[real], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(slot_hidden, hidden, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_what_the_whole_model_generates(family):
    """Greedy words behind the prefix are those of one pass over prefix, question and answer."""
    # A window counts padding, so a row alone would differ from the same row in a batch.
    wide = {"sliding_window": 64} if family in ("gemma3", "paligemma2") else {}
    ours = split(tiny_model(family, vocab_size=1024, **wide), CAMERAS)
    observation = seen(3)
    answers = ours.generate(observation, 4, end_token=2)
    lengths = observation.token_mask.sum(1)
    for row in range(3):
        words = torch.cat([observation.tokens[row, : lengths[row]], answers[row, :-1]])[None]
        alone = Observation(
            {camera: image[row : row + 1] for camera, image in observation.images.items()},
            observation.proprio[row : row + 1],
            words,
            torch.ones_like(words, dtype=torch.bool),
        )
        prompt = torch.arange(words.shape[1])[None] < lengths[row]
        with torch.no_grad():
            hidden, _ = ours(ours.prefix(alone), words, alone.token_mask, instruction_mask=prompt)
            logits = ours.backbone.logits(hidden[0, lengths[row] - 1 :])[:, : 1024 - 256]
        end = (answers[row] == 2).nonzero().flatten().tolist()
        count = end[0] if end else 4
        assert logits.argmax(-1)[:count].tolist() == answers[row, :count].tolist()


def make_policy(head: str, model: VisionLanguageModel) -> VlaPolicy:
    frames = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    scale = fit_normalizer(frames)
    match head:
        case "token" | "autoregressive":
            decoding = "parallel" if head == "token" else head
            return token_policy(model, fit_bins(frames, 8, "uniform"), 2, decoding, 1.0)
        case "fast":
            code = fit_fast(np.stack([frames[:-1], frames[1:]], axis=1), 24, 2.0)
            return VlaPolicy(model, FastHead(model, code, 1.0), detach_critic=True)
        case "regression":
            return VlaPolicy(model, RegressionHead(model, scale, 2, 0.05, 1.0), detach_critic=True)
        case "flow":
            process = FlowMatching(num_steps=4, time_alpha=1.5, time_beta=1.0, noise_level=0.5)
        case _:
            process = Diffusion(
                num_train_steps=20, num_steps=4, prediction="v_prediction", min_std=0.1, clip=2.0
            )
    expert = DenoisingHead(model, process, scale, settings("all_steps"))
    return VlaPolicy(model, expert, detach_critic=True)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_trains_and_scores_its_own_draws(family, head):
    torch.manual_seed(0)
    policy = restless(make_policy(head, split(tiny_model(family, scale=1.0), CAMERAS)))
    decision = policy.act(seen(3))
    assert decision.action.shape == (3, 2, 2)
    scores = policy.score(seen(3), decision.trace)
    gap = ((scores.logprobs - decision.logprobs) * decision.mask).abs().max()
    assert gap <= 1e-4
    actions = torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(5)) * 2 - 1
    terms, mask = policy.imitation_terms(seen(3), actions, torch.ones(3, 2, dtype=torch.bool))
    (terms * mask).sum().backward()
    for half in (policy.model.vision, policy.model.backbone):
        reached = [name for name, p in half.named_parameters() if p.grad is not None]
        assert any(half.get_parameter(name).grad.any() for name in reached)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_halves_share_no_weights_and_have_all_of_them(family):
    model = tiny_model(family)
    vision, backbone = split_vlm(copy.deepcopy(model), 16)
    shared = {p.data_ptr() for p in vision.parameters()} & {
        p.data_ptr() for p in backbone.parameters()
    }
    assert not shared
    number = sum(p.numel() for half in (vision, backbone) for p in half.parameters())
    assert number == sum(p.numel() for p in model.parameters())


def test_a_run_of_an_earlier_version_keeps_its_flat_prefix():
    """Positions count tokens, and the prefix attends to itself in both directions."""
    ours = split(tiny_model("qwen2_5_vl"), is_native=False)
    assert ours.layout.num_axes == 1
    assert ours.layout.attend.all()
    assert ours.camera_embedding.any()


def test_tokens_of_a_picture_are_pooled():
    """16 tokens in a 4 x 4 grid become 4: each the mean of its quarter."""
    model = tiny_model("paligemma")
    every = split(model).vision(pictures())
    four = split(model, num_tokens=4).vision(pictures())
    quarters = every.unflatten(1, (2, 2, 2, 2)).mean((2, 4)).flatten(1, 2)
    torch.testing.assert_close(four, quarters)
    with pytest.raises(
        ValueError, match=r"num_tokens \(25\) cannot be averaged from the 16 tokens"
    ):
        split(model, num_tokens=25)


@pytest.mark.parametrize("family", ["paligemma", "internvl", "llava", "smolvlm", "qwen3_vl"])
def test_towers_take_another_size(family):
    """Twice the pixels a side give four times the tokens; a NaViT tower keeps its number."""
    model = tiny_model(family)
    small = split(model).vision.num_patches
    if family == "smolvlm":
        return
    assert split(model, pixels=32).vision.num_patches == 4 * small


def test_it_loads_from_a_folder_and_refuses_what_it_cannot_use(tmp_path):
    tiny_model("smolvlm").save_pretrained(tmp_path / "smol")
    vision, backbone = load_pretrained_vlm(str(tmp_path / "smol"), 8, torch.float32)
    assert vision(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)).shape == (
        1,
        vision.num_patches,
        backbone.width,
    )
    from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match=r"llama\) is a llama, which takes no pictures.*model=hub"):
        check_vlm(str(tmp_path / "llama"))
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="is a gpt2, which takes no pictures"):
        check_vlm(str(tmp_path / "gpt2"))
    with pytest.raises(
        ValueError, match=r"smoll\): there is no such folder; did you mean .*smol\?"
    ):
        check_vlm(str(tmp_path / "smoll"))
    from transformers import MllamaConfig

    MllamaConfig().save_pretrained(tmp_path / "mllama")
    with pytest.raises(ValueError, match="is a mllama, which is no backbone: its decoder attends"):
        check_vlm(str(tmp_path / "mllama"))
    from transformers import AutoConfig

    AutoConfig.for_model("mistral3").save_pretrained(tmp_path / "mistral3")
    with pytest.raises(
        ValueError, match="a mistral3, which takes pictures with image_sizes, which"
    ):
        check_vlm(str(tmp_path / "mistral3"))
    AutoConfig.for_model("florence2").save_pretrained(tmp_path / "florence2")
    with pytest.raises(ValueError, match="is a florence2, whose decoder attends to an encoder"):
        check_vlm(str(tmp_path / "florence2"))


def test_another_mean_of_pixels_is_read_from_the_folder(tmp_path):
    from transformers import SiglipImageProcessor

    model = tiny_model("paligemma")
    model.save_pretrained(tmp_path)
    SiglipImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    vision, _ = load_pretrained_vlm(str(tmp_path), 16, torch.float32)
    assert vision.pixel_mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
