"""Plans: their arithmetic counted anew, the order of preference, refusals, and what more memory brings."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ideoflow.fitting import DoesNotFit, Model, Plan, Rates, parse_memory, plan
from ideoflow.fitting.memory import HOST_ALLOCATOR_KEEPS
from ideoflow.fitting.plans import STAYS, STREAMED, SWAPPED, TURNS

CARDS = ("8GB", "12GB", "16GB", "24GB", "48GB", "80GB")
BRANCHES = ("transformer", "unconditional_transformer")


def count_anew(made: Plan) -> dict[str, int]:
    """The peak of each phase from components and stages alone, told apart by where things lie."""
    call, places, components = made.call, made.places, made.call.model.components
    sizes = {name: components[name].sizes(made.precision_of(name), made.cast) for name in places}
    present = {name: sizes[name].all for name, place in places.items() if place == STAYS}
    keeps = (
        (lambda size: size + min(HOST_ALLOCATOR_KEEPS, size * 3 // 2)) if made.device == "cpu" else lambda size: size
    )

    def with_one(name: str, streamed: int) -> int:
        if places[name] == "let go":
            return sum(present.values()) + sizes[name].all
        return sum({**present, name: streamed if places[name] == STREAMED else sizes[name].all}.values())

    encode = max(
        with_one("text_encoder", sizes["text_encoder"].layer) + keeps(call.encoding().bytes),
        with_one("transformer", sizes["transformer"].outside) + keeps(call.projecting().bytes),
    )
    turning = {name: sizes[name].all for name in BRANCHES if places.get(name) == TURNS}
    scheduled = all(places.get(name, STAYS) == STAYS for name in BRANCHES)
    denoise = 0
    for name in BRANCHES:
        if name in places:
            own = 2 * sizes[name].block + sizes[name].outside if places[name] == STREAMED else sizes[name].all
            weights = sum({**present, **turning, name: own}.values())
            velocities = made.per_pass * call.image * 128 * 8
            step = call.step(made.per_pass, name != "transformer", hooked=not scheduled).bytes
            denoise = max(denoise, weights + keeps(step + velocities + sum(call.held(scheduled).values())))
    left = {} if made.clears else turning
    if not made.clears and places.get(BRANCHES[1]) == SWAPPED:
        left = {BRANCHES[1]: sizes[BRANCHES[1]].all}
    decoding = call.decoding(made.per_decode, made.tile).bytes + sum(call.held(False).values())
    return {"encode": encode, "denoise": denoise, "decode": sum({**present, **left}.values()) + keeps(decoding)}


@pytest.mark.parametrize("card", CARDS)
def test_the_plan_of_a_card_adds_up_and_fits(full, card):
    made = plan(full, card)
    peaks = {phase: peak.bytes for phase, peak in made.peaks.items()}
    assert peaks == count_anew(made)
    assert made.peak == max(peaks.values()) <= made.capacity < parse_memory(card)
    assert made.needed <= parse_memory(card)
    assert not made.losses


@settings(max_examples=40, deadline=None)
@given(
    gigabytes=st.floats(1, 120),
    side=st.tuples(st.integers(8, 128), st.integers(8, 128)),
    pictures=st.integers(1, 5),
    caption=st.integers(1, 2048),
    device=st.sampled_from(["cuda", "cpu"]),
)
def test_any_plan_adds_up_and_fits_and_a_refusal_names_one_that_would(gigabytes, side, pictures, caption, device):
    full = Model.full()
    options = dict(size=(16 * side[0], 16 * side[1]), caption_tokens=caption, pictures=pictures, device=device)
    try:
        made = plan(full, int(gigabytes * 1e9), **options)
    except DoesNotFit as refusal:
        made = plan(full, refusal.needed, **options)
        assert made.peak <= refusal.nearest.peak and made.capacity >= made.peak
        assert refusal.needed > gigabytes * 1e9
        with pytest.raises(DoesNotFit):
            plan(full, refusal.needed - 1000, **options)
    assert {phase: peak.bytes for phase, peak in made.peaks.items()} == count_anew(made)
    assert made.peak <= made.capacity


@settings(max_examples=40, deadline=None)
@given(
    memory=st.lists(st.floats(2, 100), min_size=2, max_size=2),
    side=st.integers(16, 128),
    pictures=st.integers(1, 4),
    device=st.sampled_from(["cuda", "cpu"]),
    quantize=st.sampled_from([None, "int8", "nf4"]),
)
def test_more_memory_brings_no_more_loss_and_at_equal_loss_no_slower_plan(memory, side, pictures, device, quantize):
    if device == "cpu" and quantize == "nf4":
        quantize = "fp8"
    less, more = sorted(int(one * 1e9) for one in memory)
    options = dict(size=(16 * side, 16 * side), pictures=pictures, device=device, quantize=quantize)
    full = Model.full()
    try:
        small = plan(full, less, **options)
    except DoesNotFit:
        return
    large = plan(full, more, **options)
    assert large.rank <= small.rank
    if large.rank == small.rank:
        assert large.total_seconds <= small.total_seconds * (1 + 1e-6)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_the_cards_in_order_are_never_slower(full, quantize):
    seconds = [plan(full, card, quantize=quantize).total_seconds for card in CARDS]
    assert seconds == sorted(seconds, reverse=True) and seconds[-1] < seconds[0]


# Order of preference


def test_a_card_of_80_gb_keeps_everything_and_an_8_gb_one_streams(full):
    assert set(plan(full, "80GB").places.values()) == {STAYS}
    places = plan(full, "8GB").places
    assert places["transformer"] == places["unconditional_transformer"] == STREAMED and places["vae"] == STAYS


def test_loss_is_taken_only_where_needed_and_allowed_and_is_named(full):
    exact = plan(full, "24GB", host_memory="60GB")
    assert not exact.losses and "no loss" in str(exact)
    rounded = plan(full, "24GB", host_memory="30GB")
    assert rounded.precision == "int8" and "lossy: the blocks' linear layers in int8" in str(rounded)
    with pytest.raises(DoesNotFit, match=r"beside 10\.00 GB of host memory"):
        plan(full, "24GB", host_memory="10GB", allow=())
    assert plan(full, "24GB", host_memory="30GB", allow=["nf4"]).precision == "nf4"


def test_tiles_are_a_loss_and_come_before_rounding_weights(full):
    large = dict(size=(2048, 2048))
    made = plan(full, "8GB", **large)
    assert made.tile == 1024 and made.precision is None and "lossy: the autoencoder decodes tiles" in str(made)
    with pytest.raises(DoesNotFit):
        plan(full, "8GB", **large, allow=["int8"])
    assert plan(full, "12GB", **large).tile is None


def test_float32_is_rounded_to_bfloat16_before_anything_is_put_into_int8():
    model = Model.full("float32")
    kept = plan(model, "130GB", device="cpu")
    rounded = plan(model, "70GB", device="cpu")
    eighth = plan(model, "50GB", device="cpu")
    assert (kept.cast, kept.precision) == (None, None)
    assert (rounded.cast, rounded.precision) == ("bfloat16", None)
    assert (eighth.cast, eighth.precision) == ("bfloat16", "int8")
    assert eighth.losses == ("float32 rounded to bfloat16", "the blocks' linear layers in int8")
    assert eighth.weights["transformer"] == model.components["transformer"].bytes("int8", "bfloat16")


def test_pictures_are_split_over_passes_where_one_does_not_fit(full):
    options = dict(device="cpu", pictures=4, allow=())
    whole = plan(full, "200GB", **options)
    one = plan(full, replace(whole, per_decode=1).needed - 10**6, **options)
    assert one.per_pass < 4 and one.passes == -(-4 // one.per_pass)
    assert one.max_tokens == one.per_pass * (500 + 2 * 4096)
    assert one.per_decode == 1
    assert plan(full, "80GB", pictures=4).max_tokens is None


def test_the_text_encoder_that_is_let_go_leaves_its_bytes(full):
    kept = plan(full, "80GB", device="cpu")
    freed = plan(full, "80GB", device="cpu", free_text_encoder=True)
    size = full.components["text_encoder"].bytes()
    for phase in ("denoise", "decode"):
        assert kept.peaks[phase].bytes - freed.peaks[phase].bytes == size
    assert freed.where("text_encoder", "denoise") == "gone"


def test_a_pipeline_without_guidance_has_one_branch():
    from .configs import AUTOENCODER, TEXT, TRANSFORMER

    model = Model.of_configs(TEXT, TRANSFORMER, None, AUTOENCODER)
    made = plan(model, "2GB", size=(64, 64))
    assert "unconditional_transformer" not in made.places and "one branch" in str(made)
    assert made.call.tokens == 16 + 500


# Estimates of speed


def test_the_work_of_a_step_is_that_of_the_published_count(full):
    from ideoflow.fitting.activations import Call
    from ideoflow.fitting.speed import pass_flops

    call = Call(full, caption=400)
    assert pass_flops(call, False) + pass_flops(call, True) == pytest.approx(172e12, rel=0.02)


def test_streaming_takes_as_long_as_the_slower_of_work_and_copies(full):
    slow, fast = Rates(pinned=1e9), Rates(pinned=1e15, pageable=1e15)
    assert plan(full, "8GB", rates=fast).relative_speed == pytest.approx(1, abs=1e-3)
    made = plan(full, "8GB", rates=slow)
    blocks = sum(34 * full.components[name].sizes().block for name in BRANCHES)
    assert made.seconds["denoise"] >= 20 * blocks / 1e9
    assert made.relative_speed < 0.2


def test_swapping_whole_transformers_moves_both_at_every_step(full):
    base = plan(full, "48GB", quantize="nf4")
    swapped = replace(base, places={**base.places, **dict.fromkeys(BRANCHES, SWAPPED)})
    there_and_back = 2 * sum(swapped.weights[name] for name in BRANCHES) / base.rates.pageable
    assert swapped.seconds["denoise"] - replace(base, places={**base.places, **dict.fromkeys(BRANCHES, STAYS)}).seconds[
        "denoise"
    ] == pytest.approx(20 * there_and_back)


# Refusals


def test_a_refusal_names_the_nearest_plan_and_what_it_needs(full):
    with pytest.raises(DoesNotFit) as refused:
        plan(full, "3GB", allow=())
    assert f"needs {refused.value.needed / 1e9:.2f} GB" in str(refused.value)
    assert "streamed" in str(refused.value) and isinstance(refused.value, ValueError)
    assert plan(full, refused.value.needed, allow=()).peak == refused.value.nearest.peak


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": "lots"}, "`memory`"),
        ({"size": (1000, 1024)}, "multiples of 16"),
        ({"size": (0, 16)}, "`size`"),
        ({"size": 1024}, "`size`"),
        ({"size": (10**6, 16)}, "`size`"),
        ({"caption_tokens": 0}, "`caption_tokens`"),
        ({"pictures": 1.5}, "`pictures`"),
        ({"steps": True}, "`steps`"),
        ({"steps": 1001}, "`steps` is 1001: give a whole number from 1 to 1000"),
        ({"allow": "int8"}, "`allow`"),
        ({"allow": ["int4"]}, "`allow`"),
        ({"quantize": "int4"}, "`quantize`"),
        ({"quantize": "nf4", "device": "cpu"}, "on a CPU use int8"),
        ({"free_text_encoder": True}, "`free_text_encoder`"),
        ({"host_memory": "some"}, "`memory`"),
    ],
)
def test_what_does_not_fit_is_named(full, options, message):
    with pytest.raises(ValueError, match=message):
        plan(full, **options)
