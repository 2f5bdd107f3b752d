"""What holding a local model to the caption schema costs a token; or how many captions of an endpoint are right.

Run as `python -m benchmarks.writing` for the first: the bundled model's text encoder with a random head, in turn free
and held, each row for as many tokens. Run with `--endpoint URL --llm NAME` for the second: fifty prompts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks._measure import alternate, machine, make_parser, publish
from ideoflow import sketch
from ideoflow.captions.writing import Endpoint, WritingError, write
from ideoflow.captions.writing.grammar import caption_grammar
from ideoflow.pipeline.prompt_enhancer import Ideogram4PromptEnhancerHead, generate, writes

THINGS = (
    "a red apple", "two cats", "an old lighthouse", "a jazz poster that says BLUE", "a street at night",
    "a bowl of soup", "a paper boat", "a sign with the word OPEN", "a mountain lake", "a robot reading",
)  # fmt: skip
WAYS = ("{}", "a photograph of {}", "{} in watercolour", "a minimalist poster of {}", "{} in the rain, seen from above")


def main() -> None:
    """Measure, print, and write the figures."""
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=4, help="prompts of a batch (%(default)s)")
    parser.add_argument("--tokens", type=int, default=160, help="tokens of each (%(default)s)")
    parser.add_argument("--endpoint", help="address of a chat server")
    parser.add_argument("--llm", help="name of its model")
    parser.add_argument("--count", type=int, default=50, help="prompts that it is asked (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=900, help="tokens of its answers (%(default)s)")
    parser.add_argument("--kept", type=Path, default=Path("outputs/writing.jsonl"),
                        help="file of answers, from which a run that was stopped goes on (%(default)s)")  # fmt: skip
    options = parser.parse_args()
    if options.endpoint:
        options.kept.parent.mkdir(parents=True, exist_ok=True)
        report = _endpoint(Endpoint(options.endpoint, options.llm or "", timeout=600, max_tokens=options.max_tokens,
                                    temperature=0.5), options.count, options.kept)  # fmt: skip
    else:
        report = _cost(options.rows, options.tokens, options.rounds)
    publish({"benchmark": "writing", "machine": machine(), **report}, options.out)


def _cost(rows: int, tokens: int, rounds: int) -> dict[str, object]:
    """Seconds a token, free and held to the schema."""
    pipe = sketch.load()
    torch.manual_seed(0)
    head = Ideogram4PromptEnhancerHead(pipe.text_encoder.config.text_config.hidden_size, len(pipe.tokenizer))
    model = writes(pipe.text_encoder, head)
    told = [[{"role": "user", "content": "a red heart on pink"}]] * rows
    # Texts without an end, so that both sides take as many tokens.
    grammar = caption_grammar(True, (("", 100_000), ("high_level_description", 100_000)))

    def run(held: str | None) -> None:
        generate(model, pipe.tokenizer, told, grammar=held, temperature=1.0, max_new_tokens=tokens, seed=0,
                 device=torch.device("cpu"), closes=False)  # fmt: skip

    begun = time.perf_counter()
    run(grammar)
    first = time.perf_counter() - begun
    seconds = alternate({"free": lambda: run(None), "held": lambda: run(grammar)}, rounds)
    medians = {name: statistics.median(own) / tokens for name, own in seconds.items()}
    return {
        "rows": rows, "tokens": tokens, "vocabulary": len(pipe.tokenizer), "seconds_a_token": medians,
        "ratio": medians["held"] / medians["free"], "seconds_of_the_first": first,
    }  # fmt: skip


def _endpoint(endpoint: Endpoint, count: int, kept: Path) -> dict[str, object]:
    """How many captions keep the schema, in how many attempts; prompts that a file has are not asked again."""
    prompts = [way.format(thing) for way in WAYS for thing in THINGS][:count]
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {one["prompt"] for one in done}
    for prompt in prompts:
        if prompt in known:
            continue
        print(f"{len(done) + 1} of {len(prompts)}: {prompt}", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        found: dict[str, object] = {"prompt": prompt}
        try:
            written = write(prompt, endpoint, (1024, 1024))
        except WritingError as error:
            found["fault"] = str(error)[:200]
        else:
            assert written.caption.check() == []
            again = next((note for note in written.notes if note.startswith("took ")), "took 1 attempt")
            found |= {"caption": written.caption.line(), "attempts": again}
        done.append(found | {"seconds": time.perf_counter() - begun})
        with kept.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    faults = [one["fault"] for one in done if "fault" in one]
    return {
        "llm": endpoint.model, "prompts": len(done), "right": len(done) - len(faults),
        "attempts": Counter(one["attempts"] for one in done if "attempts" in one), "faults": faults,
        "seconds": statistics.median(one["seconds"] for one in done),
    }  # fmt: skip


if __name__ == "__main__":
    main()
