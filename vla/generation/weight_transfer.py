"""Weights of the trained model on their way to an inference server: by a folder that both read, or
by NCCL from GPU to GPU."""

from __future__ import annotations

import base64
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from vla.generation.hf_decoder import plain_model
from vla.generation.inference_servers import InferenceServer, VllmServer


@runtime_checkable
class WeightTransfer(Protocol):
    """Hands the present weights of a model to a server, under the name of a version."""

    def push(self, model: nn.Module, version: str) -> None: ...


class FolderTransfer:
    """Writes a folder of transformers and has the server load it.

    `folder` is the same path for this process and for the server: on one machine, or on a file
    system that both mount. Two versions are never in it at once.
    """

    def __init__(self, server: InferenceServer, folder: Path) -> None:
        self.server, self.folder = server, folder.absolute()

    def push(self, model: nn.Module, version: str) -> None:
        draft = self.folder / "weights"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_merged(model, draft)
        self.server.load_folder(str(draft), version)


class NcclTransfer:
    """vLLM's own weight transfer: this process broadcasts from its GPU, the server's workers
    receive.

    The server runs with `--weight-transfer-config '{"backend": "nccl"}'`. The group is joined by a
    unique id of NCCL, so that this process needs no package of vLLM. A server that was started
    again has no group: `push` then joins a new one.

    Raises:
        ValueError: no GPU holds the model.
    """

    def __init__(self, server: VllmServer, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"language_model.engine_transfer=nccl sends from a GPU, and the model is on "
                f"{device.type}: set language_model.engine_transfer to folder, or train.device to "
                "cuda"
            )
        self.server, self.device = server, device
        self._group: object | None = None
        self._server_version: str | None = None

    def push(self, model: nn.Module, version: str) -> None:
        if self._group is None or self.server.weight_version() != self._server_version:
            self._group = self._join()
        client = self.server.client
        weights = checkpoint_weights(model)
        info = {
            "names": list(weights),
            "dtype_names": [
                str(weight.dtype).removeprefix("torch.") for weight in weights.values()
            ],
            "shapes": [list(weight.shape) for weight in weights.values()],
        }
        client.post("/start_weight_update", {})
        self._together(
            lambda: client.post("/update_weights", {"update_info": info}),
            lambda: self._broadcast(weights),
        )
        client.post("/finish_weight_update", {"weight_version": version})
        self.server.finish_loading(version)
        self._server_version = version

    def _join(self) -> object:
        """A communicator of this process (rank 0) and the server's workers."""
        from torch.cuda import nccl

        client = self.server.client
        world_size = 1 + int(client.get("/get_world_size")["world_size"])
        unique_id = nccl.unique_id()
        info = {
            "nccl_unique_id_b64": base64.b64encode(unique_id).decode(),
            "rank_offset": 1,
            "world_size": world_size,
        }

        def join() -> object:
            with torch.cuda.device(self.device):
                group = nccl.init_rank(world_size, unique_id, 0)
                # The workers' communicators begin with one sum.
                nccl.all_reduce([torch.zeros(1, device=self.device)], comms=[group])
            return group

        return self._together(
            lambda: client.post("/init_weight_transfer_engine", {"init_info": info}), join
        )

    def _broadcast(self, weights: dict[str, Tensor]) -> None:
        from torch.cuda import nccl

        with torch.cuda.device(self.device):
            for weight in weights.values():
                nccl.broadcast([weight.contiguous()], root=0, comms=[self._group])
            torch.cuda.synchronize(self.device)

    @staticmethod
    def _together(request: Callable[[], Any], own: Callable[[], Any]) -> Any:
        """Both halves of a rendezvous at once; the result of the own half."""
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(request)
            result = own()
            answer.result()
        return result


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight) of a model of transformers, with the adapters of peft added to their layers.

    One layer is merged at a time; the model itself is unchanged.
    """
    from peft.tuners.lora import LoraLayer

    inner = plain_model(model)
    layers = {name: part for name, part in inner.named_modules() if isinstance(part, LoraLayer)}
    for name, weight in inner.state_dict().items():
        path, _, leaf = name.rpartition(".")
        layer_name = path.removesuffix(".base_layer")
        if layer_name == path:
            if not any(path.startswith(f"{adapted}.lora_") for adapted in layers):
                yield name, weight
            continue
        layer: Any = layers[layer_name]
        if leaf == "weight":
            delta = sum(layer.get_delta_weight(adapter) for adapter in layer.active_adapters)
            weight = (weight.float() + delta).to(weight.dtype)
        yield f"{layer_name}.{leaf}", weight


def checkpoint_weights(model: nn.Module) -> dict[str, Tensor]:
    """Merged weights under the names of the checkpoint; a tied weight has one name."""
    from transformers.core_model_loading import revert_weight_conversion

    inner: Any = plain_model(model)
    tied = set(inner.all_tied_weights_keys) if hasattr(inner, "all_tied_weights_keys") else set()
    with torch.no_grad():
        weights = {name: weight for name, weight in merged_weights(model) if name not in tied}
    return revert_weight_conversion(inner, weights)


def save_merged(model: nn.Module, folder: Path) -> None:
    """Write a folder that `from_pretrained` loads, without adapters."""
    inner: Any = plain_model(model)
    with torch.no_grad(), warnings.catch_warnings():
        # peft's layers inside are no adapters of transformers' own kind.
        warnings.simplefilter("ignore", UserWarning)
        inner.save_pretrained(folder, state_dict=dict(merged_weights(model)))
