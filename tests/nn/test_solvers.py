"""The solvers: optimal on their points, whatever the points."""

import numpy as np
import pytest

from flashkat.nn.solvers import Points, evaluate, least_squares, minimax


def points(function, x):
    return Points(x, function(x), np.ones(len(x)))


def error(given, fit):
    return given.weight * (evaluate(*fit, given.x) - given.y)


def test_evaluate_is_the_formula():
    value = evaluate(np.array([1.0, 2.0]), np.array([3.0, -4.0]), np.array([-2.0, 0.5]))
    assert value.tolist() == pytest.approx([(1 - 4) / (1 + 6 + 16), (1 + 1) / (1 + 1.5 + 1)])


def test_least_squares_is_a_minimum():
    given = points(np.abs, np.linspace(-2, 2, 101))
    a, b = least_squares(given, 4, 2, 2.0)
    best = 0.999 * np.square(error(given, (a, b))).sum()  # but for rounding
    for index in range(4):
        for step in (-1e-3, 1e-3):
            moved = a.copy()
            moved[index] += step
            assert np.square(error(given, (moved, b))).sum() > best
    for index in range(2):
        for step in (-1e-3, 1e-3):
            moved = np.abs(b + step * (np.arange(2) == index))
            assert np.square(error(given, (a, moved))).sum() > best


@pytest.mark.parametrize("function", [np.sin, np.exp, lambda x: np.maximum(x, 0)])
def test_minimax_is_the_best_of_all_from_the_worst_start(function):
    """From 0 it comes to the same error as from the least squares, which is below that of random changes."""
    given = points(function, np.linspace(-2, 2, 201))
    good = minimax(given, least_squares(given, 4, 2, 2.0), 2.0)
    from_nothing = minimax(given, (np.zeros(4), np.zeros(2)), 2.0)
    best = np.abs(error(given, good)).max()
    assert np.abs(error(given, from_nothing)).max() == pytest.approx(best, rel=1e-3)
    random = np.random.default_rng(0)
    for _ in range(200):
        moved = [table * (1 + 0.01 * random.standard_normal(len(table))) for table in good]
        assert np.abs(error(given, moved)).max() >= best * (1 - 1e-3)


def test_minimax_minimises_the_weighted_error():
    x = np.linspace(-1, 1, 51)
    given = Points(x, np.sign(x), 1 + 9 * (x > 0))
    largest = np.abs(error(given, minimax(given, (np.zeros(1), np.zeros(0)), 1.0)))
    # A constant c: 1 + c on the left, 10 (1 - c) on the right.
    assert largest.max() == pytest.approx(20 / 11)


def test_minimax_never_answers_with_less_than_its_start():
    """Errors of 1e-11 are below what the linear programs resolve."""
    given = points(np.tanh, np.linspace(-1, 1, 401))
    start = least_squares(given, 12, 8, 1.0)
    assert np.abs(error(given, minimax(given, start, 1.0))).max() <= np.abs(error(given, start)).max()


def test_minimax_of_one_place_is_its_start():
    given = Points(np.ones(3), np.arange(3.0), np.ones(3))
    start = np.array([1.0]), np.array([0.0])
    assert minimax(given, start, 1.0) is start


def test_minimax_of_what_is_exact_stays_exact():
    given = points(lambda x: 0 * x, np.linspace(-1, 1, 30))
    a, b = minimax(given, (np.zeros(3), np.zeros(1)), 1.0)
    assert not evaluate(a, b, given.x).any()


@pytest.mark.parametrize(("height", "weight"), [(1e-6, 1.0), (1.0, 1e-6)])
def test_least_squares_do_not_depend_on_the_scale(height, weight):
    x = np.linspace(-3, 3, 201)
    whole = points(np.tanh, x)
    given = Points(x, height * whole.y, np.full(len(x), weight))
    found, expected = (evaluate(*least_squares(each, 6, 4, 3.0), x) for each in (given, whole))
    assert np.abs(found / height - expected).max() < 1e-6
