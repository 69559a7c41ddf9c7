"""What takes rows beside the run's folder."""

import numpy as np

from flashkat.training.outputs.tracker import Tracker


def test_a_tracker_that_is_off_takes_nothing():
    tracker = Tracker()
    assert not tracker.is_on
    tracker.log({"epoch": 0}, np.zeros((2, 2, 3), np.uint8))
    tracker.close()
