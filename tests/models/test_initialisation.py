"""How the weights start: mimetic attention, the GR-KANs' linear layers, and timm's own schemes."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flashkat import GRKAN
from flashkat.models import KolmogorovArnoldTransformer, initialisation

WIDTH, HEADS, HEAD = 192, 3, 64
OWN = ["kan_mimetic", "paper_mimetic", "variance_preserving"]
TIMMS = ["", "jax", "jax_nlhb", "moco", "reset"]


def create(seed=0, **kwargs):
    torch.manual_seed(seed)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 50}
    return KolmogorovArnoldTransformer(**{**arguments, **kwargs})


def query_key_value(attention):
    """The weights of timm's fused layer: (heads, d_head, d) each."""
    return attention.qkv.weight.detach().double().unflatten(0, (3, attention.num_heads, -1))


def query_key_products(attention):
    query, key, _ = query_key_value(attention)
    return query.mT @ key


def value_projection(attention, *, is_swapped):
    """L R, where W_proj W_v is L R as in the paper, or R L as in KAT's code."""
    factors = attention.proj.weight.detach().double(), query_key_value(attention)[2].flatten(0, 1)
    return factors[1] @ factors[0] if is_swapped else factors[0] @ factors[1]


def off_diagonal(matrix):
    size = matrix.shape[-1]
    return matrix[..., ~torch.eye(size, dtype=torch.bool)]


def wanted_query_key(samples=4):
    """Best rank-d_head approximations of 0.7 Z + 0.7 I with Var[Z] = 1 / d (Trockman & Kolter, 2023), by SVD."""
    generator = torch.Generator().manual_seed(7)
    z = torch.randn(samples, WIDTH, WIDTH, generator=generator, dtype=torch.float64) / math.sqrt(WIDTH)
    u, s, v = torch.linalg.svd(0.7 * z + 0.7 * torch.eye(WIDTH, dtype=torch.float64))
    best = u[..., :HEAD] * s[..., None, :HEAD] @ v[..., :HEAD, :]
    return best, s[..., :HEAD]


@pytest.fixture(scope="module", params=OWN)
def model(request):
    return create(weight_init=request.param)


@pytest.fixture
def is_swapped(model):
    return model.weight_init_mode != "paper_mimetic"


@pytest.fixture(scope="module")
def mimetic():
    return create()


# Mimetic attention


def test_the_default_is_kan_mimetic():
    default, named = create(depth=1).state_dict(), create(depth=1, weight_init="kan_mimetic").state_dict()
    assert all(torch.equal(default[key], named[key]) for key in named)


@pytest.mark.parametrize("mean_of", ["diagonal", "off-diagonal"])
def test_query_key_products_have_the_entries_of_the_best_approximation(model, mean_of):
    wanted, _ = wanted_query_key()
    for block in model.blocks:
        products = query_key_products(block.attn)
        assert products.shape == (HEADS, WIDTH, WIDTH)
        if mean_of == "diagonal":
            expected = wanted.diagonal(dim1=-2, dim2=-1).mean().item()
            means = products.diagonal(dim1=-2, dim2=-1).mean(-1)
            assert expected > 0.3  # far from what independent queries and keys have, 0
            assert means.tolist() == pytest.approx([expected] * HEADS, rel=0.05)
        else:
            expected = off_diagonal(wanted).std().item()
            assert off_diagonal(products).mean().item() == pytest.approx(0, abs=0.05 * expected)
            assert off_diagonal(products).std(-1).tolist() == pytest.approx([expected] * HEADS, rel=0.05)


def test_query_key_products_have_the_largest_singular_values_of_the_full_matrix(model):
    _, wanted = wanted_query_key()
    for block in model.blocks:
        singular = torch.linalg.svdvals(query_key_products(block.attn))
        assert (singular[:, HEAD:] < 1e-6).all()
        torch.testing.assert_close(singular[:, :HEAD].mean(0), wanted.mean(0), rtol=0.05, atol=0)


