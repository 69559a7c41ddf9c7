import copy
import io
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torchvision
from processes import forked, free_port
from tiny import same
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import flashkat
from flashkat.errors import InputError
from flashkat.tools.convert.known import Wishes, activation_modules
from flashkat.tools.convert.swap import largest_divisor


def call(model, example):
    """The sum of squares of all outputs, and the first of them."""
    out = model(**example) if isinstance(example, dict) else model(example)
    found = (
        [out] if isinstance(out, torch.Tensor) else [each for each in out.values() if isinstance(each, torch.Tensor)]
    )
    return sum(each.square().mean() for each in found), found[0]


def output(model, example):
    with torch.no_grad():
        return call(model.eval(), example)[1]


def rationals(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, flashkat.GroupRational)}


class Functions(nn.Module):
    """Activations as functions and methods, with dropout that depends on the mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 8, 3), nn.Linear(8 * 9, 12), nn.Linear(12, 4)

    def forward(self, x, scale=None, flip=False):
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        x = torch.flatten(x, 1).tanh()
        x = F.gelu(self.fc1(x)) if scale is None else x
        return self.fc2(F.dropout(x, 0.5, training=self.training))


IMAGE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def mlp(*activations, channels=16):
    layers = [nn.Linear(channels, channels)]
    for activation in activations:
        layers += [activation, nn.Linear(channels, channels)]
    return nn.Sequential(*layers)


ROW = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def test_convert_and_revert(subject):
    model, example, count, left = subject
    before, state, text = output(model, example), copy.deepcopy(model.state_dict()), repr(model)
    degrees = {} if count < 20 else {"m": 5, "n": 2}  # which take a moment less to fit
    report = flashkat.convert(model, example=example, **degrees)
    assert (len(report.converted), len(report.left), len(rationals(model))) == (count, left, count)
    now = model.state_dict()
    assert same(state, {name: now[name] for name in state})  # statistics of norms too
    change = float((output(model, example) - before).abs().max())
    assert 0 < change <= report.change * 1.001 + 1e-6
    # A network of many layers with random weights amplifies what its first layers change.
    assert report.change < (0.05 if count < 20 else 2) * report.reach
    for each in (copy.deepcopy(model), model):
        flashkat.revert(each)
        assert repr(each) == text
        torch.testing.assert_close(output(each, example), before, rtol=0, atol=0)


def as_identity(model, example):
    """The model with identities in place of its activations but gates."""
    kinds = {type(module) for module in activation_modules(model, Wishes(None))}
    return flashkat.convert(model, dict.fromkeys(kinds - {nn.Hardsigmoid}, "identity"), example=example)


def test_every_place_has_its_rational(subject):
    """Identities are exact: the model must be that without activations."""
    model, example, count, _ = subject
    without = copy.deepcopy(model)
    for module in activation_modules(without, Wishes(None)):
        if not isinstance(module, nn.Hardsigmoid):
            module.register_forward_pre_hook(lambda module, args: setattr(module, "seen", args[0].clone()))
            module.register_forward_hook(lambda module, args, out: module.seen)
    report = as_identity(model, example)
    assert len(report.converted) == count
    torch.testing.assert_close(output(model, example), output(without, example), rtol=1e-4, atol=1e-4)


def test_training_step_and_state_dict(subject):
    model, example, _, _ = subject
    copied = copy.deepcopy(model)
    as_identity(model, example)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    before = {name: module.denominator.clone() for name, module in rationals(model).items()}
    call(model.train(), example)[0].backward()
    optimizer.step()
    assert all((module.denominator != before[name]).any() for name, module in rationals(model).items())
    as_identity(copied, example)
    copied.load_state_dict(model.state_dict())
    torch.testing.assert_close(output(copied, example), output(model, example), rtol=0, atol=0)


@pytest.mark.slow
def test_compiled(subject):
    model, example, _, _ = subject
    flashkat.convert(model, example=example)
    expected = output(model, example)
    torch.testing.assert_close(output(torch.compile(model), example), expected, rtol=1e-3, atol=1e-3)


def named(report):
    return [row.name for row in report.converted]


def test_functions_and_methods_become_modules():
    torch.manual_seed(0)
    model = Functions()
    before = output(model, IMAGE)
    report = flashkat.convert(model, example=IMAGE)
    assert [(row.name, row.start, row.channels, row.dim) for row in report.converted] == [
        ("relu", "relu", 8, 1),
        ("tanh", "tanh", 72, -1),
        ("gelu", "gelu", 12, -1),
    ]
    assert float((output(model, IMAGE) - before).abs().max()) == pytest.approx(report.change)
    assert report.change < 0.05
    assert isinstance(model, Functions)
    model.train()
    assert not torch.equal(model(IMAGE), model(IMAGE))  # dropout follows the mode
    with pytest.raises(AssertionError, match="scale has been specialized"):
        model(IMAGE, scale=IMAGE)


def test_rewritten_models_are_copied_and_saved():
    torch.manual_seed(0)
    model = nn.Sequential(torchvision.models.resnet.BasicBlock(8, 8))
    example = torch.randn(1, 8, 4, 4)
    flashkat.convert(model, {nn.ReLU: "swish"}, example=example)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert same(twin.state_dict(), model.state_dict())
        torch.testing.assert_close(output(twin, example), output(model, example), rtol=0, atol=0)
        twin[0].relu_1.numerator.data.zero_()
        assert not torch.equal(output(twin, example), output(model, example))


def test_compiled_whole():
    """The rewritten forwards leave no graph breaks."""
    model = nn.Sequential(Functions(), nn.ReLU())
    flashkat.convert(model, example=IMAGE)
    assert len(rationals(model)) == 4
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, IMAGE), output(model, IMAGE))


def test_data_parallel(tmp_path):
    model = mlp(nn.GELU())
    flashkat.convert(model, example=ROW)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        wrapped(ROW).sum().backward()
    finally:
        dist.destroy_process_group()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(InputError, match="wrapped in DistributedDataParallel: convert it first"):
        flashkat.convert(wrapped, example=ROW)


def two_steps(folder):
    """Train the folder's model on this process's own example, and save the weights before and after."""
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), Path(folder)
    model, example = torch.load(folder / "model.pt", weights_only=False)
    own = {name: ids.roll(rank, 1) for name, ids in example.items()} if isinstance(example, dict) else example + rank
    wrapped = DistributedDataParallel(model.train())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    weights = [{name: weight.detach().clone() for name, weight in model.named_parameters()}]
    for _ in range(2):
        optimizer.zero_grad()
        call(wrapped, own)[0].backward()
        optimizer.step()
    weights.append(dict(model.named_parameters()))
    torch.save(weights, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_the_same(subject, tmp_path):
    model, example, *_ = subject
    flashkat.convert(model, example=example)
    torch.save((model, example), tmp_path / "model.pt")
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": free_port(), "WORLD_SIZE": 2}
    done = forked(tmp_path, two_steps, (str(tmp_path),), [{**meeting, "RANK": rank} for rank in range(2)])
    assert done.status == [0, 0], done.stderr
    (before, after), (_, others) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same(after, others)
    names = [f"{name}.denominator" for name in rationals(model)]
    assert names
    assert not any(torch.equal(before[name], after[name]) for name in names)


def test_one_module_in_several_places_of_a_sequence():
    act = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.Linear(16, 8), act, nn.Linear(8, 4), act)
    report = flashkat.convert(model, example=ROW)
    assert [(row.name, row.channels, row.groups) for row in report.converted] == [("1", 8, 8), ("3", 4, 4)]
    assert "1 with fewer than 8 groups" in str(report)
    assert list(dict(model.named_children())) == ["0", "1", "2", "3"]
    flashkat.revert(model)
    assert model[1] is model[3] is act


def test_one_module_in_several_parents():
    act = nn.GELU()
    model = nn.Sequential(mlp(act), mlp(act), nn.Linear(16, 8), act)
    report = flashkat.convert(model, example=ROW)
    assert [(row.name, row.channels) for row in report.converted] == [("0.1", 16), ("1.1", 16), ("3", 8)]
    assert model[0][1] is not model[1][1]


class Untraceable(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.act = nn.ReLU()

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
            if x.sum() > 1e9:
                raise ValueError("unlikely")
        return F.silu(x)


def test_what_cannot_be_traced_has_one_rational_for_all_calls_or_is_left():
    report = flashkat.convert(Untraceable([16, 16, 16]), example=ROW)
    assert named(report) == ["act"]
    assert [row.name for row in report.left] == ["silu"]
    reason = "the forward of Untraceable cannot be traced by torch.fx"
    assert report.left[0].reason.startswith(reason)
    assert report.notes[0].startswith(f"act serves several calls, as {reason}")
    with pytest.raises(
        InputError, match="ReLU stays because its calls have 8 channels in dim -1 and 16 channels in dim -1"
    ):
        flashkat.convert(Untraceable([16, 16, 8]), example=ROW)


def test_function_in_an_attribute():
    """PyTorch's layer holds its activation so, and skips it in evaluation if it is a ReLU."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    example = torch.randn(2, 4, 16)
    before = output(model, example)
    assert named(flashkat.convert(model, example=example)) == ["layers.0.activation", "layers.1.activation"]
    for module in rationals(model).values():
        module.numerator.data.zero_()
    assert (output(model, example) - before).abs().max() > 0.01
    flashkat.revert(model)
    assert model.layers[0].activation is F.relu
    torch.testing.assert_close(output(model, example), before)


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(16, 16), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.fc(x)
        y = self.act(x)
        return x + y


