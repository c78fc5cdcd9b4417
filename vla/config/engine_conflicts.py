"""Settings that drawing by an inference server needs, excludes, or leaves without effect."""

from __future__ import annotations

from collections.abc import Iterator

from vla.config.text import ServedLanguageModel, TextConfig

LAUNCH_LINES = {
    "vllm": "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs",
    "sglang": "python -m sglang.launch_server --model-path MODEL",
}
"""The command that starts a server, in an environment of its own."""


def engine_conflicts(config: TextConfig) -> list[str]:
    """Conflicts of `language_model.engine` with other settings, one message each."""
    model = config.language_model
    if not isinstance(model, ServedLanguageModel) or model.engine == "own":
        return []
    problems = []
    if model.engine_url is None:
        problems.append(
            f"language_model.engine_url (null) must be set under language_model.engine="
            f"{model.engine}: start the server by `{LAUNCH_LINES[model.engine]}`, then give its "
            "address, as http://localhost:8000"
        )
    if model.engine_transfer == "nccl" and model.engine != "vllm":
        problems.append(
            "language_model.engine_transfer (nccl) is for language_model.engine=vllm: set it to "
            "folder"
        )
    if config.text.name in ("rlvr", "rlhf") and config.rl.importance_cap is None:
        problems.append(
            f"rl.importance_cap (null) must be set under language_model.engine={model.engine}, "
            "whose log-probabilities differ slightly from those of the update: 2 is usual"
        )
    return problems + filter_conflicts(config, model.engine) + guidance_conflicts(config)


def filter_conflicts(config: TextConfig, engine: str) -> list[str]:
    """Filters of the distribution: a server does not tell which tokens they left."""
    text = config.text
    if text.name == "rlvr":
        path, sampling = "text.sampling", text.sampling
    elif text.name == "sft":
        return []
    else:
        path, sampling = "text.generation.sampling", text.generation.sampling
    return [
        f"{path}.{name} ({value:g}) filters tokens, and language_model.engine={engine} does not "
        f"report which it left: set it to {unfiltered}, or language_model.engine=own"
        for name, value, unfiltered in (("top_k", sampling.top_k, 0), ("top_p", sampling.top_p, 1))
        if value != unfiltered
    ]


def guidance_conflicts(config: TextConfig) -> list[str]:
    """Guidance of control codes, which combines prompts at every token."""
    text, model = config.text, config.language_model
    if text.name != "control" or text.guidance == 1 or not isinstance(model, ServedLanguageModel):
        return []
    return [
        f"text.guidance ({text.guidance:g}) combines several prompts at every token, which "
        f"language_model.engine={model.engine} does not: set it to 1, or language_model.engine=own"
    ]


def unused_engine_settings(config: TextConfig) -> Iterator[tuple[str, str]]:
    """(setting, reason) of each engine setting without effect."""
    model = config.language_model
    if not isinstance(model, ServedLanguageModel):
        return
    if model.engine == "own":
        for name in ("engine_url", "engine_transfer", "engine_folder", "engine_timeout"):
            yield f"language_model.{name}", "language_model.engine is own"
    elif model.engine_transfer == "nccl":
        yield "language_model.engine_folder", "language_model.engine_transfer is nccl"
