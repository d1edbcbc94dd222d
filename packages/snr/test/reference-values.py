"""Writes reference-values.json: the values that the closed forms are tested against, from mpmath with 30 digits.

P(hit) is computed as its definition reads, E_z[P(Binomial(n, 1 - Phi(sqrt(2) SNR + z)) < k)], with the binomial tail as a
regularized incomplete beta function: another route than the order-statistic integral of src/hit.ts.

    pip install mpmath && python3 reference-values.py
"""

import json
import random

import mpmath as mp

mp.mp.dps = 30
random.seed(20251111)


def phi_cdf(x):
    return mp.erfc(-x / mp.sqrt(2)) / 2


def log_cdf(x):
    return mp.log(phi_cdf(x))


def quantile(p):
    """Root of log Phi(x) = log p by bisection."""
    low, high = mp.mpf(-45), mp.mpf(10)
    for _ in range(130):
        middle = (low + high) / 2
        if log_cdf(middle) < mp.log(p):
            low = middle
        else:
            high = middle
    return low


def binomial_tail(n, k, p):
    """P(Binomial(n, p) >= k) = I_p(k, n - k + 1) for k >= 1, by the continued fraction of the incomplete beta function."""
    a, b = mp.mpf(k), mp.mpf(n - k + 1)
    if p > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - p)
    return incomplete_beta(a, b, p)


def incomplete_beta(a, b, x):
    """DLMF 8.17.22, modified Lentz; for x < (a + 1) / (a + b + 2)."""
    if x == 0:
        return mp.mpf(0)
    tiny = mp.mpf(10) ** -200
    c, d = mp.mpf(1), 1 - (a + b) * x / (a + 1)
    d = 1 / (d if d != 0 else tiny)
    h = d
    m = 0
    while True:
        m += 1
        for step in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + step * d
            d = 1 / (d if d != 0 else tiny)
            c = 1 + step / c
            c = c if c != 0 else tiny
            h *= c * d
        if abs(c * d - 1) < mp.mpf(10) ** -28:
            break
    front = mp.exp(mp.loggamma(a + b) - mp.loggamma(a) - mp.loggamma(b) + a * mp.log(x) + b * mp.log1p(-x))
    return front * h / a


def outcome(snr, n, k):
    """(P(hit), P(miss)) by the trapezoidal rule over z, halving the step until 14 digits of both stand still."""
    shift = mp.sqrt(2) * mp.mpf(snr)

    def sums(step):
        hit = miss = mp.mpf(0)
        for i in range(int(-45 / step), int(45 / step) + 1):
            z = i * step
            density = mp.npdf(z)
            exceed = phi_cdf(-(shift + z))
            tail = binomial_tail(n, k, exceed)
            miss += density * tail
            hit += density * (1 - tail)
        return hit * step, miss * step

    step = mp.mpf(1) / 4
    previous = sums(step)
    while True:
        step /= 2
        current = sums(step)
        if all(abs(a - b) <= mp.mpf(10) ** -14 * abs(a) for a, b in zip(current, previous)):
            return current
        previous = current


def text(x):
    return mp.nstr(x, 17)


points = [-37.5, -30, -20, -10, -5, -2.0001, -2, -1.9999, -1, -0.1, -1e-9, 0, 1e-9, 0.1, 1, 1.9999, 2, 2.0001, 5, 8]
points += [random.uniform(-37, 8) for _ in range(40)]
probabilities = [mp.mpf(p) for p in ["1e-300", "1e-100", "1e-20", "1e-6", "0.001", "0.02275", "0.3", "0.5", "0.7", "0.999"]]

grid = [(s, n, k) for s in (0, 0.5, 1, 2, 4, 7, 12) for n, k in ((1, 1), (7, 3), (63, 8), (1000, 1), (1000, 1000))]
grid += [(s, n, k) for s in (0, 1, 2.5, 4, 12) for n, k in ((4096, 16), (1000000, 1), (1000000, 1000))]
grid += [(-3, 100, 10)]

table = {
    "cdf": [[x, text(phi_cdf(mp.mpf(x))), text(log_cdf(mp.mpf(x)))] for x in points],
    "quantile": [[text(p), text(quantile(mp.mpf(float(p))))] for p in probabilities],
    "hit": [[s, n, k, *map(text, outcome(s, n, k))] for s, n, k in grid],
}

rows = ",\n".join(f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in values) + "\n]" for name, values in table.items())
open("reference-values.json", "w").write("{\n" + rows + "\n}\n")