def test_model_that_needs_the_written_input_is_refused():
    model = InPlace()
    with pytest.raises(InputError, match="the model needs activations that write to their input"):
        flashkat.convert(model, example=ROW)
    assert model.act.inplace
    assert not model.act._forward_hooks


def test_hooks_of_an_activation_stay():
    model, seen = mlp(nn.GELU()), []
    handle = model[1].register_forward_hook(lambda module, args, out: seen.append(module))
    flashkat.convert(model, example=ROW)
    seen.clear()
    model(ROW)
    assert seen == [model[1]]
    handle.remove()
    model(ROW)
    assert len(seen) == 1


def test_starts_may_be_functions_and_keys_may_be_names():
    model = mlp(nn.GELU(), nn.ReLU(), nn.SiLU())
    report = flashkat.convert(model, {F.gelu: torch.sin, "relu": "gelu"}, example=ROW)
    assert [(row.name, row.start) for row in report.converted] == [("1", "fit"), ("3", "gelu")]
    assert [(row.name, row.reason) for row in report.left] == [("5", "it is not among the activations asked for")]
    x = torch.linspace(-2, 2, 16).expand(1, 16)
    torch.testing.assert_close(model[1](x), x.sin(), rtol=0, atol=0.01)


def test_filters_by_name():
    model = nn.Sequential(mlp(nn.GELU()), mlp(nn.GELU()), mlp(nn.GELU()))
    report = flashkat.convert(model, example=ROW, include=["0.*", "1.*"], exclude="0.1")
    assert named(report) == ["1.1"]
    assert {row.name: row.reason for row in report.left} == {
        "0.1": "exclude names it",
        "2.1": "include does not name it",
    }
    with pytest.raises(InputError, match=r"exclude='head' matches no activation: choose among 0\.1, 2\.1"):
        flashkat.convert(model, example=ROW, exclude="head")


