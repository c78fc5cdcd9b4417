"""One rule makes pictures square, and a policy that was trained by another is not shown others in
silence."""

import numpy as np
import pytest

from vla.data.image_fitting import RESIZE, check_resize, describe_rule_mismatch, fit_to_square


@pytest.mark.parametrize(
    ("shape", "inner"),
    [
        ((480, 640), (48, 64)),
        ((640, 480), (64, 48)),
        ((64, 64), (64, 64)),
        ((639, 639), (64, 64)),
        ((1, 9), (7, 64)),
    ],
)
def test_the_whole_picture_stands_in_the_middle(shape, inner):
    square = fit_to_square(np.full((*shape, 3), 200, np.uint8), 64)
    assert square.shape == (64, 64, 3)
    rows, columns = (np.flatnonzero((square[..., 0] > 0).any(axis)) for axis in (1, 0))
    assert (len(rows), len(columns)) == inner
    assert (rows[0], columns[0]) == ((64 - inner[0]) // 2, (64 - inner[1]) // 2)
    assert set(np.unique(square)) <= {0, 200}


def test_a_pixel_is_the_mean_of_those_under_it():
    picture = np.arange(16, dtype=np.uint8).reshape(4, 4)[:, :, None].repeat(3, 2) * 8
    assert fit_to_square(picture, 2)[..., 0].tolist() == [
        [20, 36],
        [84, 100],
    ]  # (0 + 1 + 4 + 5) * 8 / 4 = 20


def test_another_rule_matters_for_other_shapes_only():
    assert describe_rule_mismatch({"resize": RESIZE}, "it") is None
    check_resize({"resize": RESIZE}, 480, 640, "a camera")
    check_resize({}, 64, 64, "a camera")
    for policy_spec, told in (({}, "names no rule"), ({"resize": "crop"}, "names 'crop'")):
        assert told in describe_rule_mismatch(policy_spec, "it")
        with pytest.raises(
            ValueError, match=f"a camera has images of 480 x 640 pixels.*{told}.*train it again"
        ):
            check_resize(policy_spec, 480, 640, "a camera")
