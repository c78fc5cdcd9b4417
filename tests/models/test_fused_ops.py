"""Fused operations against those of transformers: values, gradients, memory, and how they are
undone."""

import copy

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama import modeling_llama

from vla.models.fused_ops import ROTATION, remove_fused_ops, use_fused_ops

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def llama(**changes):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **changes))
    for name, parameter in model.named_parameters():  # norms of 1 would hide a forgotten factor
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model


def loss_and_gradients(model, dtype=None):
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [9, 8, 7, 6, 5, 4]])
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def kept_bytes(model):
    """Of the tensors that autograd saves for the backward pass, weights aside."""
    weights = {p.data_ptr() for p in model.parameters()}
    found = {}

    def pack(tensor):
        if tensor.data_ptr() not in weights:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.arange(40)[None]).logits.sum()
    return sum(found.values())


def test_values_and_every_gradient_are_those_of_transformers_and_less_is_kept():
    model = llama()
    expected, gradients = loss_and_gradients(model)
    before = kept_bytes(model)
    assert use_fused_ops(model) == ["LlamaMLP", "LlamaRMSNorm", ROTATION]
    parts = (model.model.norm, model.model.layers[1].mlp, model.model.layers[1].self_attn)
    assert all("forward" in vars(part) for part in parts)
    loss, found = loss_and_gradients(model)
    assert torch.equal(loss, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    assert kept_bytes(model) < 0.8 * before
    assert use_fused_ops(model) == []


def test_one_model_changes_and_no_other_and_it_can_be_undone():
    rotation = getattr(modeling_llama, ROTATION)
    model, other = llama(), llama()
    expected, gradients = loss_and_gradients(model)
    use_fused_ops(model)
    assert getattr(modeling_llama, ROTATION) is rotation
    assert not any("forward" in vars(part) for part in other.modules())
    assert type(model.model.norm) is modeling_llama.LlamaRMSNorm
    remove_fused_ops(model)
    assert not any("forward" in vars(part) for part in model.modules())
    loss, found = loss_and_gradients(model)
    assert torch.equal(loss, expected)
    assert all(torch.equal(found[name], gradient) for name, gradient in gradients.items())


def test_autocast_gives_what_transformers_gives():
    model = llama()
    expected, gradients = loss_and_gradients(model, torch.bfloat16)
    use_fused_ops(model)
    loss, found = loss_and_gradients(model, torch.bfloat16)
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=0.1, atol=3e-3, msg=name)


def test_other_types_are_computed_as_before():
    model = llama().double()
    twin = copy.deepcopy(model)
    assert use_fused_ops(model.float()) != []
    tokens = torch.arange(6)[None]
    torch.testing.assert_close(
        model.double()(input_ids=tokens).logits, twin(input_ids=tokens).logits
    )


def test_a_copy_works_on_its_own_weights():
    model = llama()
    use_fused_ops(model)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.model.norm.weight.zero_()
    tokens = torch.arange(6)[None]
    assert not copied(input_ids=tokens).logits.any()
    assert model(input_ids=tokens).logits.any()


def test_names_of_weights_stay_and_a_saved_model_is_an_ordinary_one(tmp_path):
    model = llama()
    names = list(model.state_dict())
    use_fused_ops(model)
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    assert "forward" not in vars(again.model.norm)
    tokens = torch.arange(6)[None]
    assert torch.equal(model(input_ids=tokens).logits, again(input_ids=tokens).logits)


def test_what_computes_something_else_is_left_alone():
    gelu = llama(hidden_act="gelu")
    assert "LlamaMLP" not in use_fused_ops(gelu)
    gemma = GemmaForCausalLM(
        GemmaConfig(**SIZES, head_dim=8)
    )  # its norm adds 1 to its weight, its gate is a GELU
    assert use_fused_ops(gemma) == [ROTATION]
    assert "forward" not in vars(gemma.model.norm)


def test_other_families_of_the_same_parts_are_lean_too():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    expected, gradients = loss_and_gradients(model)
    assert use_fused_ops(model) == ["Qwen2MLP", "Qwen2RMSNorm", ROTATION]
    loss, found = loss_and_gradients(model)
    assert torch.equal(loss, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_frozen_norms_get_no_gradient_and_what_lies_before_them_its_own():
    model = llama()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" not in name)
    model.zero_grad()
    tokens = torch.arange(6)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    expected = model.model.embed_tokens.weight.grad.clone()
    model.zero_grad()
    use_fused_ops(model)
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert model.model.norm.weight.grad is None
    torch.testing.assert_close(model.model.embed_tokens.weight.grad, expected, rtol=1e-4, atol=1e-6)
