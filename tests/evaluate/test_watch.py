import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from selftaught.evaluation.health import measure
from selftaught.evaluation.watch import diagnose

STEPS = range(0, 201, 25)


def first_alarm(features, losses=(), chance=None):
    """The alarm of the first step at which there is one; features: step -> [n, d]."""
    history = []
    for step in STEPS:
        history.append(measure(features(step), step=step))
        alarm = diagnose(history, list(losses)[:step], chance)
        if alarm is not None:
            return alarm
    return None


def random_network(n=256, d=64, seed=0):
    """Features as a random ReLU network gives them: one shared direction, a fast decaying spectrum, all positive."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 12, generator=generator)
    return (2 + x @ torch.randn(12, d, generator=generator) / 6).relu(), x


def noise(step, shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1000 + step))


@pytest.mark.parametrize(("n", "d"), [(256, 64), (20, 64), (256, 8), (512, 256)])
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_growth_is_left_alone(n, d, seed):
    start, x = random_network(n, d, seed)
    wide = x @ noise(seed, (12, d))

    def features(step):
        done = step / 200
        return (1 - done) * start + done * wide + 0.05 * noise(step, (n, d))

    assert first_alarm(features) is None


def test_clusters_in_few_dimensions_are_no_collapse():
    """A wide, whitened start that ends as ten tight clusters, as good representations do."""
    centres = noise(1, (10, 64))[torch.arange(256) % 10]
    assert first_alarm(lambda step: (200 - step) / 200 * noise(0, (256, 64)) + step / 200 * centres) is None


def test_a_rank_that_dips_and_recovers_is_no_collapse():
    start, x = random_network()
    line = x[:, :1] @ noise(3, (1, 64))

    def features(step):
        share = {25: 0.03, 50: 0.02, 75: 0.05}.get(step, 1.0)
        return (share * (start + noise(step, (256, 64))) if step else start) + (line if 0 < step < 100 else 0)

    assert first_alarm(features) is None


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("halving", [10, 25])
def test_names_a_collapse_to_a_point(halving, seed):
    start, _x = random_network(seed=seed)
    point = start.mean(0)
    alarm = first_alarm(lambda step: point + (start - point) * 0.5 ** (step / halving))
    assert alarm is not None
    assert alarm.kind == "complete collapse"
    assert alarm.step <= 200
    assert "stop-gradient" in alarm.cause
    assert "all samples get nearly the same feature" in str(alarm)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_names_a_collapse_to_a_line(offset):
    start, x = random_network()
    line = offset + x[:, :1] @ noise(3, (1, 64))
    alarm = first_alarm(lambda step: start * 0.5 ** (step / 10) + line * min(1, step / 25))
    assert alarm is not None
    assert alarm.kind == "dimensional collapse"
    assert alarm.step <= 200


def test_names_a_slow_dimensional_collapse_after_healthy_growth():
    basis = torch.linalg.qr(noise(0, (64, 64))).Q
    x = noise(1, (256, 64))

    def features(step):  # the spectrum becomes ever steeper
        return x * torch.exp(-torch.arange(64) * (0.02 + 0.06 * (step / 50) ** 2)) @ basis

    history = [measure(features(step), step=step) for step in range(0, 1001, 25)]
    steps = [row.step for i, row in enumerate(history) if diagnose(history[: i + 1], []) is not None]
    ranks = {row.step: row.rank for row in history}
    assert steps
    assert ranks[steps[0]] < 3.3
    assert ranks[steps[0]] < ranks[0] / 10


def test_one_bad_measure_raises_no_alarm():
    start, _ = random_network()
    point = start.mean(0)
    scale = {100: 1e-3}
    found = first_alarm(lambda step: point + (start - point) * scale.get(step, 1 + step / 1000))
    assert found is None


def test_names_a_representation_that_never_moved_but_not_one_that_has_arrived():
    start, _x = random_network()
    alarm = first_alarm(lambda step: start)
    assert alarm is not None
    assert alarm.kind == "representation not moving"
    assert first_alarm(lambda step: start if step == 0 else start + 0.3 * noise(0, (256, 64))) is None


def test_names_a_projector_that_met_the_loss_without_ever_spreading():
    """SimSiam's projector begins at a spread of .018; the loss falls to -1 and nothing ever spreads."""
    x = 1 + 0.01 * noise(0, (256, 64))

    def features(step):
        return x + 1e-4 * noise(step, (256, 64))

    alarm = first_alarm(features, [-1 + math.exp(-i / 5) for i in range(200)])
    assert alarm is not None
    assert alarm.kind == "complete collapse"
    assert first_alarm(features, [1 - i / 400 for i in range(200)]) is None  # the loss still has work to do


