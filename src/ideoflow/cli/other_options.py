"""Options of other programs that a command does not have: what there is here instead."""

from __future__ import annotations

from collections.abc import Iterable

_SIZE = "--size WIDTHxHEIGHT, such as --size 1024x768"
_NO_NEGATIVE = "the unconditional branch reads no text, so say in the caption what is to be there"

# Of each command's function: what to give, or why there is nothing, and the names that it goes by elsewhere.
INSTEAD = {
    "generate": {
        _SIZE: "width height resolution aspect-ratio W H",
        "the caption or its file stands without an option: ideoflow generate caption.json": "prompt prompts caption"
        " text prompt-file from-file p",
        f"{_NO_NEGATIVE}, and with --guidance how closely it is followed": "negative-prompt negative",
        "--steps": "num-inference-steps num-steps sampling-steps",
        "--guidance": "guidance-scale cfg cfg-scale true-cfg-scale scale",
        "the steps are always Euler steps, and --preset or --steps says how many": "sampler sampler-name"
        " sampling-method scheduler eta",
        "pictures are drawn from captions alone": "image init-image init-img input-image mask strength control-image",
        "--out": "output outdir output-dir output-path save-path",
        "--n, the pictures of each caption": "batch-size batch-count num-images num-images-per-prompt num-samples",
        "--model": "model-path model-id model-name ckpt ckpt-path checkpoint diffusion-model"
        " pretrained-model-name-or-path",
        "--lora": "lora-path lora-weights adapter",
        "--lora PATH:SCALE, such as --lora heart.safetensors:0.8": "lora-scale lora-strength lora-weight",
        "--dtype": "precision torch-dtype fp16 bf16 half",
        "--quantize": "fp8 int8",
        "--memory, such as --memory 12GB, which offloads what does not fit": "offload cpu-offload lowvram low-vram"
        " medvram vae-tiling",
        "--device cuda, or --device cuda:1 for the second": "gpu",
        "--seed": "random-seed manual-seed",
    },
    "batch": {
        _SIZE: "width height resolution aspect-ratio",
        "the file stands without an option: ideoflow batch captions.jsonl": "input input-file prompts captions"
        " prompt-file data",
        f"{_NO_NEGATIVE}, and with --guidance how closely it is followed": "negative-prompt negative",
        "--steps": "num-inference-steps num-steps",
        "--guidance": "guidance-scale cfg cfg-scale",
        "--out": "output outdir output-dir output-path",
        "--max-requests, the pictures of a pass, or --max-tokens": "batch-size",
        "--n, the pictures of each row": "num-images-per-prompt num-images",
        "--shard, such as --shard 2/8": "shards rank world-size num-shards shard-index",
        "--per-file, the pictures of a tar or Parquet file": "maxcount shard-size samples-per-shard",
        "--as webdataset": "webdataset wds tar",
        "--as parquet": "parquet",
        "nothing: a run goes on where an earlier one into the same place stopped": "resume",
        "--model": "model-path model-id checkpoint",
        "--lora": "lora-path adapter",
        "--dtype": "precision fp16 bf16",
        "--device cuda, or --device cuda:1 for the second": "gpu",
    },
    "train": {
        "--lr": "learning-rate",
        "--schedule": "lr-scheduler",
        "--warmup": "lr-warmup-steps warmup-steps",
        "--steps": "max-train-steps max-steps num-steps",
        "--steps: a batch holds as many pictures as --tokens allows, and --dry-run says how many steps see all of"
        " them": "num-train-epochs max-train-epochs epochs",
        "--tokens, the text and image tokens of a batch, for pictures of all sizes are packed together": "batch-size"
        " train-batch-size",
        "--accumulate": "gradient-accumulation-steps",
        "--clip": "max-grad-norm",
        "--optimizer": "optimizer-type use-8bit-adam",
        "--pixels, the most of a picture: pictures of any size are packed together": "resolution width height size"
        " enable-bucket",
        "--crop": "center-crop",
        "--data": "train-data-dir data-dir instance-data-dir dataset dataset-name",
        "--trigger, and a caption beside each picture": "instance-prompt trigger-word",
        "a caption stands beside each picture, and --previews are drawn": "prompt validation-prompt sample-prompts",
        _NO_NEGATIVE: "negative-prompt",
        "--rank": "network-dim lora-rank",
        "--alpha": "network-alpha lora-alpha",
        "--targets": "target-modules lora-layers",
        "--dora": "use-dora",
        "--lora-dropout": "network-dropout",
        "--model": "model-path model-id ckpt pretrained-model-name-or-path",
        "--out": "output output-dir output-name",
        "--save-every": "checkpointing-steps save-steps save-every-n-steps",
        "--keep": "checkpoints-total-limit",
        "--resume, with --out": "resume-from-checkpoint",
        "--preview-every": "validation-steps sample-every-n-steps",
        "--preview-guidance": "guidance-scale guidance cfg",
        "--preview-steps": "num-inference-steps",
        "--dtype": "mixed-precision precision fp16 bf16",
        "--ema, the decay of the average": "use-ema ema-decay",
        "--min-snr": "snr-gamma min-snr-gamma",
        "--caption-dropout": "caption-dropout-rate",
        "the file stands without an option: ideoflow train mine.toml": "config config-file",
    },
    "convert": {
        "the files stand without options: ideoflow convert SRC DST --to FORM": "input output out output-path dump-path"
        " model model-path checkpoint-path",
        "--to": "form format type",
        "--to fp8": "quantize fp8",
        "--dtype": "precision half fp16 bf16",
        "--overwrite": "force",
    },
    "inspect": {"the file or folder stands without an option: ideoflow inspect PATH": "input model model-path lora"},
    "plan": {
        _SIZE: "width height resolution",
        "--memory": "vram gpu-memory",
        "--host-memory": "ram cpu-memory",
        "--pictures": "batch-size num-images",
        "--steps": "num-inference-steps",
        "--caption-tokens": "max-sequence-length",
        "--model": "model-path",
        "--dtype": "precision",
    },
    "simulate": {
        "--job, such as --job 1024x1024:20, a size and its steps": "size width height resolution num-inference-steps",
        "--count": "requests num-requests num-prompts",
        "--rate": "request-rate qps",
        "--batch, or --max-requests": "batch-size",
        "--gpus": "num-gpus gpu-count world-size",
        "--parallel guidance=2,context=2": "plan plans tp tensor-parallel ulysses",
        "--json": "output out",
    },
    "write_caption": {
        'the words stand without an option: ideoflow caption write "a red heart on pink"': "prompt text words",
        _SIZE: "width height resolution aspect-ratio",
        "--no-layout, with --endpoint": "no-boxes plain",
        "--endpoint URL --llm NAME, of a language model": "model base-url api-base provider ollama",
        "nothing: a language model's key is read from the environment's IDEOFLOW_LLM_KEY": "api-key key token",
        "nothing: a language model samples as its server is set up to": "seed temperature top-p max-tokens",
        "--llm-timeout": "timeout",
        "--out": "output",
        "--overwrite": "force",
    },
    "describe": {
        "the picture stands without an option: ideoflow caption describe photo.jpg": "image input picture file",
        "--endpoint URL --llm NAME, of a language model": "model base-url api-base provider ollama",
        "nothing: a language model's key is read from the environment's IDEOFLOW_LLM_KEY": "api-key key token",
        "nothing: a language model samples as its server is set up to": "seed temperature top-p max-tokens",
        "--llm-timeout": "timeout",
        "--out": "output",
        "--overwrite": "force",
    },
    "edit_caption": {
        'the caption and the wish stand without options: ideoflow caption edit heart.json "make it blue"': "caption"
        " wish prompt input instruction",
        "--endpoint URL --llm NAME, of a language model": "model base-url api-base provider ollama",
        "nothing: a language model's key is read from the environment's IDEOFLOW_LLM_KEY": "api-key key token",
        "nothing: a language model samples as its server is set up to": "seed temperature top-p max-tokens",
        "--llm-timeout": "timeout",
        "--out": "output",
        "--overwrite": "force",
    },
    "lint": {"files stand without an option: ideoflow caption lint FILE": "input file prompt caption"},
    "check": {"files stand without an option: ideoflow caption check FILE": "input file prompt caption"},
    "fix": {
        "files stand without an option: ideoflow caption fix FILE": "input file prompt caption",
        "--out": "output",
        "--in-place": "inplace",
        "--overwrite": "force",
        "--boxes": "box-format bbox-format",
        "--box-size": "width height",
    },
}


def instead(command: str, option: str, known: Iterable[str]) -> str | None:
    """What there is in place of an option that a command does not have, as a sentence; None where nobody knows.

    Args:
        command: The name of the command's function.
        option: The option as it was typed, without a value.
        known: The options of the command.
    """
    name = option.lstrip("-").replace("_", "-")
    answers = [answer for answer, names in INSTEAD.get(command, {}).items() if name in names.split()]
    if f"--{name}" in known:
        answers = [f"--{name}"]  # typed with the underlines of Python's arguments
    if not answers:
        return None
    return f"there is no option {option}: {'give ' * answers[0].startswith('--')}{answers[0]}."