def test_queries_and_keys_share_the_size_of_their_product(model):
    for block in model.blocks:
        query, key, _ = query_key_value(block.attn)
        singular = torch.linalg.svdvals(query_key_products(block.attn))[:, :HEAD].sqrt()
        torch.testing.assert_close(torch.linalg.svdvals(query), singular, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(torch.linalg.svdvals(key), singular, rtol=1e-3, atol=1e-5)


def assert_noisy_identity(matrix, alpha, beta):
    """Alpha Z + beta I with Z uniform of mean 0 and variance 1 / d."""
    size = len(matrix)
    assert matrix.diagonal().mean().item() == pytest.approx(beta, abs=4 * abs(alpha) / size)
    noise = off_diagonal(matrix)
    assert noise.std().item() == pytest.approx(alpha / math.sqrt(size), rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=4 * alpha / math.sqrt(size) / size)
    # Uniform, which ends at sqrt(3) standard deviations; among this many normal ones some would be beyond 4.
    assert noise.abs().max().item() == pytest.approx(alpha * math.sqrt(3 / size), rel=1e-3)


def test_query_key_product_of_a_single_wide_head_is_the_noisy_identity_itself():
    attention = create(depth=1, num_heads=1).blocks[0].attn
    assert_noisy_identity(query_key_products(attention)[0], 0.7, 0.7)


def test_the_factors_of_value_and_projection_multiply_to_a_negative_noisy_identity(model, is_swapped):
    for block in model.blocks:
        assert_noisy_identity(value_projection(block.attn, is_swapped=is_swapped), 0.4, -0.4)


def test_published_values_and_projections_are_the_papers_exchanged():
    """And the output's channels go from the largest singular value to the smallest, as SVD gives them."""
    ours, papers = (create(weight_init=name, depth=1).blocks[0].attn for name in ("kan_mimetic", "paper_mimetic"))
    assert torch.equal(ours.proj.weight, query_key_value(papers)[2].flatten(0, 1).float())
    assert torch.equal(papers.proj.weight, query_key_value(ours)[2].flatten(0, 1).float())
    sizes = ours.proj.weight.norm(dim=1)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


def test_value_and_projection_share_the_size_of_their_product(model, is_swapped):
    attention = model.blocks[0].attn
    singular = torch.linalg.svdvals(value_projection(attention, is_swapped=is_swapped)).sqrt()
    value = query_key_value(attention)[2].flatten(0, 1)
    torch.testing.assert_close(torch.linalg.svdvals(value), singular, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(torch.linalg.svdvals(attention.proj.weight.double()), singular, rtol=1e-3, atol=1e-4)


def test_heads_and_blocks_are_drawn_independently(mimetic):
    products = torch.cat([query_key_products(block.attn) for block in mimetic.blocks])
    noise = off_diagonal(products)
    correlations = torch.corrcoef(noise) - torch.eye(len(noise))
    assert correlations.abs().max() < 0.05
    values = torch.stack([off_diagonal(value_projection(block.attn, is_swapped=True)) for block in mimetic.blocks])
    assert torch.corrcoef(values)[0, 1].abs() < 0.05


def test_attention_looks_at_itself_from_the_start(mimetic):
    """The scheme's purpose: a token's query matches its own key best."""
    x = torch.randn(32, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    query, key, _ = query_key_value(mimetic.blocks[0].attn)
    scores = (x @ query.mT) @ (x @ key.mT).mT
    assert (scores.argmax(-1) == torch.arange(32)).all()


def test_weights_do_not_depend_on_the_number_of_threads():
    before, states = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            states.append(create(depth=1).blocks[0].attn.state_dict())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, several = states
    assert all(torch.equal(one[name], several[name]) for name in one)


def test_models_made_by_two_threads_leave_the_number_of_threads(monkeypatch):
    """The second thread starts while the first one has PyTorch at one thread."""
    factors, begun, joined = initialisation._factors, threading.Event(), threading.Event()

    def wait_for_the_second(*args):
        begun.set()
        assert joined.wait(60)
        return factors(*args)

    def second():
        assert begun.wait(60)
        torch.get_num_threads()  # a thread keeps the number that it first sees
        joined.set()
        create(depth=1)
        return torch.get_num_threads()

    monkeypatch.setattr(initialisation, "_factors", wait_for_the_second)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(2) as pool:
            first, other = pool.submit(lambda: create(depth=1) and torch.get_num_threads()), pool.submit(second)
            assert (first.result(), other.result()) == (2, 2)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# Everything else


def test_mimetic_linear_layers_are_narrow_normals(mimetic):
    for block in mimetic.blocks:
        for linear in (block.mlp.fc1, block.mlp.fc2):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
            assert linear.weight.mean().item() == pytest.approx(0, abs=4 * 0.02 / linear.weight.numel() ** 0.5)
            assert linear.weight.abs().max() > 0.06  # normal, not uniform, which would end at 0.035
    assert mimetic.head.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_biases_start_at_zero(model):
    biases = [module.bias for module in model.modules() if isinstance(module, nn.Linear | nn.LayerNorm)]
    assert len(biases) == 2 * (2 + 2 + 2) + 2
    assert all(bias.count_nonzero() == 0 for bias in biases)


def test_normalisations_start_as_no_more_than_that(model):
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert len(norms) == 5
    assert all((norm.weight == 1).all() for norm in norms)


def test_embeddings_start_as_a_vision_transformers(model):
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert 0 < model.cls_token.abs().max() < 1e-5
    # torch's default for convolutions: uniform within 1 / sqrt(fan_in).
    bound = (3 * 8 * 8) ** -0.5
    weight = model.patch_embed.proj.weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_registers_start_tiny():
    model = create(reg_tokens=4, depth=1)
    assert 0 < model.reg_token.abs().max() < 1e-5


def test_rationals_start_as_named(model):
    x = torch.linspace(-3, 3, 4 * WIDTH)
    for block in model.blocks:
        assert torch.equal(block.mlp.act1(x[:WIDTH]), x[:WIDTH])
        torch.testing.assert_close(block.mlp.act2(x), nn.functional.silu(x), rtol=0, atol=1e-4)


# KAT's other names


@pytest.mark.parametrize("mode", OWN)
def test_other_default_dtypes_and_devices(mode):
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = create(weight_init=mode)
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with torch.device("meta"):
        assert create(weight_init=mode).pos_embed.is_meta


@pytest.mark.parametrize("mode", TIMMS)
def test_a_second_initialisation_is_as_the_first(mode):
    model = create(weight_init=mode)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    model.init_weights()
    for one, other in zip(model.blocks.parameters(), create(weight_init=mode).blocks.parameters(), strict=True):
        torch.testing.assert_close(one.std(), other.std(), rtol=0.1, atol=1e-3)


def test_mimetic_is_kan_mimetic():
    one, other = (create(depth=1, weight_init=name).state_dict() for name in ("mimetic", "kan_mimetic"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_kan_has_glorots_queries_keys_and_values_and_narrow_normals():
    block = create(weight_init="kan").blocks[0]
    bound = math.sqrt(6 / (2 * WIDTH))
    assert block.attn.qkv.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert block.attn.qkv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for linear in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)


# Variance preserving


@pytest.mark.parametrize(("start", "gain"), [("swish", 2.8178), ("gelu", 2.3568), ("relu", 2.0)])
def test_variance_preserving_weights_have_the_published_gain_over_the_fan_in(start, gain):
    mlp = create(weight_init="variance_preserving", act_init=start, depth=1).blocks[0].mlp
    assert mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(1 / WIDTH), rel=0.02)
    assert mlp.fc2.weight.std().item() == pytest.approx(math.sqrt(gain / (4 * WIDTH)), rel=0.02)
    assert mlp.fc1.bias.count_nonzero() == 0
    assert mlp.fc2.bias.count_nonzero() == 0


@pytest.mark.parametrize("start", ["swish", "gelu", "relu", "tanh"])
@pytest.mark.parametrize("half", ["first", "second"])
def test_variance_preserving_layers_keep_the_second_moment(start, half):
    mlp = create(weight_init="variance_preserving", act_init=start, depth=1).blocks[0].mlp
    rational, linear = (mlp.act1, mlp.fc1) if half == "first" else (mlp.act2, mlp.fc2)
    x = torch.randn(512, linear.in_features, generator=torch.Generator().manual_seed(1))
    assert linear(rational(x)).square().mean().item() == pytest.approx(1, rel=0.06)


def test_mimetic_layers_do_not_keep_the_second_moment(mimetic):
    """The difference between the two schemes: here 0.02 is too little."""
    mlp = mimetic.blocks[0].mlp
    x = torch.randn(512, WIDTH, generator=torch.Generator().manual_seed(1))
    assert mlp.fc1(mlp.act1(x)).square().mean() < 0.2


# timm's own schemes


@pytest.mark.parametrize("mode", TIMMS)
def test_timms_schemes_give_exactly_timms_weights(mode):
    ours = create(weight_init=mode).state_dict()
    torch.manual_seed(0)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": HEADS, "num_classes": 50}
    timms = VisionTransformer(**arguments, mlp_layer=GRKAN, weight_init=mode).state_dict()
    assert set(ours) == set(timms)
    for key, value in timms.items():
        assert torch.equal(ours[key], value), key


def test_timms_default_scheme_has_its_statistics():
    block = create(weight_init="").blocks[0]
    for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_jax_scheme_has_its_statistics():
    model = create(weight_init="jax")
    block = model.blocks[0]
    # Glorot's uniform: variance 2 / (fan_in + fan_out).
    assert block.mlp.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / (5 * WIDTH)), rel=0.02)
    assert block.attn.proj.weight.std().item() == pytest.approx(math.sqrt(2 / (2 * WIDTH)), rel=0.02)
    assert model.head.weight.count_nonzero() == 0


def test_moco_scheme_has_its_statistics():
    block = create(weight_init="moco").blocks[0]
    # Glorot's uniform for each of queries, keys and values, not for the three at once.
    assert block.attn.qkv.weight.std().item() == pytest.approx(math.sqrt(2 / (2 * WIDTH)), rel=0.02)
    assert block.mlp.fc2.weight.std().item() == pytest.approx(math.sqrt(2 / (5 * WIDTH)), rel=0.02)


# Modes


@pytest.mark.parametrize("way", ["when built", "later"])
def test_an_unknown_mode_is_refused(way):
    with pytest.raises((AssertionError, ValueError)):
        create(depth=1, weight_init="kan_mimetical") if way == "when built" else create(depth=1).init_weights("kann")


@pytest.mark.parametrize("mode", OWN + TIMMS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(mode):
    first, again, other = (create(seed, weight_init=mode, depth=1) for seed in (3, 3, 4))
    for (name, parameter), copy in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(parameter, copy), name
    assert not torch.equal(first.blocks[0].mlp.fc1.weight, other.blocks[0].mlp.fc1.weight)
    assert not torch.equal(first.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)


def test_skipping_leaves_the_layers_own_weights_and_loads_others():
    source, skipped = create(), create(1, weight_init="skip")
    bound = WIDTH**-0.5  # torch's own default for linear layers
    assert skipped.blocks[0].attn.qkv.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    skipped.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(skipped.eval()(x), source.eval()(x))


def test_weights_skipped_at_first_can_be_initialised_later():
    stock = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=1, num_heads=3, weight_init="skip")
    stock.init_weights()
    create(weight_init="skip", depth=1).init_weights()


@pytest.mark.parametrize("mode", OWN)
def test_weights_skipped_at_first_can_be_initialised_with_a_named_mode_later(mode):
    torch.manual_seed(0)
    model = create(weight_init="skip", depth=1)
    model.init_weights(mode)
    product = value_projection(model.blocks[0].attn, is_swapped=mode != "paper_mimetic")
    assert_noisy_identity(product, 0.4, -0.4)


@pytest.mark.parametrize("first", ["skip", "moco", "kan_mimetic"])
@pytest.mark.parametrize("mode", OWN)
def test_a_mode_asked_for_later_overrides_the_first(first, mode):
    model = create(weight_init=first, depth=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights(mode)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    x = torch.linspace(-3, 3, WIDTH)
    assert torch.equal(model.blocks[0].mlp.act1(x), x)
    expected = math.sqrt(1 / WIDTH) if mode == "variance_preserving" else 0.02
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("mode", [*OWN, "moco"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"reg_tokens": 2},
        {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
        {"global_pool": "avg"},
        {"init_values": 0.1},
        {"norm_layer": "rmsnorm"},
        {"global_pool": "map"},
    ],
    ids=lambda arguments: "-".join(arguments) or "default",
)
def test_a_model_built_on_meta_is_initialised_wholly_later(mode, arguments):
    model = create(weight_init=mode, depth=1, device="meta", **arguments)
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    model.init_weights()
    assert [name for name, parameter in model.named_parameters() if not parameter.isfinite().all()] == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_initialised_too(dtype):
    model = create(depth=1, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    product = value_projection(model.blocks[0].attn, is_swapped=True)
    assert product.diagonal().mean().item() == pytest.approx(-0.4, abs=0.02)
    assert off_diagonal(product).std().item() == pytest.approx(0.4 / math.sqrt(WIDTH), rel=0.05)


@pytest.mark.parametrize("mode", [*OWN, "moco"])
def test_fix_init_divides_each_blocks_outputs_by_the_root_of_twice_its_number(mode):
    plain, fixed = (dict(create(weight_init=mode, fix_init=fix).named_parameters()) for fix in (False, True))
    for name, parameter in plain.items():
        divisor = 1.0
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            divisor = math.sqrt(2 * (int(name.split(".")[1]) + 1))
        torch.testing.assert_close(fixed[name], parameter / divisor, rtol=1e-6, atol=0)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("mode", OWN)
def test_layers_without_biases_are_no_trouble(mode, qkv_bias):
    model = create(weight_init=mode, depth=1, qkv_bias=qkv_bias, proj_bias=False)
    assert (model.blocks[0].attn.qkv.bias is not None) == qkv_bias
    assert model.blocks[0].mlp.fc1.bias is None


@pytest.mark.parametrize("mode", OWN)
def test_registered_models_take_the_mode(mode):
    torch.manual_seed(0)
    model = timm.create_model("kat_tiny_patch16_224", weight_init=mode, depth=1, img_size=32)
    expected = math.sqrt(1 / 192) if mode == "variance_preserving" else 0.02
    assert model.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(expected, rel=0.03)
