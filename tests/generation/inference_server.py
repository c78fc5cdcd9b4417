"""A small inference server with the routes of vLLM and SGLang, and a model of transformers behind it.

It knows the fields of requests and answers that `server_signatures.json` has from the packages, and
refuses any other.
"""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from vla.generation.generate import generate
from vla.generation.sampling import Sampling

SIGNATURES = json.loads((Path(__file__).parent / "server_signatures.json").read_text())


class InferenceServer:
    """The state of the server. `faults` are taken one a request: a status code to answer with,
    `drop` (no answer), `half` (a completion is missing), `abort` (one is cut short), or a function
    that is called first."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.lock = threading.Lock()
        self.faults: list = []
        self.requests = Counter()
        self.temperature_in_logprobs = True
        self.start()

    def start(self) -> None:
        """As after a start: the weights of the folder it was launched with."""
        self.load(self.folder)
        self.version = "default"

    def load(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, route: str, body: dict):
        """(status, JSON) of a request."""
        self.requests[route] += 1
        fields = SIGNATURES[self.kind]["requests"].get(route, [])
        unknown = set(body) - set(fields)
        if route not in SIGNATURES[self.kind]["routes"]:
            return 404, {"detail": "Not Found"}
        if unknown:
            return 400, {"error": f"unknown fields {sorted(unknown)}"}
        with self.lock:
            return 200, getattr(self, route.strip("/").replace("/", "_"))(body)

    def v1_completions(self, body):
        assert body["ignore_eos"] is body["return_token_ids"] is True
        draws = self.draw(
            body["prompt"], body["temperature"], body["max_tokens"], body["stop_token_ids"]
        )
        choices = [
            {
                "index": index,
                "text": "",
                "finish_reason": reason,
                "token_ids": ids,
                "logprobs": {"token_logprobs": logprobs, "tokens": [], "top_logprobs": []},
            }
            for index, (ids, logprobs, reason) in enumerate(draws)
        ]
        for choice in choices:
            assert set(choice) <= set(SIGNATURES["vllm"]["answers"]["choice"])
            assert set(choice["logprobs"]) <= set(SIGNATURES["vllm"]["answers"]["logprobs"])
        return {"choices": choices[::-1]}  # the order is not promised

    def weight_info(self, body):
        return {"weight_version": self.version}

    model_info = weight_info

    def collective_rpc(self, body):
        assert body["method"] == "reload_weights"
        assert set(body["kwargs"]) <= set(SIGNATURES["vllm"]["requests"]["reload_weights"])
        self.load(Path(body["kwargs"]["weights_path"]))
        return {"results": [None]}

    def reset_prefix_cache(self, body):
        return {"success": True}

    def update_weight_version(self, body):
        self.version = body["new_version"]
        return {"success": True}

    def update_weights_from_disk(self, body):
        self.load(Path(body["model_path"]))
        self.version = body["weight_version"]
        return {"success": True, "message": "", "num_paused_requests": 0}

    def generate(self, body):
        settings = body["sampling_params"]
        assert set(settings) <= set(SIGNATURES["sglang"]["requests"]["sampling_params"])
        draws = self.draw(
            body["input_ids"],
            settings["temperature"],
            settings["max_new_tokens"],
            settings["stop_token_ids"],
        )
        return [
            {
                "meta_info": {
                    "finish_reason": {"type": reason},
                    "output_token_logprobs": [
                        [value, token, None] for value, token in zip(logprobs, ids, strict=True)
                    ],
                }
            }
            for ids, logprobs, reason in draws
        ]

    def draw(self, prompts, temperature, max_tokens, stop_ids):
        """(token ids, log-probabilities, finish reason) of each prompt."""
        longest = max(map(len, prompts))
        tokens = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
        mask = torch.arange(longest) < torch.tensor([len(prompt) for prompt in prompts])[:, None]
        greedy = temperature == 0
        sampling = Sampling() if greedy else Sampling(temperature)
        drawn = generate(self.model, tokens, mask, sampling, max_tokens, stop_ids, 0, greedy)
        draws = []
        for ids, values, kept in zip(drawn.tokens, drawn.logprobs, drawn.mask, strict=True):
            values = values if self.temperature_in_logprobs else values - 0.5
            reason = "stop" if int(ids[kept][-1]) in stop_ids else "length"
            draws.append((ids[kept].tolist(), values[kept].tolist(), reason))
        return draws


@contextmanager
def serving(kind: str, folder: Path):
    """A running server; (its state, its URL)."""
    state = InferenceServer(kind, folder)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply({})

        def do_POST(self):
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body):
            fault = state.faults.pop(0) if state.faults else None
            if callable(fault):
                fault()
            if fault == "drop":
                self.connection.close()
                return
            status, answer = (
                (fault, {}) if isinstance(fault, int) else state.answer(self.path, body)
            )
            entries = (
                answer["choices"] if isinstance(answer, dict) and "choices" in answer else answer
            )
            if fault == "half":
                entries.pop()
            elif fault == "abort":
                shorten(entries[0])
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *words: None  # a client that went away
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def shorten(entry):
    """Take the last draw of a completion away, as if it had been aborted."""
    if "token_ids" in entry:
        entry["token_ids"].pop()
        entry["logprobs"]["token_logprobs"].pop()
        entry["finish_reason"] = "abort"
    else:
        entry["meta_info"]["output_token_logprobs"].pop()
        entry["meta_info"]["finish_reason"] = {"type": "abort"}
