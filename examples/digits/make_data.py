"""Write the owner's files for plan.json: validation.npz and test.npz, out of scikit-learn's digits.

python examples/digits/make_data.py DIR
"""

import shutil
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits


def main(target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    order = np.random.default_rng(1).permutation(len(y))
    for name, rows in (("validation", order[:300]), ("test", order[300:600])):
        np.savez(target / f"{name}.npz", x=x[rows], y=y[rows])
        print(target / f"{name}.npz")
    print(shutil.copy(Path(__file__).with_name("plan.json"), target))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