def test_gates_and_learned_activations_are_named_to_be_converted():
    model = mlp(nn.Sigmoid(), nn.PReLU(), nn.GELU())
    report = flashkat.convert(model, example=ROW)
    assert named(report) == ["5"]
    assert {row.what: row.reason.split(":")[0] for row in report.left} == {
        "Sigmoid": "it is a gate",
        "PReLU": "it has parameters of its own",
    }
    report = flashkat.convert(model, {nn.Sigmoid: None, nn.PReLU: "leaky_relu"}, example=ROW)
    assert [(row.name, row.start) for row in report.converted] == [("1", "sigmoid"), ("3", "leaky_relu")]


def test_unknown_layouts_are_refused():
    model, images = nn.Sequential(nn.ReLU()), torch.randn(2, 6, 6, 6)
    with pytest.raises(
        InputError, match=r"no layer beside 0 shows which dimension of \(2, 6, 6, 6\) holds the channels"
    ):
        flashkat.convert(model, example=images)
    with pytest.raises(InputError, match="dim=4 is out of range"):
        flashkat.convert(model, example=images, dim=4)
    assert isinstance(model[0], nn.ReLU)
    report = flashkat.convert(model, example=images, dim=1)
    assert (report.converted[0].dim, model[0].channels) == (1, 6)


