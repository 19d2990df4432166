"""Variance components: by hand, unbiased and covered on simulated data with known sigmas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polaris_fast.judge.variance import Components, variance_components

SIGMA_STORY, SIGMA_JUDGE = 0.10, 0.06


def simulate(
    seed: int, *, num_groups: int = 1, stories: int = 24, samples: tuple[int, ...] = (4,)
) -> tuple[list[list[float]], list[int]]:
    """Scores and groups under the model; the samples a story has go round."""
    source = np.random.default_rng(seed)
    scores, groups = [], []
    for group in range(num_groups):
        centre = source.normal(0.4, 0.3)  # prompts differ: no part of sigma_story
        for story in range(stories):
            true = centre + source.normal(0, SIGMA_STORY)
            num = samples[story % len(samples)]
            scores.append(list(true + source.normal(0, SIGMA_JUDGE, num)))
            groups.append(group)
    return scores, groups


def test_by_hand():
    """Means 2 and 5; within 2 + 2 over 2, between 2 * 1.5^2 * 2 = 9 over 1, less 2, halved."""
    found = variance_components([[1, 3], [4, 6]])
    assert found.judge_variance == pytest.approx(2.0)
    assert found.story_variance == pytest.approx((9 - 2) / 2)
    assert found.reliability(1).value == pytest.approx(3.5 / 5.5)
    assert found.reliability(4).value == pytest.approx(3.5 / 4.0)


def test_groups_take_the_prompts_difference_out():
    """Two prompts far apart, the same spread inside each."""
    inside = [[1.0, 3.0], [4.0, 6.0]]
    far = [[x + 100 for x in story] for story in inside]
    alone = variance_components(inside)
    both = variance_components(inside + far, ["a", "a", "b", "b"])
    assert both.story_variance == pytest.approx(alone.story_variance)
    assert variance_components(inside + far).story_variance > 1000


@pytest.mark.parametrize("samples", [(4,), (2, 3, 6)], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("num_groups", [1, 4])
def test_unbiased(samples, num_groups):
    found = []
    for seed in range(300):
        scores, groups = simulate(seed, num_groups=num_groups, stories=6, samples=samples)
        one = variance_components(scores, groups, num_resamples=2)
        found.append((one.story_variance, one.judge_variance))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(len(found))
    truth = np.array([SIGMA_STORY**2, SIGMA_JUDGE**2])
    assert np.all(np.abs(mean - truth) < 4 * error)
    assert np.all(4 * error < 0.4 * truth)  # the check can fail


@pytest.mark.parametrize("num_groups", [1, 4])
def test_intervals_hold_the_truth_about_as_often_as_they_say(num_groups):
    truth = SIGMA_STORY**2 / (SIGMA_STORY**2 + SIGMA_JUDGE**2)
    hits = np.zeros(3)
    runs = 150
    for seed in range(runs):
        scores, groups = simulate(seed, num_groups=num_groups, stories=24 // num_groups * 2)
        found = variance_components(scores, groups, num_resamples=300, seed=seed)
        for i, (estimate, true) in enumerate(
            [
                (found.sigma_story, SIGMA_STORY),
                (found.sigma_judge, SIGMA_JUDGE),
                (found.reliability(1), truth),
            ]
        ):
            hits[i] += estimate.low <= true <= estimate.high
    assert np.all(hits / runs > 0.85)
    assert np.all(hits / runs <= 1.0)


def test_a_judge_that_never_differs_and_stories_that_do_not():
    steady = variance_components([[0.5, 0.5], [0.7, 0.7]])
    assert steady.reliability().value == 1.0
    assert steady.samples_for(0.9) == 1
    alike = variance_components([[0.4, 0.6], [0.6, 0.4]])
    assert alike.story_variance < 0  # unbiased, so it may be
    assert alike.sigma_story.value == 0.0
    assert alike.reliability().value == 0.0
    assert alike.samples_for(0.5) is None


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9, 0.99])
def test_advised_samples_are_the_fewest_that_reach_it(wanted):
    found = Components(10, 0.01, 0.0157, np.zeros((1, 2)))
    k = found.samples_for(wanted)
    assert k is not None
    assert found.reliability(k).value >= wanted
    assert k == 1 or found.reliability(k - 1).value < wanted


def test_missing_samples_count_and_empty_stories_are_left_out():
    assert variance_components([[1, 3], [], [4, 6], [5]]).num_stories == 3


@pytest.mark.parametrize("scores", [[], [[1.0, 2.0]], [[1.0], [2.0]], [[], []]])
def test_too_little_data_is_told(scores):
    with pytest.raises(ValueError, match="at least two stories"):
        variance_components(scores)
