"""Write the owner's files for plan.json: validation.npz and test.npz, out of make_friedman1.

python examples/friedman/make_data.py DIR
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import make_friedman1


def draw(points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs around 0 and numbers of about size 1, so that the plan's rate fits them."""
    x, y = make_friedman1(points, n_features=10, noise=1.0, random_state=seed)
    return (x - 0.5).astype(np.float32) * 3, ((y - 14.4) / 5).astype(np.float32)


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name, seed in (("validation", 1), ("test", 2)):
        x, y = draw(500, seed)
        np.savez(target / f"{name}.npz", x=x, y=y)
        print(target / f"{name}.npz")
    print(shutil.copy(Path(__file__).with_name("plan.json"), target))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
