"""Loss and accuracy, over batches and processes."""

import math

import pytest
import torch

from flashkat.errors import InputError
from flashkat.evaluation.metrics import Meters, Metrics
from flashkat.system import distributed


def updated(output, target, earlier=None):
    meters = Meters()
    if earlier is not None:
        meters.add(earlier)
    meters.update(output, target, torch.nn.functional.cross_entropy(output, target))
    return meters


@pytest.mark.parametrize("classes", [1, 2, 4, 5])
def test_at_most_five_classes(classes):
    scores, target = torch.eye(classes).repeat(3, 1), torch.arange(classes).repeat(3)
    meters = updated(scores, target)
    meters.update(scores, target.flip(0), torch.tensor(0.0))
    metrics = meters.metrics()
    assert metrics.top5 == 100
    assert metrics.top1 == pytest.approx(50 * (1 + float((target == target.flip(0)).double().mean())))


def test_sums_go_on_where_others_stopped():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 7, generator=generator)
    target = torch.randint(0, 7, (9,), generator=generator)
    resumed = updated(scores[2:], target[2:], earlier=updated(scores[:2], target[:2]).sums())
    found, expected = resumed.metrics(), updated(scores, target).metrics()
    assert found.loss == pytest.approx(expected.loss)
    assert (found.top1, found.top5) == pytest.approx((expected.top1, expected.top5))


def test_averages_are_over_all_processes(monkeypatch):
    """A process without images counts for nothing."""
    other = [*updated(torch.eye(6), torch.arange(6).flip(0)).sums(), 0]
    monkeypatch.setattr(distributed, "total", lambda values: [a + b for a, b in zip(values, other, strict=True)])
    assert updated(torch.eye(6), torch.arange(6)).metrics().top1 == 50
    assert Meters().metrics().top1 == 0


def test_images_whose_outputs_are_not_finite_are_counted():
    scores, target = torch.eye(4), torch.arange(4)
    scores[1, 2], scores[3] = math.inf, math.nan
    meters = updated(scores, target)
    meters.update(torch.eye(4), target, torch.tensor(0.0))
    assert (meters.metrics().nonfinite, meters.metrics().images) == (2, 8)
    meters.reset()
    meters.update(torch.eye(4), target, torch.tensor(0.0))
    assert (meters.metrics().nonfinite, meters.metrics().images) == (0, 4)


def test_a_pass_without_images_is_an_error():
    with pytest.raises(InputError, match="a whole pass over the data gave no images"):
        Meters().metrics()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_batches_that_are_not_finite_can_be_left_out(bad):
    meters, scores, target = Meters(), torch.eye(6), torch.arange(6)
    for loss in (bad, 0.5, bad, 1.0):
        meters.measure(scores if math.isfinite(loss) else scores.flip(0), target, torch.tensor(loss), only_finite=True)
        meters.count += len(target)
        if loss is bad and meters.count == 6:
            # They are no pass without images.
            assert all(map(math.isnan, (meters.metrics().loss, meters.metrics().top1, meters.metrics().top5)))
    assert meters.metrics() == Metrics(0.75, 100, 100)
    assert meters.sums() == [9.0, 1200.0, 1200.0, 12]
    meters.reset()
    meters.update(scores, target, torch.tensor(bad))
    assert not math.isfinite(meters.metrics().loss)
    assert meters.metrics().top1 == 100