def test_wide_inputs_have_wide_fits():
    near, far = mlp(nn.GELU()), mlp(nn.GELU())
    report = flashkat.convert(near, example=ROW)
    wide = flashkat.convert(far, example=20 * ROW)
    assert report.converted[0].interval == (-3, 3)
    assert wide.converted[0].interval[1] > 3
    x = torch.linspace(-20, 20, 16)[None]
    assert (far[1](x) - F.gelu(x)).abs().max() < (near[1](x) - F.gelu(x)).abs().max() / 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_coefficients_keep_their_precision(dtype):
    model = mlp(nn.GELU()).to(dtype)
    flashkat.convert(model, example=ROW.to(dtype))
    assert model[1].numerator.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert model(ROW.to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (mlp(), {}, "nothing to convert in Sequential: it calls no activation that is known"),
        (
            mlp(nn.SiLU()),
            {"starts": {nn.GELU: "gelu"}},
            "nothing to convert in Sequential: SiLU stays because it is not",
        ),
        (mlp(nn.SiLU()), {"starts": {nn.SiLU: "swich"}}, "no start is called 'swich': did you mean 'swish'?"),
        (mlp(nn.SiLU()), {"groups": 0}, "a rational needs groups >= 1"),
        (mlp(nn.SiLU()), {"example": torch.randn(2, 5)}, "Sequential does not run on the example: mat1 and mat2"),
        (torch.compile(mlp(nn.SiLU())), {}, "the model is compiled: convert it first"),
        (nn.GELU(), {}, "the model is a single GELU"),
        (nn.ModuleDict({"used": nn.SiLU()}), {}, "does not run on the example"),
    ],
)
def test_what_cannot_be_converted_gets_one_line(model, arguments, message):
    with pytest.raises(InputError) as error:
        flashkat.convert(model, **{"example": ROW, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_unreached_activations_are_left():
    model = mlp(nn.GELU())
    model[0].unused = nn.ReLU()
    assert [(row.name, row.reason) for row in flashkat.convert(model, example=ROW).left] == [
        ("0.unused", "the example does not reach it")
    ]


def test_largest_divisor():
    assert [largest_divisor(channels, 8) for channels in (64, 12, 7, 11, 4)] == [8, 6, 7, 1, 4]


class NeedsItsActivation(nn.Module):
    """Runs with an nn.GELU alone."""

    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.GELU(), nn.Linear(8, 8)

    def forward(self, x):
        if not isinstance(self.a, nn.GELU):
            raise TypeError("a must be nn.GELU")
        return self.a(self.fc(x))


def test_a_model_that_does_not_run_with_rationals_stays_as_it_is():
    model, x = nn.Sequential(mlp(nn.ReLU(), channels=8), NeedsItsActivation()), torch.randn(2, 8)
    flashkat.convert(model, {nn.ReLU: None}, example=x)
    with pytest.raises(
        InputError, match=r"does not run with rationals in place of its activations: a must be nn\.GELU"
    ):
        flashkat.convert(model, example=x)
    assert isinstance(model[1].a, nn.GELU)
    assert isinstance(model[0][1], flashkat.GroupRational)
    flashkat.revert(model)
    assert isinstance(model[0][1], nn.ReLU)
    only = nn.Sequential(NeedsItsActivation())
    with pytest.raises(InputError, match="; exclude those that it needs"):
        flashkat.convert(only, example=x)
    with pytest.raises(InputError, match="nothing to revert"):
        flashkat.revert(only)


def test_inputs_that_are_not_finite_are_refused():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(8, 8), nn.ReLU()

        def forward(self, x):
            return self.act(torch.where(self.fc(x) > 0, x, -torch.inf))

    model = Masked()
    with pytest.raises(
        InputError, match="act gets numbers that are not finite on the example: give another example, or exclude='act'"
    ):
        flashkat.convert(model, example=torch.randn(2, 8))
    assert isinstance(model.act, nn.ReLU)
