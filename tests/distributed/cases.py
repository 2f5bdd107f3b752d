"""What the ranks of a plan run in tests: `cases.py NAME ARGUMENTS`, with what it gives as JSON on standard output."""

import json
import os
import random
import signal
import sys
import weakref
from collections import Counter
from functools import partial

import numpy as np
import torch
from peft import LoraConfig
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ideoflow import Ideogram4Img2ImgPipeline, Ideogram4Pipeline, Ideogram4Transformer2DModel, save_image
from ideoflow.bundled import SKETCH_FOLDER
from ideoflow.distributed import ParallelConfig, Ranks, enable_parallelism, joined, parallel_pipeline
from ideoflow.distributed.context_parallel import SharedAttnProcessor, share_context
from ideoflow.distributed.parallel_denoiser import share_out
from ideoflow.distributed.ranks import BRANCHES
from ideoflow.engine import Denoiser, Request
from ideoflow.model import Context
from ideoflow.ops import quantize_

SIZES = dict(
    in_channels=8,
    num_layers=3,
    attention_head_dim=16,
    intermediate_size=72,
    adaln_dim=12,
    llm_features_dim=20,
    mrope_section=(4, 2, 2),
)


def transformer(heads: int, seed: int) -> Ideogram4Transformer2DModel:
    """One of random weights, at a scale that keeps signals of order one."""
    model = Ideogram4Transformer2DModel(**SIZES, num_attention_heads=heads).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(draw / (parameter.shape[1] ** 0.5 if "embed" not in name else 1))
        else:
            parameter.copy_(0.1 * draw + name.endswith("weight"))
    made = Denoiser(model, None).velocities(dict.fromkeys(of_noise(), context_of(model)), {})[0]
    size = torch.cat(list(made.values())).std()
    for parameter in model.final_layer.linear.parameters():  # so that velocities have deviation 1, as of real weights
        parameter.div_(size)
    return model


def context_of(model: Ideogram4Transformer2DModel) -> Context:
    """A caption of five tokens and a picture of 8 x 8."""
    features = torch.randn(5, SIZES["llm_features_dim"], generator=torch.Generator().manual_seed(1))
    return Denoiser(model, None).prepare_conditional(features, (8, 8))


def of_noise() -> list[Request]:
    """A request of 8 x 8 tokens."""
    latents = torch.randn(64, SIZES["in_channels"], generator=torch.Generator().manual_seed(2))
    return [Request(None, None, latents, torch.tensor([0.5, 0.0]), (1.0,), (8, 8), prepare=lambda: (None, None))]


def pipeline(heads: tuple[int, int], seed: int = 0) -> Ideogram4Pipeline:
    """Branches of so many heads, and nothing else."""
    return Ideogram4Pipeline(None, None, None, None, transformer(heads[0], seed), transformer(heads[1], seed + 1))


