"""Augmentation keeps what a picture says."""

import pytest
import torch

from vla.data.augment import random_light, random_shift


@pytest.fixture
def images():
    return torch.randint(0, 256, (64, 6, 5, 3), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


def test_nothing_asked_nothing_changed(images):
    state = torch.get_rng_state()
    assert random_shift(images, 0) is images
    assert random_light(images, 0.0) is images
    assert torch.equal(torch.get_rng_state(), state)


def test_a_shift_is_a_move_that_repeats_the_border(images):
    torch.manual_seed(0)
    moved = random_shift(images, 2)
    assert moved.shape == images.shape
    assert moved.dtype == torch.uint8
    found = set()
    for before, after in zip(images, moved, strict=True):
        offsets = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(shifted(before, dy, dx), after)
        ]
        assert len(offsets) == 1
        found |= set(offsets)
    assert len(found) > 15  # of 25; rows move on their own
    assert {dy for dy, _ in found} == {dx for _, dx in found} == {-2, -1, 0, 1, 2}


def shifted(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """Pixel by pixel: what stands dy further down and dx further right, or the nearest there is."""
    height, width, _ = image.shape
    result = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            result[y, x] = image[min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
    return result


def test_light_stays_within_its_bounds():
    torch.manual_seed(0)
    grey = torch.full((500, 2, 2, 3), 200, dtype=torch.uint8)
    lit = random_light(grey, 0.2).float()
    assert lit.dtype == torch.float32
    # gain 0.8 to 1.2 around 127.5 moves 200 to 185.5 .. 214.5, and each channel by 0.2 * 85 / 3 =
    # 5.7 more
    assert lit.min() >= 179
    assert lit.max() <= 221
    assert lit.min() < 183
    assert lit.max() > 217
    # one gain and one shift an image: its pixels stay alike
    assert (lit.amax((1, 2)) == lit.amin((1, 2))).all()
    assert lit.std(0).min() > 3


def test_light_does_not_wrap_around():
    torch.manual_seed(1)
    ends = (
        torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(200, 1, 2, 3).contiguous()
    )
    lit = random_light(ends, 0.5)
    assert lit[:, 0, 0].max() < 128 < lit[:, 0, 1].min()
