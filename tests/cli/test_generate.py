"""`ideoflow generate` on a tiny random model: prompts, options, files, and pictures made again from their files."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ideoflow import Caption, Ideogram4Pipeline
from ideoflow.checkpoints.convert import convert
from ideoflow.cli import app
from ideoflow.presets import PRESETS
from ideoflow.sketch import GUIDANCE

CAPTION = {"compositional_deconstruction": {"background": "plain red", "elements": [{"type": "obj", "desc": "a dot"}]}}
LINE = json.dumps(CAPTION, separators=(",", ":"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generate(tiny_folder: Path):
    """Run the command on the tiny model, small and short unless told otherwise."""

    def run(*arguments: str, fails: int = 0, **kwargs: str) -> Result:
        defaults = {"--model": str(tiny_folder), "--size": "48x32", "--steps": "2", "--seed": "5", "--device": "cpu"}
        options = [part for key, value in defaults.items() if key not in arguments for part in (key, value)]
        return invoke(*options, *arguments, fails=fails, **kwargs)

    return run


def invoke(*arguments: str, fails: int = 0, **kwargs: str) -> Result:
    result = CliRunner().invoke(app, ["generate", *arguments], **kwargs)
    assert result.exit_code == fails, result.output
    if fails:
        assert isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
    return result


def again(*arguments: str) -> Result:
    """Make pictures again with the model that their files name."""
    return invoke(*arguments, "--trust-settings")


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def settings(path: str | Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.text["ideoflow"])


def test_it_draws_what_the_pipeline_draws(generate, pipeline: Ideogram4Pipeline):
    generate(LINE, "--out", "a.png", "--preset", "turbo", "--steps", "3")
    generator = torch.Generator().manual_seed(5)
    preset = PRESETS["V4_TURBO_12"].with_steps(3)
    image = pipeline(LINE, size=(48, 32), preset=preset, generator=generator).images[0]
    np.testing.assert_array_equal(pixels("a.png"), np.asarray(image))


def test_guidance_replaces_the_presets(generate, pipeline: Ideogram4Pipeline):
    generate(LINE, "--out", "a.png", "--guidance", "2.5")
    generator = torch.Generator().manual_seed(5)
    preset = PRESETS["V4_DEFAULT_20"].with_steps(2)
    image = pipeline(LINE, size=(48, 32), preset=preset, guidance_scale=2.5, generator=generator).images[0]
    np.testing.assert_array_equal(pixels("a.png"), np.asarray(image))


def test_the_paths_go_to_standard_output(generate):
    result = generate(LINE, "--out", "x/a.png", "-n", "2")
    assert result.stdout.splitlines() == ["x/a-0.png", "x/a-1.png"]


@pytest.mark.parametrize("form", ["json file", "txt file", "argument", "standard input"])
def test_a_caption_reads_the_same_from_everywhere(generate, form: str):
    Path("c.json").write_text(json.dumps(CAPTION, indent=2), encoding="utf-8")
    Path("c.txt").write_text("\ufeff" + LINE + "\n", encoding="utf-8")
    prompt = {"json file": "c.json", "txt file": "c.txt", "argument": LINE, "standard input": "-"}[form]
    generate(prompt, "--out", "a.png", input=json.dumps(CAPTION))
    assert settings("a.png")["caption"] == LINE


def test_plain_text_is_wrapped_into_a_caption(generate):
    generate("a red dot", "--out", "a.png")
    caption = json.loads(settings("a.png")["caption"])
    assert "a red dot" in json.dumps(caption) and "compositional_deconstruction" in caption


def test_no_wrap_sends_plain_text_as_it_is(generate):
    generate("a red dot", "--no-wrap", "--out", "a.png")
    assert settings("a.png")["caption"] == "a red dot"


def test_picture_i_of_each_prompt_has_the_seed_plus_i(generate):
    generate(LINE, "a blue dot", "-n", "2", "--out", "{index}.png")
    assert [settings(f"{i}.png")["seed"] for i in range(4)] == [5, 6, 5, 6]
    assert settings("0.png")["caption"] == settings("1.png")["caption"] != settings("2.png")["caption"]


def test_a_picture_drawn_with_others_is_the_picture_drawn_alone(generate):
    generate(LINE, "a blue dot", "--size", "48x32", "--size", "32x64", "-n", "2", "--out", "{index}.png")
    generate("a blue dot", "--size", "32x64", "--seed", "6", "--out", "alone.png")
    assert np.abs(pixels("3.png").astype(int) - pixels("alone.png")).max() <= 1


def test_sizes_go_with_the_prompts_in_order(generate):
    generate(LINE, "a blue dot", "--size", "48x32", "--size", "32x64", "--out", "{index}.png")
    assert pixels("0.png").shape == (32, 48, 3) and pixels("1.png").shape == (64, 32, 3)


def test_a_random_seed_is_kept_in_the_file_and_its_name(tiny_folder: Path):
    result = invoke(LINE, "--model", str(tiny_folder), "--size", "32x32", "--steps", "1", "--device", "cpu")
    path = Path(result.stdout.strip())
    assert path.parent == Path("outputs") and path.stem.endswith(f"-{settings(path)['seed']}")


def test_a_png_is_made_again_byte_for_byte(generate):
    generate(LINE, "--preset", "turbo", "--guidance", "3", "--out", "a.png")
    again("a.png", "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_pictures_of_one_call_are_made_again_together_byte_for_byte(generate):
    generate(LINE, "a blue dot", "-n", "2", "--out", "{index}.png")
    again("0.png", "1.png", "2.png", "3.png", "--out", "again/{index}.png")
    for i in range(4):
        assert Path(f"{i}.png").read_bytes() == Path(f"again/{i}.png").read_bytes()


def test_a_png_drawn_with_others_warns_when_made_again_alone(generate):
    generate(LINE, "-n", "2", "--out", "a.png")
    result = again("a-1.png", "--out", "b.png")
    assert "together with 1 other" in result.stderr
    assert np.abs(pixels("a-1.png").astype(int) - pixels("b.png")).max() <= 1


def test_options_replace_what_a_png_says(generate):
    generate(LINE, "--out", "a.png")
    again("a.png", "--seed", "6", "--size", "32x32", "--steps", "1", "--out", "b.png")
    kept, changed = settings("a.png"), settings("b.png")
    assert (changed["seed"], changed["width"], changed["height"], changed["steps"]) == (6, 32, 32, 1)
    assert all(changed[key] == kept[key] for key in ("caption", "model", "preset", "dtype", "device"))


def test_another_preset_brings_its_own_steps_and_guidance(generate):
    generate(LINE, "--guidance", "2", "--out", "a.png")
    again("a.png", "--preset", "turbo", "--out", "b.png")
    found = settings("b.png")
    assert (found["preset"], found["steps"], found["guidance"]) == ("V4_TURBO_12", None, None)


def test_pngs_of_different_settings_are_drawn_in_one_command(generate):
    generate(LINE, "--steps", "1", "--out", "a.png")
    generate(LINE, "--steps", "3", "--out", "b.png")
    again("a.png", "b.png", "--out", "again-{index}.png")
    assert Path("a.png").read_bytes() == Path("again-0.png").read_bytes()
    assert Path("b.png").read_bytes() == Path("again-1.png").read_bytes()


def test_no_metadata_leaves_the_png_bare(generate):
    generate(LINE, "--no-metadata", "--out", "a.png")
    with Image.open("a.png") as image:
        image.load()
        assert image.text == {}
    assert "no ideoflow settings" in invoke("a.png", fails=2).stderr


def test_existing_files_are_numbered_around_unless_overwritten(generate):
    generate(LINE, "--out", "a.png")
    first = Path("a.png").read_bytes()
    assert generate(LINE, "--seed", "9", "--out", "a.png").stdout.strip() == "a-1.png"
    assert Path("a.png").read_bytes() == first
    generate(LINE, "--seed", "9", "--out", "a.png", "--overwrite")
    assert Path("a.png").read_bytes() == Path("a-1.png").read_bytes()


def test_a_lora_changes_the_picture_and_its_scale_is_kept(generate, pipeline: Ideogram4Pipeline):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    torch.manual_seed(0)
    pipeline.transformer.add_adapter(
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "w1"], init_lora_weights=False)
    )
    weights = get_peft_model_state_dict(pipeline.transformer)
    Ideogram4Pipeline.save_lora_weights("lora", transformer_lora_layers=weights)

    generate(LINE, "--out", "plain.png")
    for scale in ("0", "1", "2.5"):
        generate(LINE, "--lora", f"lora:{scale}", "--out", f"{scale}.png")
    generate(LINE, "--lora", "lora", "--out", "unscaled.png")
    np.testing.assert_array_equal(pixels("0.png"), pixels("plain.png"))
    assert (pixels("1.png") != pixels("plain.png")).any() and (pixels("2.5.png") != pixels("1.png")).any()
    np.testing.assert_array_equal(pixels("unscaled.png"), pixels("1.png"))
    file = Path("lora/pytorch_lora_weights.safetensors").resolve()
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert settings("2.5.png")["loras"] == [{"path": str(file), "scale": 2.5, "digest": digest}]
    again("2.5.png", "--out", "again.png")
    np.testing.assert_array_equal(pixels("again.png"), pixels("2.5.png"))


def test_a_lora_of_comfyui_draws_what_the_same_in_diffusers_form_draws(generate):
    """q, k and v as one, and an alpha, from the command line on."""
    torch.manual_seed(1)
    down, up = torch.randn(4, 32) / 4, torch.randn(96, 4)
    comfy = {"lora_unet_layers_0_attention_qkv.lora_down.weight": down}
    comfy |= {"lora_unet_layers_0_attention_qkv.lora_up.weight": up}
    save_file(comfy | {"lora_unet_layers_0_attention_qkv.alpha": torch.tensor(2.0)}, "comfy.safetensors")
    peer = {}
    for name, rows in zip(("to_q", "to_k", "to_v"), up.chunk(3), strict=True):
        peer[f"transformer.layers.0.attention.{name}.lora_A.weight"] = down.clone()
        peer[f"transformer.layers.0.attention.{name}.lora_B.weight"] = rows / 2
    save_file(peer, "peer.safetensors")
    for name in ("comfy", "peer"):
        generate(LINE, "--lora", f"{name}.safetensors:0.8", "--out", f"{name}.png")
    generate(LINE, "--out", "plain.png")
    np.testing.assert_array_equal(pixels("comfy.png"), pixels("peer.png"))
    assert (pixels("comfy.png") != pixels("plain.png")).any()

    save_file(comfy | {"lora_te1_text_model_fc1.lora_down.weight": down.clone()}, "more.safetensors")
    refused = generate(LINE, "--lora", "more.safetensors", "--out", "more.png", fails=2).stderr
    assert "lora_te1_text_model_fc1" in refused and "--ignore-unknown" in refused and "ignore_unknown" not in refused
    warned = generate(LINE, "--lora", "more.safetensors", "--ignore-unknown", "--out", "more.png").stderr
    assert "lora_te1_text_model_fc1" in warned and Path("more.png").exists()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"lora_unet_layers_0_attention_qkv.lora_down.weight": torch.ones(2, 32)}, "has no partner"),
        ({"transformer.layers.0.attention.to_q.lokr_w1": torch.ones(2, 2)}, "LoKr"),
        ({"diffusion_model.layers.0.attention.o.lora_A.weight": torch.full((2, 32), torch.nan),
          "diffusion_model.layers.0.attention.o.lora_B.weight": torch.ones(32, 2)}, "not finite"),
    ],
    ids=["half", "lokr", "nan"],
)  # fmt: skip
def test_a_lora_that_cannot_be_used_is_told_in_one_line(generate, tensors: dict, says: str):
    save_file(tensors, "a.safetensors")
    message = generate(LINE, "--lora", "a.safetensors", "--out", "a.png", fails=2).stderr
    assert "a.safetensors" in message and says in message and message.count("error:") == 1
    Path("a.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:-8])
    assert "no whole safetensors file" in generate(LINE, "--lora", "a.safetensors", fails=2).stderr


def test_bfloat16_is_used_when_asked(generate):
    generate(LINE, "--dtype", "bfloat16", "--out", "a.png")
    generate(LINE, "--out", "b.png")
    assert settings("a.png")["dtype"] == "bfloat16" and settings("b.png")["dtype"] == "float32"
    assert (pixels("a.png") != pixels("b.png")).any()


BROKEN = '{"compositional_deconstruction":{"background":"plain red","elements":[{"type":"obj","bbox":[900,0,100,1000],"desc":"a dot"}]}}'  # noqa: E501


def test_a_caption_that_breaks_the_schema_draws_a_warning(generate):
    result = generate(BROKEN, "--out", "a.png")
    assert "warning" in result.stderr and "bbox" in result.stderr
    assert Path("a.png").exists()


def test_strict_refuses_a_caption_that_breaks_the_schema(generate):
    result = generate(BROKEN, "--strict", "--out", "a.png", fails=2)
    assert "bbox" in result.stderr and not Path("a.png").exists()


def test_each_breach_is_said_once_and_a_certain_one_is_mended(generate):
    error = generate(BROKEN, "--out", "a.png").stderr
    assert error.count("its corners swapped or is written in another way") == 1 and "mended" not in error
    certain = BROKEN.replace("[900,0,100,1000]", "[900,800,0,100]")
    assert "warning: mended picture: " in generate(certain, "--out", "b.png").stderr
    assert '"bbox":[0,100,900,800]' in settings("b.png")["caption"]
    error = generate(certain, "--out", "c.png", "--no-fix").stderr
    assert "corners swapped" in error and "(--fix does it)" in error
    assert settings("c.png")["caption"] == certain
    assert "wrote [0, 100, 900, 800]" in generate(certain, "--strict", fails=2).stderr


SKETCH_STEP = ["--steps", "1", "--device", "cpu", "--out", "a.png"]


def test_words_become_a_caption_of_the_bundled_model_and_what_was_understood_is_said():
    told = invoke("a red dot on pink, and a dragon", *SKETCH_STEP).stderr
    assert "note: a-red-dot-on-pink-and-a-dragon: understood as red circle, on plain pink" in told
    assert "warning: a-red-dot-on-pink-and-a-dragon: not understood: dragon" in told
    caption = settings("a.png")["caption"]
    assert Caption.parse(caption).check() == [] and '"desc":"a red circle"' in caption
    assert '"background":"plain pink"' in caption


def test_boxes_of_words_suit_the_size_of_the_picture():
    invoke("a red dot on pink", *SKETCH_STEP, "--size", "192x96")
    box = json.loads(settings("a.png")["caption"])["compositional_deconstruction"]["elements"][0]["bbox"]
    assert box[3] - box[1] < box[2] - box[0]


def test_words_that_cannot_be_drawn_are_refused_before_anything_is_loaded():
    assert "not understood: dragon" in invoke("a dragon", *SKETCH_STEP, fails=2).stderr
    assert "not understood: dragon" in invoke("a red dot and a dragon", *SKETCH_STEP, "--strict", fails=2).stderr
    assert "leave out --no-wrap" in invoke("a red dot", *SKETCH_STEP, "--no-wrap", fails=2).stderr
    assert not Path("a.png").exists()


def test_elements_without_a_box_are_warned_of_on_the_bundled_model():
    assert "will not draw the others" in invoke(LINE, *SKETCH_STEP).stderr


def test_a_caption_of_too_many_tokens_is_named_before_anything_is_drawn(generate):
    Path("long.json").write_text(LINE.replace("plain red", "red " * 2100))
    message = generate(LINE, "long.json", fails=2).stderr
    assert "the caption of long has 8512 tokens" in message and "more than --max-sequence-length 2048" in message
    assert generate("long.json", "--max-sequence-length", "9000", "--out", "a.png")
    assert "--max-sequence-length 5:" in generate(LINE, "--max-sequence-length", "5", fails=2).stderr


def test_a_size_unlike_the_training_draws_a_warning(generate):
    assert "warning: 48 x 32 pixels are outside" in generate(LINE, "--out", "a.png").stderr


def test_nothing_but_warnings_and_paths_is_said_when_not_on_a_terminal(generate):
    result = generate(LINE, "--out", "a.png")
    assert all(line.startswith("warning: ") for line in result.stderr.splitlines())


def test_unwrapped_plain_text_draws_a_warning_and_strict_refuses_it(generate):
    assert "plain text" in generate("a red dot", "--no-wrap", "--out", "a.png").stderr
    assert "plain text" in generate("a red dot", "--no-wrap", "--strict", fails=2).stderr


def test_the_bundled_model_is_the_default_with_its_own_size_and_guidance():
    placed = LINE.replace('"desc"', '"bbox":[100,100,500,500],"desc"')
    assert "bbox" not in invoke(placed, "--steps", "1", "--device", "cpu", "--out", "a.png").stderr
    found = settings("a.png")
    assert (found["model"], found["width"], found["height"], found["guidance"]) == ("sketch", 128, 128, GUIDANCE)
    invoke("a.png", "--out", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.json"], "missing.json: No such file"),
        ([""], "empty"),
        (['{"a": '], "no JSON"),
        ([LINE, "--size", "48"], "--size '48' is not WIDTHxHEIGHT"),
        ([LINE, "--size", "50x32"], "multiple of 16"),
        ([LINE, "--size", "16x16", "--size", "16x16"], "2 times for 1 prompt:"),
        ([LINE, "--preset", "quick"], "V4_TURBO_12 (turbo)"),
        ([LINE, "--dtype", "int8"], "bfloat16"),
        ([LINE, "--model", "no/such/folder"], "no/such/folder"),
        ([LINE, "--model", "./folder"], "--model './folder': there is no such folder"),
        ([LINE, "--lora", "no-such-file.safetensors"], "no-such-file.safetensors"),
        ([LINE, "--lora", "somewhere:nan"], "finite number as the strength"),
        ([LINE, "--out", "a.gif"], "PNG"),
        ([LINE, "--seed", str(2**64)], "below 2**64"),
        ([LINE, "--seed", str(2**64 - 1), "-n", "2"], "below 2**64"),
        ([LINE, "--guidance", "nan"], "finite"),
        ([LINE, "--out", "{seed[0]}.png"], "unknown placeholder"),
        ([LINE, "--out", "{name.x}.png"], "unknown placeholder"),
        ([LINE, "--out", "~no-such-user/a.png"], "home folder"),
        (["~no-such-user/a.json"], "home folder"),
        ([LINE, "--device", "nonsense"], "nonsense"),
        ([LINE, "--steps", "0"], "--steps"),
    ],
    ids=lambda value: " ".join(value)[-24:] if isinstance(value, list) else "",
)
def test_mistakes_end_with_code_2_and_a_word_of_help(generate, arguments: list[str], says: str):
    assert says in " ".join(generate(*arguments, fails=2).stderr.split())
    assert list(Path().glob("**/*.png")) == []


def test_a_model_that_gives_no_numbers_ends_with_code_1(generate, tiny_folder: Path):
    shutil.copytree(tiny_folder, "broken")
    pipe = Ideogram4Pipeline.from_pretrained("broken")
    torch.nn.init.constant_(pipe.transformer.final_layer.linear.weight, 3e38)  # finite, and its products are not
    pipe.save_pretrained("broken")
    assert "not finite" in generate(LINE, "--model", "broken", fails=1).stderr


def test_an_unreachable_hub_is_said_in_one_line_with_code_1(generate, monkeypatch: pytest.MonkeyPatch):
    def unreachable(*arguments, **options):
        try:
            raise type("ConnectError", (Exception,), {})("no such name")  # httpx's, as huggingface_hub lets it out
        except Exception as error:
            raise OSError("Cannot load model: see the stacktrace above") from error

    monkeypatch.setattr(Ideogram4Pipeline, "from_pretrained", unreachable)
    error = generate(LINE, "--model", "owner/model", fails=1).stderr
    assert "cannot reach the model hub (no such name)" in error and "stacktrace" not in error


def test_overwrite_does_not_replace_a_picture_of_the_same_command(generate):
    result = generate("a red dot", "a blue dot", "--out", "{seed}.png", "--overwrite")
    assert result.stdout.split() == ["5.png", "5-1.png"]
    assert "red" in settings("5.png")["caption"] and "blue" in settings("5-1.png")["caption"]


def test_all_pictures_are_saved_though_standard_output_fails(generate, monkeypatch: pytest.MonkeyPatch):
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("ideoflow.cli.console.out.print", closed)
    generate(LINE, "-n", "2", "--out", "{seed}.png", fails=2)
    assert sorted(path.name for path in Path().glob("*.png")) == ["5.png", "6.png"]


def test_a_transformers_file_draws_with_the_rest_of_another_model(generate, tiny_folder: Path):
    """The file in ComfyUI's names; what the PNG says makes the picture again."""
    weights = load_file(tiny_folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}, "own.safetensors")
    generate(LINE, "--out", "a.png")

    generate(LINE, "--out", "b.png", "--model", "own.safetensors", "--base", str(tiny_folder))

    assert (pixels("a.png") == pixels("b.png")).all()
    assert settings("b.png")["base"] == str(tiny_folder)
    again("b.png", "--out", "c.png")
    assert (pixels("a.png") == pixels("c.png")).all()