def requests(denoiser: Denoiser, seed: int) -> list[Request]:
    """A ragged mixed stream: captions, sizes, steps and guidance at random, some with one caption for several."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    made: list[Request] = []
    for _ in range(draw.choice((1, 1, 2, 3, 5))):
        grid = draw.randint(1, 7), draw.randint(1, 7)
        features = torch.randn(draw.choice((1, 2, 9, 30, 61)), SIZES["llm_features_dim"], generator=generator)
        guidance = tuple(draw.choice((1.0, 3.0, 7.0)) for _ in range(4))
        contexts = denoiser.prepare_conditional(features, grid), denoiser.prepare_unconditional(grid)
        for _ in range(draw.choice((1, 1, 2))):
            latents = torch.randn(grid[0] * grid[1], SIZES["in_channels"], generator=generator)
            sigmas = torch.linspace(1, 0, 5) ** draw.choice((1, 2))
            made.append(Request(*contexts, latents, sigmas, guidance, grid, step=draw.randint(0, 3)))
    return made


@torch.no_grad()
def velocities(denoiser: Denoiser, seed: int) -> list[torch.Tensor]:
    """Velocities of both branches at a step of `requests`."""
    made = requests(denoiser, seed)
    guided = {one: one.unconditional for one in made if one.guided}
    branches = denoiser.velocities({one: one.conditional for one in made}, guided)
    return [branch[one] for branch in branches for one in made if one in branch]


def bytes_of(ranks: Ranks, denoiser: Denoiser, heads: tuple[int, int], seed: int) -> dict[str, int]:
    """Bytes that all ranks together send in a step of `requests`, by the formulas of docs/scale.md."""
    sent = dict.fromkeys(("attention", "sums", "velocities", "latents", "text"), 0)
    made = requests(denoiser, seed)
    n, t = ranks.config.context, ranks.config.tensor
    shares = share_out(made, ranks.config.data)
    layers, head_dim, channels = SIZES["num_layers"], SIZES["attention_head_dim"], SIZES["in_channels"]
    for replica, own in enumerate(shares):
        for branch, head_count in enumerate(heads):
            taken = [one for one in own if branch == 0 or one.guided]
            texts = [one.conditional.layout.tokens - one.image_tokens if branch == 0 else 0 for one in taken]
            lengths = [(text, one.image_tokens) for text, one in zip(texts, taken, strict=True)]
            lengths.sort(key=sum)
            tokens, images = sum(map(sum, lengths)), sum(image for _, image in lengths)
            width = head_count * head_dim * 4  # bytes of a token's heads in float32
            if (head_count // t) % n == 0:
                sent["attention"] += (4 * (layers - 1) * tokens + 2 * tokens + 2 * images) * width * (n - 1) // n
            else:
                sent["attention"] += layers * 2 * strangers([sum(one) for one in lengths], n) * width
            # Two sums of all tokens in each block, in the last of image tokens alone.
            sent["sums"] += 2 * (t - 1) * 2 * ((layers - 1) * tokens + images) * width
            remote = ranks.lead_of(replica, BRANCHES[branch]) != 0
            sent["velocities"] += (t * (n - 1) + remote) * images * channels * 4
    total = sum(one.image_tokens for one in made)
    sent["latents"] = (ranks.config.size - 1) * total * channels * 4
    holders = ranks.config.size // ranks.config.guidance
    new = {id(one.conditional): one.conditional for one in made}.values()
    sent["text"] = (holders - 1) * sum(len(one.text) for one in new) * heads[0] * head_dim * 4
    return {kind: number for kind, number in sent.items() if number}


def strangers(lengths: list[int], ranks: int) -> int:
    """Tokens that come to ranks from others: of the segments of a rank's tokens, those that are not its."""
    segments = [number for number, length in enumerate(lengths) for _ in range(length)]
    tokens = len(segments)
    found = 0
    for rank in range(ranks):
        own = range(rank * tokens // ranks, (rank + 1) * tokens // ranks)
        touched = {segments[token] for token in own}
        found += sum(segment in touched for segment in segments) - len(own)
    return found


def compare(plan: dict[str, int], heads: list[tuple[int, int]], seeds: int) -> dict[str, object]:
    """How far velocities under a plan are from those of one process over so many streams, and what was sent in all."""
    config = ParallelConfig(**plan)
    worst = largest = 0.0
    formula: Counter[str] = Counter()
    with joined(config, "cpu") as ranks:
        for number, both in enumerate(heads):
            seed = 1000 * number
            alone = pipeline(both, seed)
            plain = Denoiser(alone.transformer, alone.unconditional_transformer)
            with enable_parallelism(pipeline(both, seed), ranks) as pipe:
                if pipe is None:
                    continue
                denoiser = pipe._denoiser(None)
                for n in range(seed, seed + seeds):
                    for velocity, own in zip(velocities(denoiser, n), velocities(plain, n), strict=True):
                        worst = max(worst, float((velocity - own).abs().max()))
                        largest = max(largest, float(own.abs().max()))
                    formula.update(bytes_of(ranks, plain, both, n))
        return {"worst": worst, "largest": largest, "sent": dict(ranks.sent), "formula": dict(formula)}


def pictures(plan: dict[str, int]) -> dict[str, object]:
    """Grey levels that pictures of the bundled model under a plan differ by from those of one process."""
    config = ParallelConfig(**plan)
    with joined(config, "cpu") as ranks, parallel_pipeline(SKETCH_FOLDER, ranks) as pipe:
        if pipe is not None:
            shared = drawn(pipe)
            alone = drawn(Ideogram4Pipeline.from_pretrained(SKETCH_FOLDER))
            apart = [np.abs(one.astype(int) - other).max() for one, other in zip(shared, alone, strict=True)]
            return {"apart": int(max(apart)), "contrast": int(min(np.ptp(one) for one in alone))}
    return {}


def redrawn(plan: dict[str, int]) -> dict[str, object]:
    """As `pictures`, of a picture that is made of another by a pipeline over the components of the shared one."""
    start = Image.new("RGB", (96, 96), "gold")

    def change(pipe: Ideogram4Pipeline) -> np.ndarray:
        pipe = Ideogram4Img2ImgPipeline.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        options = dict(strength=0.7, num_inference_steps=8, generator=generator, **PLAIN)
        return np.asarray(pipe(caption("red", "heart"), image=start, **options).images[0]).astype(int)

    with joined(ParallelConfig(**plan), "cpu") as ranks, parallel_pipeline(SKETCH_FOLDER, ranks) as pipe:
        if pipe is None:
            return {}
        shared, alone = change(pipe), change(Ideogram4Pipeline.from_pretrained(SKETCH_FOLDER))
    return {"apart": int(np.abs(shared - alone).max()), "contrast": int(np.ptp(alone))}


def drawn(pipe: Ideogram4Pipeline) -> list[np.ndarray]:
    """Pictures of two captions in two sizes each."""
    pipe.set_progress_bar_config(disable=True)
    sizes = [(96, 64), (64, 64), (48, 112)]
    images = pipe(
        [caption("red", "heart"), caption("blue", "star"), caption("green", "circle")],
        size=sizes,
        num_inference_steps=6,
        guidance_schedule=None,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
    ).images
    return [np.asarray(image) for image in images]


def caption(color: str, shape: str) -> dict[str, object]:
    """A shape on a plain ground."""
    element = {"type": "obj", "bbox": [200, 300, 775, 700], "desc": f"a flat {color} {shape}"}
    return {"compositional_deconstruction": {"background": "plain white", "elements": [element]}}


def killed(plan: dict[str, int], victim: int, out: str, patience: float) -> dict[str, object]:
    """A rank kills itself between two steps, or in the middle of one, of a picture that is to be saved."""
    steps = iter(range(100))

    def die() -> None:
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with joined(ParallelConfig(**plan), "cpu", patience) as ranks:
        if ranks.rank == victim and victim:  # once its branch has begun the step that others wait for
            plain = SharedAttnProcessor.attend
            SharedAttnProcessor.attend = lambda *given: (die(), plain(*given))[1]
        with parallel_pipeline(SKETCH_FOLDER, ranks) as pipe:
            if pipe is not None:
                pipe.set_progress_bar_config(disable=True)
                callback = (lambda pipe, step, time, tensors: die() or tensors) if victim == 0 else None
                both = [caption("red", "heart"), caption("blue", "star")]  # one for each replica, where there are two
                image = pipe(both, 96, 96, 40, callback_on_step_end=callback, **PLAIN).images[0]
                save_image(image, out)
    return {}


PLAIN = dict(guidance_schedule=None, guidance_scale=4.0)


def quantized(plan: dict[str, int], kind: str) -> dict[str, object]:
    """As `compare`, of one stream, with the blocks' layers in one byte a weight before the plan is applied."""
    worst = 0.0
    with joined(ParallelConfig(**plan), "cpu") as ranks:
        alone, own = pipeline((4, 4)), pipeline((4, 4))
        alone.quantize(kind)
        own.quantize(kind)
        with enable_parallelism(own, ranks) as pipe:
            if pipe is not None:
                plain = velocities(Denoiser(alone.transformer, alone.unconditional_transformer), 5)
                shared = velocities(pipe._denoiser(None), 5)
                worst = furthest(shared, plain)
        kept = own.transformer.layers[0].attention.to_q
        return {"worst": worst, "kind": type(kept).__name__, "rows": len(kept.weight), "scales": len(kept.weight_scale)}


def adapted(plan: dict[str, int]) -> dict[str, object]:
    """How far an adapter of the conditional branch moves velocities, and how far they are from those of one process."""
    with joined(ParallelConfig(**plan), "cpu") as ranks, enable_parallelism(pipeline((2, 2)), ranks) as pipe:
        if pipe is None:
            return {}
        denoiser = pipe._denoiser(None)
        before = velocities(denoiser, 5)
        alone = pipeline((2, 2))
        for transformer in (pipe.transformer, alone.transformer):
            transformer.add_adapter(LoraConfig(target_modules=["to_q", "w2"]), "ink")
            for number, (name, parameter) in enumerate(transformer.named_parameters()):
                if "lora_" in name:
                    torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(number))
        shared = velocities(denoiser, 5)
        plain = velocities(Denoiser(alone.transformer, alone.unconditional_transformer), 5)
    return {"worst": furthest(shared, plain), "moved": furthest(shared, before)}


