"""Certified accuracy against the radius, of networks trained with and without noise, on the embedded images.

    python benchmarks/certification.py --sigma=31.875 [--images=200] [--samples=1000] [--epochs=8]

It trains a ResNet-8 under the noise, and certifies it and the embedded adversarially trained one under the same noise.
"""

import argparse
import tempfile
import time

from keras_sat import data, models
from keras_sat import run as run_lib
from keras_sat.evaluation import certify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sigma", type=float, default=31.875, help="in pixels 0..255")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=8)
    args = parser.parse_args()
    settings = run_lib.Run(objective="gaussian", sigma=args.sigma, epochs=args.epochs)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        noisy, _ = run_lib.train(settings, f"{folder}/run")
    print(f"\ntrained in {time.perf_counter() - start:.0f} s")
    test = data.load("fashion_mnist_mini", f"test[:{args.images}]", args.images)
    networks = {"noise": noisy, "sat-fashion-mnist": models.ResNet8(weights="sat-fashion-mnist")}
    for name, model in networks.items():
        start = time.perf_counter()
        report = certify(model, test, args.sigma, n=args.samples, progress=False)
        print(f"\n{name}, {time.perf_counter() - start:.0f} s\n{report.table()}")


if __name__ == "__main__":
    main()