def test_what_is_in_few_bits_is_not_quantized_again(generate, tiny_folder: Path):
    convert(tiny_folder, "fp8", "fp8")
    assert (
        "--quantize int8: `module` has a Float8Linear"
        in generate(LINE, "--model", "fp8", "--quantize", "int8", fails=2).stderr
    )


def test_a_folder_with_a_transformer_alone_draws_with_the_rest_of_another_model(generate, tiny_folder: Path):
    shutil.copytree(tiny_folder / "transformer", "alone")
    generate(LINE, "--out", "a.png")

    generate(LINE, "--out", "b.png", "--model", "alone", "--base", str(tiny_folder))

    assert (pixels("a.png") == pixels("b.png")).all()
    assert "holds a transformer alone" in " ".join(generate(LINE, "--model", "alone", fails=2).output.split())


@pytest.mark.parametrize("arguments", [["--base", "x"], ["--model", "sketch", "--base", "x"]])
def test_a_base_goes_with_a_transformer_alone(generate, arguments):
    assert "--base goes with a file" in generate(LINE, *arguments, fails=2).output


def test_a_model_that_is_neither_here_nor_a_hub_id_is_not_looked_for(generate, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a network was asked")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert "Did you mean sketch" in " ".join(generate(LINE, "--model", "sketchh", fails=2).output.split())


@pytest.mark.parametrize(("option", "choice"), [([], "auto"), (["--no-cuda-graphs"], False)])
def test_cuda_graphs_are_left_to_the_sizes_unless_something_is_said(generate, monkeypatch, option, choice):
    from ideoflow import Ideogram4Pipeline

    seen = []
    engine = Ideogram4Pipeline.engine

    def make(self, *arguments, **options):
        seen.append(self.cuda_graphs)
        return engine(self, *arguments, **options)

    monkeypatch.setattr(Ideogram4Pipeline, "engine", make)
    generate(LINE, *option)

    assert seen == [choice]


def test_cuda_graphs_need_cuda(generate):
    assert "--cuda-graphs needs --device cuda, and these pictures are drawn on 'cpu'" in " ".join(
        generate(LINE, "--cuda-graphs", fails=2).output.split()
    )
