"""Sessions of the main command as forked processes, so that the libraries are loaded once."""

import os
import signal
import sys
import time
import traceback
from pathlib import Path


def load_libraries() -> None:
    """Import the slow libraries in this process."""
    from vla import runtime

    runtime.prepare(1)
    # It has to run once, before torch is loaded: the sessions must not run it again.
    runtime.prepare = lambda num_threads=None, offline=True: None
    import torch

    torch.set_num_threads(1)
    import timm  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.llama.tokenization_llama  # noqa: F401


def fork_session(arguments: list[str], log: Path) -> int:
    """Start the main command in a forked process; its process id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        from scripts.train_vla import main

        code = main(arguments)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def wait_for_session(
    process: int, seconds: float | None = None, kill: signal.Signals | None = None
) -> tuple[int | None, float]:
    """Wait for a session, or send it a signal first.

    Returns:
        The exit code (negative: a signal; None: it still runs after `seconds`), and the seconds of
        the wait.
    """
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
