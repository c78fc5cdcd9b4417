"""Checked readers of larger files: safetensors, parquet tables and tokenizers.

Like the readers of `vla.files.reading` they raise `DamagedFile` with path, fault and remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla.files.reading import RESTORE, DamagedFile, JsonMapping, JsonObject, read_json, read_text


@contextmanager
def translating_library_errors(path: Path | str, remedy: str = RESTORE) -> Iterator[None]:
    """Turn any error of a library within the block into a `DamagedFile`: libraries raise many
    kinds."""
    try:
        yield
    except (DamagedFile, MemoryError):
        raise
    except Exception as error:
        raise DamagedFile(path, error, remedy) from None


def check_file(path: Path, remedy: str = RESTORE) -> None:
    """Refuse a path that is missing, a folder or empty.

    Raises DamagedFile.
    """
    if path.is_dir():
        raise DamagedFile(path, "it is a folder, a file is expected", remedy)
    if not path.exists():
        raise DamagedFile(path, "it does not exist", remedy)
    if path.stat().st_size == 0:
        raise DamagedFile(path, "it is empty", remedy)


def read_safetensors(path: Path, remedy: str = RESTORE, framework: str = "pt") -> JsonObject:
    """Tensors on the CPU by name; NumPy arrays with `framework` "np"."""
    return read_safetensors_with_metadata(path, remedy, framework)[0]


def read_safetensors_with_metadata(
    path: Path, remedy: str = RESTORE, framework: str = "np"
) -> tuple[JsonObject, Mapping[str, str]]:
    """Tensors by name, and the metadata in the header of their file."""
    from safetensors import safe_open

    check_file(path, remedy)
    with translating_library_errors(path, remedy), safe_open(path, framework) as opened:
        names = opened.keys()
        return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}


ROWS = ".rows"
"""Suffix of a tensor with the last rows of a weight, whose other rows are those of a base model."""


def load_weights(model: Any, weights: JsonMapping, path: Path, remedy: str = RESTORE) -> None:
    """Load weights that were read from `path` into a model.

    Raises DamagedFile unless they are complete, of the model's shapes, and finite.
    """
    state = model.state_dict()
    # A checkpoint of an earlier version holds the weights of the base too.
    known = {*state, *(name for name, _ in model.named_parameters(remove_duplicate=False))}
    storages = {state[name].data_ptr() for name in weights if name in state}
    for name, tensor in state.items():
        if name in weights and weights[name].shape != tensor.shape:
            shapes = f"{list(weights[name].shape)}, the model expects {list(tensor.shape)}"
            raise DamagedFile(path, f"the tensor {name} has the shape {shapes}", remedy)
        # Tied weights are stored once, under one of their names.
        is_tied = tensor.numel() > 0 and tensor.data_ptr() in storages
        is_whole = name.removesuffix(ROWS) in weights
        if not is_whole and not is_tied:
            raise DamagedFile(path, f"the tensor {name} is missing", remedy)
    for name, tensor in weights.items():
        if name not in known:
            raise DamagedFile(path, f"the tensor {name} is not of this model", remedy)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise DamagedFile(path, f"the tensor {name} holds numbers that are not finite", remedy)
    model.load_state_dict(weights, strict=False)


def read_table(
    paths: Path | Sequence[Path], columns: Sequence[str] | None = None, remedy: str = RESTORE
) -> Any:
    """The rows of parquet files as one pyarrow table.

    Raises DamagedFile where a file lacks one of `columns`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for path in [paths] if isinstance(paths, Path) else paths:
        check_file(path, remedy)
        missing = [name for name in columns or () if name not in column_names(path, remedy)]
        if missing:
            raise DamagedFile(path, f"it has no column {', '.join(missing)}", remedy)
        with translating_library_errors(path, remedy):
            tables.append(pq.read_table(path, columns=columns))
    with translating_library_errors(paths if isinstance(paths, Path) else paths[0].parent, remedy):
        return pa.concat_tables(tables, promote_options="permissive")


def column_names(path: Path, remedy: str = RESTORE) -> list[str]:
    """The column names of a parquet file."""
    import pyarrow.parquet as pq

    check_file(path, remedy)
    with translating_library_errors(path, remedy):
        return list(pq.read_schema(path).names)


def read_tokenizer(folder: Path, remedy: str = RESTORE) -> Any:
    """A fast tokenizer, saved by `save_pretrained`."""
    from transformers import PreTrainedTokenizerFast

    if not folder.is_dir():
        raise DamagedFile(folder, "there is no such folder", remedy)
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        read_json(path, remedy=remedy)
    if (folder / "chat_template.jinja").exists():
        read_text(folder / "chat_template.jinja", remedy)
    with translating_library_errors(folder / "tokenizer.json", remedy):
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
