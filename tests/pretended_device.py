"""A pretended GPU: values lie on the CPU, the rules are those of a separate device.

    python tests/pretended_device.py scripts/train_vla.py preset=smoke

A tensor of this device raises where CUDA would: operands on two devices, a CPU index into
`index_select`, a device index into a CPU table, a CPU generator, `.numpy()`, types that attention
does not mix. Copies and synchronisations are counted by the line of our code. It is a tensor
subclass on torch's PrivateUse1 backend for Python. It cannot see the limits of real kernels.
"""

import json
import runpy
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

ROOT = Path(__file__).resolve().parents[1]
NAME = "pretend"
PACKAGE = f"{ROOT / 'vla'}/"
CPU = torch.device("cpu")
UPLOAD, DOWNLOAD, WAIT = "upload", "download", "wait"

MIXES_DEVICES = {
    "_index_put_impl_",
    "_to_copy",
    "_unsafe_index",
    "_unsafe_index_put",
    "copy_",
    "index",
    "index_put",
    "index_put_",
    "set_",
}
"""Operations that take operands of two devices, under rules of their own."""
WAITS = {
    "_local_scalar_dense",
    "_unique2",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
"""Operations that hand a value or a size to Python, which waits for the device."""


class DeviceMismatch(RuntimeError):
    """What CUDA would refuse."""


class Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, *ignored):
        return torch.get_rng_state()

    def set_rng_state(self, *ignored):
        return None

    def current_device(self):
        return 0

    def device_count(self):
        return 1


counts: Counter[tuple[str, str]] = Counter()
"""(kind, file:line of our code) of every copy and synchronisation."""


def site() -> str:
    """File and line of the innermost call in the package."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"vla/{name.removeprefix(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def note(kind: str) -> None:
    counts[kind, site()] += 1


def total(kind: str) -> int:
    return sum(number for (each, _), number in counts.items() if each == kind)


class Pretended(torch.Tensor):
    """A tensor of the pretended device; `inner` has its values."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, 0),
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self, **ignored):
        return f"Pretended({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            new = Pretended(self.inner.detach().clone())
            if getattr(self, "_is_param", False):
                new._is_param = True
            new.requires_grad_(self.requires_grad)
            memo[id(self)] = new
        return memo[id(self)]

    def numpy(self, *ignored, **also_ignored):
        raise TypeError("can't convert a device tensor to numpy: copy it to the CPU first")

    def __array__(self, *ignored, **also_ignored):
        return self.numpy()


def run(func, args, kwargs):
    """An operation on values that lie on the CPU, under the rules of two devices."""
    name = func.__name__.split(".")[0]
    operands = [
        value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)
    ]
    pretended = any(isinstance(value, Pretended) for value in operands)
    wanted = kwargs.get("device")
    wanted = torch.device(wanted) if isinstance(wanted, str) else wanted
    if name == "_to_copy":
        return copy_to(func, args[0], wanted, kwargs)
    if not pretended and (wanted is None or wanted.type != NAME):
        return func(*args, **kwargs)
    check(name, args, kwargs, operands)
    if name in WAITS or (name == "index" and any_mask(args[1])):
        note(WAIT)
    if name == "copy_" and isinstance(args[0], Pretended) != isinstance(args[1], Pretended):
        note(UPLOAD if isinstance(args[0], Pretended) else DOWNLOAD)
    values, options = tree_map(plain, (args, kwargs))
    if options.get("device") is not None:
        options["device"] = CPU
    out = func(*values, **options)
    stays = wanted is not None and wanted.type == "cpu"

    def wrap(value):
        is_plain = isinstance(value, torch.Tensor) and not isinstance(value, Pretended)
        return Pretended(value) if is_plain and not stays else value

    wrapped = tree_map(wrap, out)
    if not has_aliases(func):
        return wrapped
    try:
        return return_and_correct_aliasing(func, args, kwargs, wrapped)
    except Exception:
        # Operations without an alias schema hand back what they changed in place.
        given = {id(value.inner): value for value in operands if isinstance(value, Pretended)}
        return tree_map(
            lambda v: given.get(id(v.inner), v) if isinstance(v, Pretended) else v, wrapped
        )


@cache
def has_aliases(func) -> bool:
    """True where a result shares memory with an operand."""
    schema = func._schema
    return any(each.alias_info is not None for each in (*schema.returns, *schema.arguments))


def copy_to(func, source, wanted, kwargs):
    """`Tensor.to`: counts the copies between devices."""
    from_device = isinstance(source, Pretended)
    target = wanted or (source.device if from_device else CPU)
    if from_device and target.type == "cpu":
        note(DOWNLOAD)
    elif not from_device and target.type == NAME:
        note(UPLOAD)
    options = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
    out = func(source.inner if from_device else source, **options)
    return Pretended(out) if target.type == NAME else out


def any_mask(indices) -> bool:
    """Boolean masks as an index: the size of the result is known on the device only."""
    return any(
        isinstance(index, Pretended) and index.dtype in (torch.bool, torch.uint8)
        for index in indices or ()
    )


