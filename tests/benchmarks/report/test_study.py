"""The study's page: choices, claims, fine-tuning and functions."""

from benchmarks.parts import common
from benchmarks.report.study import pairs, studied


def test_claims_have_intervals(results):
    text = studied(results)
    assert "| `kat,opt=muon` | 3 | 92.00% | 93.00% | 0.1234 | 12,346 |" in text
    # 1.5, 2 and 0: their standard error is 0.6009, and t with two degrees of freedom is 4.3027.
    assert "| `kat,opt=muon` | `vit,lr=2e-3` | 3 | +1.17 ± 0.60 [-1.42, +3.75] | 2, 1, 0 | +1.17 ± 0.60" in text


def test_speeds_are_those_of_gpus(results):
    path = results / "recipes_digits.json"
    document = common.read(path)
    del document["environment"]["gpu"]
    common.write(path, document)
    assert "| `kat,opt=muon` | 3 | 92.00% | 93.00% | 0.1234 |\n" in studied(results)


def test_choices_are_compared_with_the_best_rates(results):
    text = studied(results)
    assert "| `kat,lr=2e-3` | 2 | 89.15% | 90.15% |  |" in text
    assert "| `kat,degrees=5-4` | 2 | 88.65% | 89.65% | -0.50 ± 0.00 [-0.50, -0.50] |" in text
    assert text.index("`kat,lr=2e-3` | 2") < text.index("`kat,degrees=5-4` | 2") < text.index("`kat` | 2")


def test_epochs_to_the_same_accuracy(results):
    text = studied(results)
    assert "| `vit,from=vit` | 3 | 90.00% | 3, 3, 3 |" in text
    assert "| `kat,start=gelu,from=vit` | 3 | 89.67% | 2, 2, never |" in text
    assert "From a ViT that trained 100 epochs, 3 more epochs" in text


def test_functions_over_seeds(results):
    assert "| `blocks.0.mlp.act2` | elu (3) | 0.10 | 0.25 | 0.70 (0.60 to 0.80) |" in studied(results)


def test_one_seed_is_no_claim():
    rows = [{"contender": name, "seed": 1, "top1": 90.0, "ema_top1": 90.0} for name in ("kat", "vit")]
    assert list(pairs(rows)) == []


def test_what_is_not_measured_is_told(results):
    (results / "recipes_cifar10.json").unlink()
    text = studied(results)
    assert "### CIFAR-10\n\nNot measured yet.\n\n### CIFAR-10, narrow models\n\n![" in text
