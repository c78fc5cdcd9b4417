"""Sessions of the main command as forked processes: the libraries are loaded once."""

import os
import signal
import sys
import time
import traceback
from pathlib import Path


def load_libraries() -> None:
    """All that takes long to import, in this process."""
    from vla import runtime

    runtime.prepare(1)
    runtime.prepare = lambda num_threads=None, offline=True: (
        None
    )  # it has to run once, before torch is loaded
    import torch

    torch.set_num_threads(1)
    import timm  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama  # noqa: F401


def fork_session(arguments: list[str], log: Path) -> int:
    """Start the main command in a process of its own; its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
        from scripts.train_vla import main

        code = main(arguments)
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def wait_for_session(
    process: int, seconds: float | None = None, kill: signal.Signals | None = None
) -> tuple[int | None, float]:
    """How a session ended (a signal's number is negative; None: it has not after `seconds`), and
    how long it took."""
    begun = time.monotonic()
    if kill is not None:
        os.kill(process, kill)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        took = time.monotonic() - begun
        if ended:
            return os.waitstatus_to_exitcode(status), took
        if seconds is not None and took > seconds:
            return None, took
        time.sleep(0.02)