def check(name, args, kwargs, operands) -> None:
    """Raise where CUDA refuses the devices of the operands."""
    strangers = [value for value in operands if not isinstance(value, Pretended) and value.dim()]
    if name not in MIXES_DEVICES and strangers:
        shapes = [(tuple(value.shape), value.dtype) for value in strangers]
        raise DeviceMismatch(f"{name}: operands on the CPU, {shapes}, and on a device, at {site()}")
    if name.startswith(("index", "_unsafe_index")) and name in MIXES_DEVICES:
        on_device = isinstance(args[0], Pretended)
        indices = [index for index in args[1] or () if index is not None]
        if not on_device and any(isinstance(index, Pretended) for index in indices):
            raise DeviceMismatch(f"{name}: a device index into a CPU tensor, at {site()}")
        if on_device and any(not isinstance(index, Pretended) for index in indices):
            note(UPLOAD)
        if "put" in name and on_device and not isinstance(args[2], Pretended) and args[2].dim():
            raise DeviceMismatch(f"{name}: CPU values into a device tensor, at {site()}")
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != NAME:
        raise DeviceMismatch(f"{name}: a CPU generator, at {site()}")


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def attention(
    q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):
    """`scaled_dot_product_attention` with the checks of the CUDA kernels."""
    given = [t for t in (q, k, v, attn_mask) if t is not None]
    if len({t.device.type for t in given}) > 1:
        raise DeviceMismatch(f"attention over two devices, at {site()}")
    if len({q.dtype, k.dtype, v.dtype}) > 1:
        raise RuntimeError(f"attention of {q.dtype}, {k.dtype}, {v.dtype}, at {site()}")
    if attn_mask is not None and attn_mask.dtype not in (torch.bool, q.dtype):
        raise RuntimeError(f"attention of {q.dtype} with a {attn_mask.dtype} mask, at {site()}")
    if enable_gqa and q.shape[-3] != k.shape[-3]:
        groups = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3)
    weights = (q.float() @ k.float().transpose(-1, -2)) * (scale or q.shape[-1] ** -0.5)
    if is_causal:
        earlier = torch.ones(weights.shape[-2:], dtype=torch.bool, device=q.device).tril()
        weights = weights.masked_fill(~earlier, -torch.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        weights = weights.masked_fill(~attn_mask, -torch.inf) if is_bool else weights + attn_mask
    return weights.softmax(-1).nan_to_num(0.0).to(v.dtype) @ v


MAKES = (torch.tensor, torch.as_tensor, torch.asarray)
ITEMS = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)


class Functions(TorchFunctionMode):
    """What Python-level functions do before they reach an operation."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        on_device = isinstance(first, Pretended)
        if func is torch.nn.functional.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            if query.device.type == NAME:
                return attention(*args, **kwargs)
        if func in MAKES and kwargs.get("device") is not None:
            target = torch.device(kwargs["device"])
            if target.type == NAME and not on_device:
                return func(*args, **{**kwargs, "device": None}).to(target)
        if func in ITEMS and on_device:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = (first, tuple(map(to_index, index)), *args[2:])
        if func is torch.Tensor.new_tensor and on_device:
            kwargs = {"dtype": first.dtype, **kwargs, "device": None}
            return torch.tensor(args[1], **kwargs).to(first.device)
        if func is torch.Tensor.tolist and on_device:
            note(WAIT)
            return first.inner.tolist()
        return func(*args, **kwargs)


def to_index(value):
    """Lists and arrays become indices on the CPU, as in torch."""
    is_sequence = isinstance(value, list | range | np.ndarray)
    return (
        torch.as_tensor(list(value) if isinstance(value, range) else value)
        if is_sequence
        else value
    )


class Autocast(torch.autocast):
    """Autocast of the pretended device changes nothing: the backend has no autocast of its own."""

    def __init__(self, device_type, dtype=None, enabled=True, cache_enabled=None):
        if device_type == NAME:
            device_type, dtype, enabled = "cpu", torch.bfloat16, False
        super().__init__(device_type, dtype, enabled, cache_enabled)


def enable() -> torch.device:
    """Make `train.device=auto` the pretended device, for the rest of this process."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    from vla import devices

    device = torch.device(NAME, 0)
    # Modules take new parameters on `.to`, because a pretended tensor's data cannot be set.
    torch.__future__.set_swap_module_params_on_conversion(True)
    devices.choose_device = lambda name: CPU if name == "cpu" else device
    devices.available_device = devices.choose_device
    save_values()
    torch.autocast = torch.amp.autocast_mode.autocast = torch.amp.autocast = Autocast
    Dispatch().__enter__()
    Functions().__enter__()
    return device


def save_values() -> None:
    """Let files be written: a pretended tensor has no memory of its own."""
    from transformers import PreTrainedModel

    from vla.training.state_files import TensorCollector

    add, save = TensorCollector.add, PreTrainedModel.save_pretrained
    TensorCollector.add = lambda self, tensor, path: add(self, plain(tensor), path)

    def save_pretrained(self, folder, state_dict=None, **options):
        weights = self.state_dict() if state_dict is None else state_dict
        return save(self, folder, state_dict=tree_map(plain, weights), **options)

    PreTrainedModel.save_pretrained = save_pretrained


def plain(value):
    """The values of a pretended tensor; any other value itself."""
    return value.inner if isinstance(value, Pretended) else value


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from vla import runtime

    runtime.prepare = lambda *ignored, **also_ignored: None  # torch is imported already
    enable()
    sys.argv = sys.argv[1:]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        kinds = {kind: total(kind) for kind in (UPLOAD, DOWNLOAD, WAIT)}
        print(json.dumps(kinds), file=sys.stderr)
        for (kind, where), number in counts.most_common(40):
            print(f"{number:7d} {kind:9s}{where}", file=sys.stderr)


if __name__ == "__main__":
    main()
