"""The examples run, learn, and stay short. Their pages show their output."""

import importlib.util
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.py"))
PAGES = ROOT / "docs" / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name, *argv):
    module = load(name)
    return module, module.main([str(argument) for argument in argv])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_short_and_has_a_page_with_its_output(path):
    assert len(path.read_text().splitlines()) < 150
    page = (PAGES / f"{path.stem.replace('_', '-')}.md").read_text()
    assert f"python examples/{path.name}" in page
    assert re.search(r"```\n.+\n```", page, re.DOTALL)


def losses(out):
    return [float(number) for number in re.findall(r"(?:loss|  )\s*(\d+\.\d+)(?: bits|$)", out, re.MULTILINE)]


def test_detection():
    sizes = ["--side", 64, "--width", 16, "--depth", 1, "--steps", 1, "--batch-size", 2, "--new-pictures", 2]
    module, (overlap, right) = run("detection", *sizes)
    assert 0 <= overlap <= 1
    assert 0 <= right <= 1
    model = module.build(64, 16, 2)
    features = model.backbone(module.torch.rand(1, 3, 64, 96))
    assert [tuple(each.shape) for each in features.values()] == [
        (1, 64, rows, columns) for rows, columns in ((16, 24), (8, 12), (4, 6), (2, 3))
    ]


def test_the_pictures_of_the_detector_lie_in_their_boxes():
    module = load("detection")
    for _ in range(20):
        image, truth = module.picture(64)
        rows, columns = truth["masks"][0].nonzero().T
        assert image.shape == (3, 64, 64)
        assert truth["boxes"].tolist() == [[columns.min(), rows.min(), columns.max(), rows.max()]]


def test_segmentation(capsys):
    module, overlap = run("segmentation", "--width", 16, "--depth", 2, "--steps", 16, "--batch-size", 8)
    found = losses(capsys.readouterr().out)
    assert found[-1] < found[0]
    assert 0 < overlap < 1
    classes = module.torch.tensor([[0, 1], [2, 2]])
    assert module.mean_overlap(classes, classes) == 1
    assert module.mean_overlap(module.torch.zeros_like(classes), classes) == pytest.approx(1 / 4 / 3)


def test_language(capsys):
    module, bits = run("language", "--width", 32, "--depth", 1, "--length", 32, "--steps", 24, "--characters", 50_000)
    found = losses(capsys.readouterr().out)
    assert found[-2] < found[0] < 1.2 * math.log2(len(module.CHARACTERS))
    assert bits < math.log2(len(module.CHARACTERS))


def test_the_language_model_sees_only_what_came_before():
    module = load("language")
    model = module.GPT(32, 2, 4, 8).eval()
    tokens = module.torch.arange(8)[None]
    other = tokens.clone()
    other[0, 5:] = 50
    before, after = model(tokens), model(other)
    module.torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not module.torch.equal(before[:, 5:], after[:, 5:])


def test_physics():
    module, errors = run("physics", "--width", 8, "--steps", 20)
    assert all(error < 1 for error in errors.values())
    points = module.torch.rand(5, 2, dtype=module.torch.float64)
    exact = module.laplacian(lambda x: module.solution(x), points)
    module.torch.testing.assert_close(exact, -2 * math.pi**2 * module.solution(points))


def test_second_derivatives_of_the_network_are_differentiated_rightly():
    module = load("physics")
    model = module.network("rational", 4)
    points = module.torch.rand(3, 2, dtype=module.torch.float64)
    names = [name for name, _ in model.named_parameters()]

    def second(*values):
        call = module.torch.func.functional_call
        return module.laplacian(lambda x: call(model, dict(zip(names, values, strict=True)), x), points)

    values = [value.detach().requires_grad_() for value in model.parameters()]
    for name, value in zip(names, values, strict=True):
        if name.endswith("denominator"):
            value.data += 0.1  # away from the kink at 0, on whose sides central differences would cancel
    assert module.torch.autograd.gradcheck(second, values)


def test_cnn():
    _, accuracies = run("cnn", "--epochs", 3, "--width", 8)
    assert accuracies.keys() == {"relu", "rational"}
    assert accuracies["rational"] > 0.3


def test_the_cnn_mirrors_only_where_asked():
    module = load("cnn")
    images = module.torch.arange(8.0).expand(64, 1, 8, 8)
    rises = [each[0, 4, 4] > each[0, 4, 3] for each in module.augmented(images, flips=False)]
    assert all(rises)
    assert {bool(each[0, 4, 4] > each[0, 4, 3]) for each in module.augmented(images, flips=True)} == {True, False}


def test_convert_vit():
    _, found = run("convert_vit", "--epochs", 2, "--depth", 1)
    assert abs(found["ViT"] - found["KAT, just converted"]) < 0.02
    assert found["KAT, trained on"] > found["ViT"]


@pytest.mark.parametrize("name", ["accelerate", "lightning"])
def test_loops_of_others(name):
    pytest.importorskip(name)
    _, accuracy = run(f"{name}_loop", "--epochs", 4, "--width", 32, "--depth", 1)
    assert accuracy > 0.3