def wavy(mean, size, n):
    return [mean + size * math.sin(i * 1.7) for i in range(n)]


@pytest.mark.parametrize("chance", [math.log(2 * 128 - 1), math.log(4)])
def test_names_a_loss_stuck_at_chance(chance):
    alarm = diagnose([], wavy(chance, 0.02, 400), chance)
    assert alarm is not None
    assert alarm.kind == "loss stuck at chance"
    assert diagnose([], wavy(chance, 0.02, 400), None) is None
    assert diagnose([], wavy(chance, 0.02, 200), chance) is None  # a warm-up
    slow = [x - 0.02 * chance * i / 400 for i, x in enumerate(wavy(chance, 0.02, 400))]
    assert diagnose([], slow, chance) is None
    assert diagnose([], wavy(0.9 * chance, 0.02, 400), chance) is None


def test_names_divergence_and_leaves_bounded_losses_alone():
    alarm = diagnose([], [6.0 - i / 50 for i in range(100)] + [4.0 + i for i in range(100)], chance=6.0)
    assert alarm is not None
    assert alarm.kind == "diverging loss"
    assert diagnose([], [0.02 + 3.9 * min(1, i / 200) for i in range(400)]) is None  # BYOL's rises in health
    assert diagnose([], [0.1] * 50 + [11.0] * 200, chance=11.1) is None  # MoCo's, while the queue fills
    spike = [1.0] * 200
    spike[-3] = 1e4
    assert diagnose([], spike) is None


def test_names_the_first_non_finite_step():
    alarm = diagnose([], [1.0, 0.9, math.nan, math.nan])
    assert alarm is not None
    assert (alarm.kind, alarm.step) == ("non-finite values", 2)
    broken = measure(torch.full((4, 3), torch.nan), step=75)
    alarm = diagnose([broken], [1.0])
    assert alarm is not None
    assert alarm.step == 75


def simsiam(stop_gradient, lr, seed):
    """SimSiam of a small network on eight noisy clusters; the alarm within 200 steps."""
    torch.manual_seed(seed)
    data = torch.randn(8, 32)[torch.arange(512) % 8] + 0.5 * torch.randn(512, 32)
    encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    predictor = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))
    parameters = [*encoder.parameters(), *predictor.parameters()]
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
    history, losses = [], []
    for step in range(201):
        if step % 25 == 0:
            with torch.no_grad():
                history.append(measure(encoder(data), step=step))
            alarm = diagnose(history, losses)
            if alarm is not None:
                return alarm
        x = data[torch.randperm(512)[:128]]
        z1, z2 = (encoder(x + 0.3 * torch.randn_like(x)) for _ in range(2))
        p1, p2 = predictor(z1), predictor(z2)
        if stop_gradient:
            z1, z2 = z1.detach(), z2.detach()
        loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return None


@pytest.mark.parametrize("lr", [0.02, 0.1])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_real_collapse_is_named_within_200_steps_and_its_healthy_twin_is_not(lr, seed):
    alarm = simsiam(stop_gradient=False, lr=lr, seed=seed)
    assert alarm is not None
    assert alarm.kind == "complete collapse"
    assert simsiam(stop_gradient=True, lr=lr, seed=seed) is None
