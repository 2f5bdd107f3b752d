"""A small language model behind OpenAI's chat API, held to JSON schemas: what `benchmarks.writing` may ask.

Run as `python -m benchmarks._chat_model MODEL.gguf --port 8377`. One request at a time, on the CPU, by transformers and
llguidance; what all requests begin with is computed once.
"""

from __future__ import annotations

import argparse
import copy
import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import llguidance
import llguidance.hf
import llguidance.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from ideoflow.pipeline.prompt_enhancer import _unpacked


class ChatModel:
    """A model of a GGUF file.

    Args:
        file: The file.
    """

    def __init__(self, file: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        self.model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
        self.size = self.model.config.vocab_size
        self.known = llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=self.size)
        self.read: list[int] = []
        self.cache: Any = None

    @torch.no_grad()
    def answer(self, body: dict[str, Any]) -> tuple[str, str]:
        """The text of an answer, and why it ended."""
        ids = self.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        scores, cache = self._prompt(list(ids))
        schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
        matcher = None
        if schema is not None:
            options = json.dumps({**schema, "x-guidance": {"whitespace_flexible": False}})
            matcher = llguidance.LLMatcher(self.known, llguidance.LLMatcher.grammar_from_json_schema(options))
            if error := matcher.get_error():
                raise ValueError(error)
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        bits = llguidance.torch.allocate_token_bitmask(1, self.size)
        tokens: list[int] = []
        for _ in range(body.get("max_tokens") or 1000):
            if matcher is not None:
                llguidance.torch.fill_next_token_bitmask(matcher, bits, 0)
                scores = scores.masked_fill(~_unpacked(bits, self.size), -torch.inf)
            shares = (scores / max(body.get("temperature") or 0.7, 1e-3)).softmax(-1)
            token = int(torch.multinomial(shares, 1, generator=generator))
            if token == self.tokenizer.eos_token_id:
                return self.tokenizer.decode(tokens, skip_special_tokens=True), "stop"
            tokens.append(token)
            if (
                matcher is not None
                and matcher.consume_token(token)
                and (matcher.is_stopped() or matcher.is_accepting())
            ):
                return self.tokenizer.decode(tokens, skip_special_tokens=True), "stop"
            scores = self.model(torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[:, -1]
        return self.tokenizer.decode(tokens, skip_special_tokens=True), "length"

    def _prompt(self, ids: list[int]) -> tuple[torch.Tensor, Any]:
        """Scores after a prompt, and its cache; the beginning that the last prompt had is not computed again."""
        same = next((n for n, (a, b) in enumerate(zip(ids, self.read, strict=False)) if a != b), 0)
        same = min(same, len(ids) - 1)
        cache = DynamicCache()
        if same and self.cache is not None:
            cache = copy.deepcopy(self.cache)
            if same < len(self.read):
                cache.crop(same - len(self.read))  # negative: how many are taken off
        scores = self.model(torch.tensor([ids[same:]]), past_key_values=cache, use_cache=True).logits[:, -1]
        self.read, self.cache = ids, copy.deepcopy(cache)
        return scores, cache


def main() -> None:
    """Serve until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8377)
    options = parser.parse_args()
    chat = ChatModel(options.file)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                text, ended = chat.answer(body)
                choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
                status, told = 200, {"id": "chat", "object": "chat.completion", "created": 0, "choices": [choice]}
            except ValueError as error:
                status, told = 400, {"error": {"message": str(error)}}
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    print(f"http://127.0.0.1:{options.port}/v1", flush=True)
    HTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