def furthest(some: list[torch.Tensor], others: list[torch.Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def failing(plan: dict[str, int], culprit: int) -> dict[str, object]:
    """A rank that fails by itself in the middle; after it, rank 0 asks for another step."""
    told = []
    with joined(ParallelConfig(**plan), "cpu", 4) as ranks:
        if ranks.rank == culprit:
            SharedAttnProcessor.attend = fail
        with enable_parallelism(pipeline((2, 2)), ranks) as pipe:
            for _ in range(2) if pipe is not None else ():
                try:
                    velocities(pipe._denoiser(None), 5)
                except Exception as error:
                    told.append(f"{type(error).__name__}: {error}")
    return {"told": told}


def fail(*given: object) -> None:
    raise MemoryError("no room for attention")


def changed(plan: dict[str, int]) -> dict[str, object]:
    """What rank 0 is told of changes that it makes alone."""
    with joined(ParallelConfig(**plan), "cpu") as ranks, enable_parallelism(pipeline((2, 2)), ranks) as pipe:
        if pipe is None:
            return {}
        denoiser = pipe._denoiser(None)
        velocities(denoiser, 5)
        changes = {"fuse": pipe.fuse_projections, "quantize": partial(pipe.quantize, "int8")}
        if "context" in plan:
            changes = {"other weights": partial(quantize_, pipe.transformer, "int8")}
        told = {}
        for name, change in (changes | {"step": partial(velocities, denoiser, 5)}).items():
            try:
                change()
            except (TypeError, ValueError) as error:
                told[name] = str(error)
        return told


class Peak(TorchDispatchMode):
    """The most bytes of tensors that were made in the block and lived at a time."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self.alive: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        place = storage._cdata
        if place not in self.alive and place not in self.weights:
            self.alive[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, place)

    def _gone(self, place: int) -> None:
        self.now -= self.alive.pop(place)


def memory(plan: dict[str, int]) -> dict[str, object]:
    """Bytes beyond weights and context that a pass takes at its peak, in one process and in this rank."""
    # Channels of a head and feed-forward channels to the hidden width as of the published weights.
    SIZES.update(attention_head_dim=256, mrope_section=(64, 32, 32), intermediate_size=1024 * 8 // 3 // 4 * 4)
    model = transformer(4, 0)
    denoiser = Denoiser(model, None)
    sizes = [(40, (16, 24)), (200, (40, 30)), (7, (9, 11))]
    features = [torch.randn(text, SIZES["llm_features_dim"]) for text, _ in sizes]
    context = Context.cat(
        [denoiser.prepare_conditional(*both) for both in zip(features, dict(sizes).values(), strict=True)]
    )
    latents = torch.randn(len(context.layout.image), SIZES["in_channels"])
    times = torch.tensor([0.1, 0.5, 0.9])
    peaks = []
    with joined(ParallelConfig(**plan), "cpu") as ranks, torch.no_grad():
        for _ in "alone", "shared":
            model.velocity(latents, times, context)  # whatever is kept from one pass to the next is made
            with Peak(model) as peak:
                model.velocity(latents, times, context)
            peaks.append(peak.most)
            if len(peaks) == 1:
                share_context(model, ranks.context)
    return {"alone": peaks[0], "shared": peaks[1]}


CASES = {
    function.__name__: function
    for function in (adapted, changed, compare, failing, killed, memory, pictures, quantized, redrawn)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    given = CASES[sys.argv[1]](**json.loads(sys.argv[2]))
    print("gave " + json.dumps(given), flush=True)
