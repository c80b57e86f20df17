"""Which rule should decide whether validation images support a temperature? Networks with a known one are simulated.

    uv run python tests/benchmarks/temperature_rules.py

Each network answers about five classes, with logits that are a known factor too large, on 30 to 1,000 validation images and on
2,000 others. For each rule: the share of networks that get a temperature, the share of these whose loss on the other images is
worse with it (and whose calibration error is, by more than 0.003), and the mean calibration error of all networks.
"""

import numpy as np

from finetune.confidence import temperature as calibration

OTHERS, REPEATS = 2000, 40


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def draw(random: np.random.Generator, count: int, spread: float, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a network whose logits are ``factor`` times the calibrated ones, and classes drawn from those."""
    logits = random.normal(size=(count, 5)) * spread
    targets = np.array([random.choice(5, p=shares) for shares in softmax(logits)])
    return softmax(logits * factor), targets


def loss(shares: np.ndarray, targets: np.ndarray, value: float) -> float:
    return calibration.mean_loss(calibration.tempered(shares, value, multi_label=False), targets)


def main() -> None:
    random = np.random.default_rng(0)
    rows = []
    for count in (30, 100, 300, 1000):
        for spread in (2, 5, 10):
            for _ in range(REPEATS):
                factor = np.exp(random.normal() * 0.35)
                val, test = draw(random, count, spread, factor), draw(random, OTHERS, spread, factor)
                wrong = int((val[0].argmax(1) != val[1]).sum())
                if not wrong:
                    continue
                best = calibration._best(*val)
                ratio = 2 * count * (loss(*val, 1.0) - loss(*val, best))
                before, after = calibration.assess(*test), calibration.assess(*test, best)
                helped = calibration._helps_others(*val)
                rows.append((wrong, ratio, helped, before[1] - after[1], before[0].ece, after[0].ece))
    wrong, ratio, helped, gain, before_, after_ = np.array(rows, float).T
    rules = {
        "always": wrong > 0,
        "likelihood ratio": ratio > calibration._BY_CHANCE,
        "and ten mistakes": (ratio > calibration._BY_CHANCE) & (wrong >= calibration.FEWEST_MISTAKES),
        "and others by a standard error": (ratio > calibration._BY_CHANCE)
        & (wrong >= calibration.FEWEST_MISTAKES)
        & (helped > 0),
    }
    print(f"{len(rows)} networks; calibration error without a temperature {before_.mean():.4f}")
    print(f"{'rule':32} {'applied':>8} {'worse loss':>11} {'worse error':>12} {'error':>7}")
    for name, applied in rules.items():
        worse = (applied & (gain < -1e-4)).sum() / applied.sum()
        worse_error = (applied & (after_ > before_ + 0.003)).sum() / applied.sum()
        error = np.where(applied, after_, before_).mean()
        print(f"{name:32} {applied.mean():8.2f} {worse:11.3f} {worse_error:12.3f} {error:7.4f}")


if __name__ == "__main__":
    main()
