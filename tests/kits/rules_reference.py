"""Every rule and pre-aggregator by its definition, in 60 digits and without the package's code.

Whoever adds a rule adds its definition here, a function of a `Round`, to `RULES` or `PRE`; a rule
that has no breakdown point goes to `NO_BREAKDOWN` with the reason. tests/rules/test_breakdown.py
then holds it, behind every pre-aggregator, to what the definition does under attack.

Rows are lists of numbers of `mp`. Definitions are slow and literal: distances are of subtracted
coordinates, subsets are enumerated, the geometric median is a root of its gradient.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import mpmath
import numpy as np

mp = mpmath.mp.clone()
mp.dps = 60
Vector = list
Rows = list
TIE = 1 + 1e-9


@dataclass(frozen=True)
class Round:
    """What a definition is given: rows, f, and what draws and trust depend on."""

    rows: Rows
    f: int = 0
    seed: int = 0
    server_round: int = 1
    trusted: Vector = field(default_factory=list)

    @property
    def n(self) -> int:
        return len(self.rows)

    def room(self, most: int) -> int:
        """f, lowered to what there are replies for."""
        return max(0, min(self.f, most))


def exact(matrix: Sequence[Sequence[float]]) -> Rows:
    """A matrix of floats as rows of exact numbers."""
    return [[mp.mpf(float(value)) for value in row] for row in matrix]


def minus(one: Vector, other: Vector) -> Vector:
    return [a - b for a, b in zip(one, other, strict=True)]


def inner(one: Vector, other: Vector) -> mpmath.mpf:
    return mp.fsum(a * b for a, b in zip(one, other, strict=True))


def norm(row: Vector) -> mpmath.mpf:
    return mp.sqrt(inner(row, row))


def weighted(weights: Sequence, rows: Rows) -> Vector:
    columns = zip(*rows, strict=True)
    return [mp.fsum(w * v for w, v in zip(weights, column, strict=True)) for column in columns]


def mean_of(rows: Rows) -> Vector:
    return [mp.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def squares(rows: Rows) -> list[list]:
    """Squared distances."""
    return [[inner(minus(a, b), minus(a, b)) for b in rows] for a in rows]


def lower_median(values: Sequence) -> mpmath.mpf:
    return sorted(values)[(len(values) - 1) // 2]


def median_of(values: Sequence) -> mpmath.mpf:
    found = sorted(values)
    return (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2


def nearest_mean(values: Sequence, middle: mpmath.mpf, count: int) -> mpmath.mpf:
    near = sorted(values, key=lambda value: (abs(value - middle), value))[:count]
    return mp.fsum(near) / count


def trimmed(values: Sequence, f: int) -> mpmath.mpf:
    return mp.fsum(sorted(values)[f : len(values) - f]) / (len(values) - 2 * f)


def by_column(rows: Rows, function: Callable) -> Vector:
    return [function(column) for column in zip(*rows, strict=True)]


def median(given: Round) -> Vector:
    return by_column(given.rows, median_of)


def trimmed_mean(given: Round) -> Vector:
    f = given.room((given.n - 1) // 2)
    return by_column(given.rows, lambda column: trimmed(column, f))


def meamed(given: Round) -> Vector:
    count = given.n - given.room(given.n - 1)
    return by_column(given.rows, lambda c: nearest_mean(c, median_of(c), count))


def phocas(given: Round) -> Vector:
    f = given.room((given.n - 1) // 2)
    return by_column(given.rows, lambda c: nearest_mean(c, trimmed(c, f), given.n - f))


def krum_order(apart: list[list], members: Sequence[int], f: int) -> list[int]:
    """Members by their sum of distances to the n - f - 2 nearest, then to all."""
    count = max(1, len(members) - f - 2)

    def score(one: int) -> tuple:
        near = sorted(apart[one][other] for other in members if other != one)
        return mp.fsum(near[:count]), mp.fsum(near), one

    return sorted(members, key=score)


def krum(given: Round) -> Vector:
    f = given.room((given.n - 3) // 2)
    return given.rows[krum_order(squares(given.rows), range(given.n), f)[0]]


def multi_krum(given: Round) -> Vector:
    f = given.room((given.n - 3) // 2)
    order = krum_order(squares(given.rows), range(given.n), f)
    return mean_of([given.rows[i] for i in order[: max(1, given.n - given.f)]])


def bulyan(given: Round) -> Vector:
    f, left, chosen = given.room((given.n - 3) // 4), list(range(given.n)), []
    apart = squares(given.rows)
    for _ in range(given.n - 2 * f):
        chosen.append(krum_order(apart, left, f)[0])
        left.remove(chosen[-1])
    picked = [given.rows[i] for i in chosen]
    return by_column(picked, lambda c: nearest_mean(c, median_of(c), given.n - 4 * f))


def mda(given: Round) -> Vector:
    """Of all subsets; ties, to nine digits, by the sum of distances and then by the mean."""
    count = given.n - given.room((given.n - 1) // 2)
    apart = np.asarray(squares(given.rows), dtype=np.float64)
    subsets = [list(kept) for kept in itertools.combinations(range(given.n), count)]
    for measure in (np.max, np.sum):
        sizes = [measure(apart[np.ix_(kept, kept)]) for kept in subsets]
        subsets = [k for k, size in zip(subsets, sizes, strict=True) if size <= TIE * min(sizes)]
    means = [mean_of([given.rows[i] for i in kept]) for kept in subsets]
    while len(means) > 1 and (columns := [c for c in zip(*means, strict=True) if differ(c)]):
        kept = [value <= min(columns[0]) + slack(columns[0]) for value in columns[0]]
        means = list(itertools.compress(means, kept))
    return means[0]


def slack(values: Sequence) -> mpmath.mpf:
    return (TIE - 1) * max(abs(value) for value in values)


def differ(values: Sequence) -> bool:
    return max(values) - min(values) > slack(values)


def geometric_median(given: Round) -> Vector:
    """A row at which the pull of the others is at most its own, else where the gradient is zero."""
    best = min(given.rows, key=lambda row: cost(given.rows, row))
    others = [minus(other, best) for other in given.rows if other != best]
    pull = weighted([1 / norm(one) for one in others], others) if others else [mp.zero]
    if norm(pull) <= given.n - len(others):
        return best
    point, length = best, max(norm(one) for one in others)
    while cost(given.rows, point) >= cost(given.rows, best):  # from then on, never at a row
        length /= 2
        point = [a + length * b / norm(pull) for a, b in zip(best, pull, strict=True)]
    for _ in range(300):
        point, moved = _newton(given.rows, point)
        if moved <= mp.mpf(10) ** -20 * length:
            break
    return point


def cost(rows: Rows, at: Vector) -> mpmath.mpf:
    return mp.fsum(norm(minus(row, at)) for row in rows)


def _newton(rows: Rows, point: Vector) -> tuple[Vector, mpmath.mpf]:
    """The next point: Newton's if the sum of distances falls, else Weiszfeld's."""
    apart = [norm(minus(row, point)) for row in rows]
    units = [[v / a for v in minus(row, point)] for row, a in zip(rows, apart, strict=True)]
    gradient = [-mp.fsum(column) for column in zip(*units, strict=True)]
    total, d = mp.fsum(1 / a for a in apart), len(point)
    hessian = mp.matrix(d, d)
    for i in range(d):
        for j in range(d):
            crossed = mp.fsum(u[i] * u[j] / a for u, a in zip(units, apart, strict=True))
            hessian[i, j] = (total if i == j else 0) - crossed
    step = mp.lu_solve(hessian, mp.matrix([-g for g in gradient]))
    tried = [a + b for a, b in zip(point, step, strict=True)]
    if cost(rows, tried) > cost(rows, point):
        tried = weighted([1 / a / total for a in apart], rows)
    return tried, norm(minus(tried, point))


def centered_clipping(given: Round) -> Vector:
    """One step from zero at the median length."""
    lengths = [norm(row) for row in given.rows]
    return mean_of(cut(given.rows, lengths, lower_median(lengths)))


def normalized_mean(given: Round) -> Vector:
    lengths = [norm(row) for row in given.rows]
    scale = [lower_median(lengths) / a / given.n if a else mp.zero for a in lengths]
    return weighted(scale, given.rows)


def fltrust(given: Round) -> Vector:
    lengths, length = [norm(row) for row in given.rows], norm(given.trusted)
    trust = []
    for row, own in zip(given.rows, lengths, strict=True):
        cosine = inner(row, given.trusted) / own / length if own and length else mp.zero
        trust.append(max(cosine, mp.zero))
    total = mp.fsum(trust) or mp.one
    scale = [t * length / (a or mp.one) / total for t, a in zip(trust, lengths, strict=True)]
    return weighted(scale, given.rows)


def dnc(given: Round) -> Vector:
    """All coordinates are drawn: the iterations are one."""
    dropped = given.room((given.n - 1) // 2)
    centre = mean_of(given.rows)
    centred = [minus(row, centre) for row in given.rows]
    top = _principal(centred, [mp.one] * given.n)[1][0]
    order = sorted(range(given.n), key=lambda i: -(inner(centred[i], top) ** 2))
    return mean_of([given.rows[i] for i in sorted(order[dropped:])])


def flag(given: Round) -> Vector:
    """Five reweightings of the principal directions of the unit rows, by d × d matrices."""
    lengths = [norm(row) for row in given.rows]
    if not lower_median(lengths):
        return [mp.zero] * len(given.rows[0])
    units = [[v / a for v in row] for row, a in zip(given.rows, lengths, strict=True) if a]
    count, weights = len(units), [mp.one] * len(units)
    values, _ = _principal(units, weights)
    m = min((count + 1) // 2, sum(value > values[0] * mp.mpf("1e-12") for value in values))
    for _ in range(5):
        basis = _principal(units, weights)[1][:m]
        left = [max(mp.zero, 1 - mp.fsum(inner(u, b) ** 2 for b in basis)) for u in units]
        weights = [1 / mp.sqrt(value + mp.mpf("1e-7")) for value in left]
    total = mean_of(units)
    shadow = weighted([inner(total, b) for b in basis], basis)
    return [lower_median([a for a in lengths if a]) * value for value in shadow]


def _principal(rows: Rows, weights: Sequence) -> tuple[list, Rows]:
    """Eigenvalues, falling, and eigenvectors of Σ w x xᵀ."""
    d = len(rows[0])
    matrix = mp.matrix(d, d)
    for i, j in itertools.product(range(d), repeat=2):
        matrix[i, j] = mp.fsum(w * r[i] * r[j] for w, r in zip(weights, rows, strict=True))
    values, vectors = mp.eigsy(matrix)
    order = range(d - 1, -1, -1)
    return [values[k] for k in order], [[vectors[i, k] for i in range(d)] for k in order]


def cut(rows: Rows, lengths: Sequence, most: mpmath.mpf) -> Rows:
    pairs = zip(rows, lengths, strict=True)
    return [[v * most / a for v in row] if a > most else row for row, a in pairs]


def nnm(given: Round) -> Rows:
    f, apart = given.room((given.n - 1) // 2), squares(given.rows)
    found = []
    for i in range(given.n):
        near = sorted(range(given.n), key=lambda j, i=i: (j != i, apart[i][j], j))[: given.n - f]
        found.append(mean_of([given.rows[j] for j in sorted(near)]))
    return found


def bucketing(given: Round) -> Rows:
    parts = repr(("bucketing", given.seed, given.server_round)).encode()
    key = int.from_bytes(hashlib.blake2b(parts, digest_size=8).digest(), "little")
    order = np.random.Generator(np.random.Philox(key=key)).permutation(given.n)
    return [mean_of([given.rows[i] for i in order[k : k + 2]]) for k in range(0, given.n, 2)]


def clip(given: Round) -> Rows:
    return cut(given.rows, [norm(row) for row in given.rows], mp.one)


def arc(given: Round) -> Rows:
    f, lengths = given.room((given.n - 1) // 2), [norm(row) for row in given.rows]
    longest = sorted(lengths, reverse=True)
    return cut(given.rows, lengths, longest[2 * f * (given.n - f) // given.n])


NO_BREAKDOWN = {"mean": "the sum of all: one update moves it anywhere"}
RULES: dict[str, Callable[[Round], Vector]] = {
    "mean": lambda given: mean_of(given.rows),
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "geometric-median": geometric_median,
    "bulyan": bulyan,
    "meamed": meamed,
    "phocas": phocas,
    "centered-clipping": centered_clipping,
    "mda": mda,
    "dnc": dnc,
    "fltrust": fltrust,
    "flag": flag,
    "normalized-mean": normalized_mean,
}
PRE: dict[str, Callable[[Round], Rows]] = {
    "nnm": nnm,
    "bucketing": bucketing,
    "clip": clip,
    "arc": arc,
}
MOST: dict[str, Callable[[int], int]] = {
    "krum": lambda n: (n - 3) // 2,
    "multi-krum": lambda n: (n - 3) // 2,
    "bulyan": lambda n: (n - 3) // 4,
}


def most_malicious(rule: str, n: int, pre: Sequence[str] = ()) -> int:
    """The f up to which a rule has a bound: fewer than half, unless `MOST` says less.

    Behind buckets of two, each of which a malicious client may own, of as many rows as there are.
    """
    n = -(-n // 2) if "bucketing" in pre else n
    return max(0, MOST.get(rule, lambda n: (n - 1) // 2)(n))


def aggregate(rule: str, pre: Sequence[str], given: Round) -> Vector:
    """What the definitions make of a round.

    Raises:
        AssertionError: for a name without one.
    """
    for known, kind, names in ((PRE, "pre-aggregator", pre), (RULES, "rule", [rule])):
        for name in names:
            assert name in known, (
                f"{kind} {name!r} has no definition in tests/kits/rules_reference.py: add it"
            )
    for name in pre:
        given = replace(given, rows=PRE[name](given))
    return RULES[rule](given)
