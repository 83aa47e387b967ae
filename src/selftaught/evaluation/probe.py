"""Linear probes of frozen features: multinomial logistic regression (the figure that is reported) and closed-form
ridge regression (the figure that is watched while training).

The logistic probe minimises   mean cross-entropy(W'x + b) + l2/2 |W|^2   over standardised x, b unpenalised; it is
scikit-learn's LogisticRegression with C = 1 / (n l2). Three exact steps make it fast:
- Rotation. The optimum lies in the span of the training rows, so x is rotated into its r <= min(n, d) principal
  directions: with 500 labels, 3072-pixel rows are a 500-wide problem. An orthogonal rotation leaves |W| as it is.
- Preconditioning. In those directions the Hessian is nearly diagonal; coordinates scaled by the root of its diagonal
  make it near the identity, and L-BFGS needs tens of iterations where correlated pixels would take thousands.
- Warm starts. Strengths are tried from strong to weak, each from the last optimum.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from torch import Tensor

from selftaught import rng
from selftaught.errors import UserError
from selftaught.evaluation.threads import one_thread

STRENGTHS = tuple(10.0 ** (1 - i) for i in range(8))  # 10 ... 1e-6
SINGLE = 0.1  # the strength where no class has two labels, so that none can be held out
_FOLDED = 1000  # up to here 5-fold cross-validation chooses the strength, above it one held-out fifth does
_PATIENCE = 2  # the path ends when validation got worse this many times: the weakest fits cost most
_ROWS = 2048  # rows of a chunk in a pass over the data: it should stay in the cache
_DOUBLE = 1 << 20  # matrices up to this many entries are solved in float64


@dataclass(frozen=True)
class Probe:
    """A linear classifier of raw (not standardised) features: scores x W + b, W [d, c], b [c], labels [c]."""

    weight: Tensor
    bias: Tensor
    classes: Tensor
    l2: float

    def scores(self, features: Float[Tensor, "m d"]) -> Float[Tensor, "m c"]:
        return features.to(self.weight.dtype) @ self.weight + self.bias

    def predict(self, features: Float[Tensor, "m d"]) -> Int[Tensor, " m"]:
        """The label (a value of the training labels) with the highest score."""
        return self.classes[self.scores(features).argmax(1)]


@dataclass(frozen=True)
class _Design:
    """Standardised, rotated training rows z [n, r], their variances, and the map back to raw features."""

    z: Tensor
    variance: Tensor  # [r], descending
    mean: Tensor  # [d]
    back: Tensor  # [d, r]: raw weight = back @ rotated weight


def linear_probe(
    train: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> Probe:
    """Logistic probe fitted on all rows, its L2 strength chosen on held-out parts of the same rows.

    The strength maximises held-out accuracy (ties: lower cross-entropy): by stratified 5-fold cross-validation up to
    1000 rows, on one stratified fifth above. A class with one label always stays in the fitted part; where every
    class has just one, nothing can be held out and l2 = 0.1 is used. The folds are a function of `seed`.
    """
    classes, target = _classes(train, labels)
    with one_thread(train.numel()):
        design = _design(train)
        l2, start = _choose(design, target, len(classes), sorted(strengths, reverse=True), seed)
        return _probe(design, target, classes, l2, start)


def fit_probe(train: Float[Tensor, "n d"], labels: Int[Tensor, " n"], l2: float) -> Probe:
    """Logistic probe of a given L2 strength on all rows."""
    classes, target = _classes(train, labels)
    with one_thread(train.numel()):
        return _probe(_design(train), target, classes, l2)


def ridge_probe(train: Float[Tensor, "n d"], labels: Int[Tensor, " n"], l2: float = 1e-2) -> Probe:
    """Least-squares classifier in closed form: one-hot targets regressed on standardised features.

    Minimises mean |W'x + b - y|^2 + l2 |W|^2. One d x d (or n x n, if smaller) solve: cheap enough to run while
    training, usually a little below the logistic probe.
    """
    classes, target = _classes(train, labels)
    design = _design(train)
    y = F.one_hot(target, len(classes)).to(design.z.dtype)
    bias = y.mean(0)
    cross = design.z.T @ (y - bias) / len(y)
    rotated = cross / (design.variance + l2)[:, None]  # z'z/n is diagonal in its principal directions
    return _assemble(design, rotated, bias, classes, l2)


def _classes(train: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if len(train) != len(labels):
        raise UserError(f"the probe has {len(train)} training rows and {len(labels)} labels; give one label per row")
    classes, target = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"the probe's labels hold {len(classes)} class, it needs at least 2; label more samples")
    return classes, target


def _design(train: Tensor) -> _Design:
    n, d = train.shape
    x = train.to(torch.float64 if n * d <= _DOUBLE else torch.float32)
    mean = x.mean(0)
    std = x.std(0, correction=0)
    # A constant column carries nothing; its rounding noise must not be blown up to variance 1.
    alive = std > 1e-6 * mean.abs().clamp(min=1e-12)
    scale = torch.where(alive, 1 / std.where(alive, torch.ones_like(std)), torch.zeros_like(std))
    x = (x - mean).mul_(scale)
    small = (x @ x.T if n < d else x.T @ x) / n
    variance, basis = torch.linalg.eigh(small)
    keep = variance > variance[-1].clamp(min=1e-12) * torch.finfo(x.dtype).eps * len(variance)
    variance, basis = variance[keep].flip(0), basis[:, keep].flip(1)
    if n < d:
        basis = x.T @ basis / (variance * n).sqrt()
    return _Design(x @ basis, variance, mean, scale[:, None] * basis)


def _probe(design: _Design, target: Tensor, classes: Tensor, l2: float, start: Tensor | None = None) -> Probe:
    solution = _solve(design.z, target, len(classes), l2, start, exact=True)
    return _assemble(design, solution[:, :-1].T, solution[:, -1], classes, l2)


def _assemble(design: _Design, rotated: Tensor, bias: Tensor, classes: Tensor, l2: float) -> Probe:
    weight = design.back @ rotated
    return Probe(weight, bias - design.mean @ weight, classes, l2)


def _choose(
    design: _Design, target: Tensor, classes: int, strengths: list[float], seed: int
) -> tuple[float, Tensor | None]:
    """The strength with the best held-out accuracy (ties: lower cross-entropy) and a solution near its optimum."""
    folds = list(_held_out(target, seed))
    if len(strengths) == 1 or not folds:
        return (strengths[0] if len(strengths) == 1 else SINGLE), None
    parts = [(design.z[~held], target[~held], design.z[held], target[held]) for held in folds]
    starts: list[Tensor | None] = [None] * len(folds)
    best, chosen, worse = (-1, 0.0), (strengths[0], starts[0]), 0
    for l2 in strengths:
        right, loss = 0, 0.0
        for i, (z, y, z_held, y_held) in enumerate(parts):
            solution = starts[i] = _solve(z, y, classes, l2, starts[i], exact=False)
            scores = z_held @ solution[:, :-1].T + solution[:, -1]
            right += int((scores.argmax(1) == y_held).sum())
            loss += float(F.cross_entropy(scores, y_held, reduction="sum"))
        worse = worse + 1 if right < best[0] else 0
        if (right, -loss) > best:
            best, chosen = (right, -loss), (l2, starts[0])
        if worse == _PATIENCE:
            break
    return chosen


def _held_out(target: Tensor, seed: int) -> Iterator[Bool[Tensor, " n"]]:
    """Stratified held-out masks: five folds where labels are few, one fifth otherwise; none if all are singletons."""
    fold = torch.full((len(target),), -1, dtype=torch.int64)
    labels = target.cpu()
    for c in range(int(labels.max()) + 1):
        members = (labels == c).nonzero()[:, 0]
        if len(members) > 1:
            order = torch.from_numpy(rng.permutation(len(members), seed, c))
            # Each class starts at its own fold, so that small classes do not all fall into the first folds.
            fold[members[order]] = (torch.arange(len(members)) + c) % 5
    for f in range(5 if len(target) <= _FOLDED else 1):
        held = fold == f
        if held.any():
            yield held.to(target.device)


def _solve(
    z: Float[Tensor, "n r"], y: Int[Tensor, " n"], classes: int, l2: float, start: Tensor | None, exact: bool
) -> Float[Tensor, "c r1"]:
    """Optimal [weight | bias] of the rows z, class-major, by L-BFGS-B in preconditioned coordinates.

    Class-major products over chunks that stay in the cache took 31 ms a pass at 50,000 x 512 x 10 on one core, the
    row-major ones 300 ms.
    """
    n, r = z.shape
    start = z.new_zeros(classes, r + 1) if start is None else start
    root = _curvature(z, start)
    root[:, :r] += l2  # the bias is not penalised
    root.sqrt_()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        table = torch.from_numpy(flat).to(z).view(classes, r + 1) / root
        weight, bias = table[:, :r].contiguous(), table[:, r:]
        gradient = torch.zeros_like(table)
        loss = 0.0
        for rows, target in zip(z.split(_ROWS), y.split(_ROWS)):
            logp = F.log_softmax(torch.addmm(bias, weight, rows.T), dim=0)
            loss -= float(logp.gather(0, target[None]).sum())
            residual = logp.exp_().scatter_add_(0, target[None], logp.new_full((1, len(target)), -1.0))
            gradient[:, :r] += residual @ rows
            gradient[:, r] += residual.sum(1)
        gradient /= n
        gradient[:, :r] += l2 * weight
        return loss / n + l2 / 2 * float(weight.square().sum()), (gradient / root).double().cpu().numpy().ravel()

    # Choosing a strength needs no more digits than its accuracy shows; float32 sums allow about seven.
    gradient_left, relative_fall = (1e-7, 1e-12) if z.dtype == torch.float64 else (1e-5, 1e-8)
    options = {"maxiter": 2000, "gtol": gradient_left, "ftol": relative_fall}
    if not exact:
        options = {"maxiter": 200, "gtol": 1e-4, "ftol": 1e-7}
    found = minimize(
        objective, (start * root).double().cpu().numpy().ravel(), jac=True, method="L-BFGS-B", options=options
    )
    return torch.from_numpy(found.x).to(z).view(classes, r + 1) / root


def _curvature(z: Tensor, table: Tensor) -> Tensor:
    """Diagonal [c, r + 1] of the Hessian of the mean cross-entropy at [weight | bias]."""
    r = z.shape[1]
    total = torch.zeros_like(table)
    for rows in z.split(_ROWS):
        p = torch.addmm(table[:, r:], table[:, :r].contiguous(), rows.T).softmax(0)
        spread = p * (1 - p)
        total[:, :r] += spread @ rows.square()
        total[:, r] += spread.sum(1)
    # Classes that the start already separates have almost no curvature there, but may need it on the way.
    return (total / len(z)).clamp_(min=1e-8)
