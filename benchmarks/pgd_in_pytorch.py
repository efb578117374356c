"""Prints the time of PGD-10 on ResNet-50 (silu) in PyTorch: channels last, bfloat16, torch.compile.

    python benchmarks/pgd_in_pytorch.py [--batch_size 128] [--image_size 224] [--steps 10] [--device cuda]

It is the peer of `scripts/run_on_pjrt.py run FOLDER --function=pgd-10`, on the same machine, where FOLDER was lowered
with --all_steps: the same network with the batch norms' moving statistics, the same attack, random weights. It needs
PyTorch and torchvision, and no TensorFlow. If torchattacks is installed, its PGD attacks the same compiled network.
"""

import argparse
import importlib.util
import statistics
import time

import torch
import torchvision

EPSILON, PIXELS = 4.0, 255.0


class Network(torch.nn.Module):
    """ResNet-50 with silu, in bfloat16, from images [n, 3, h, w] in 0..1 to float32 logits."""

    def __init__(self, device):
        super().__init__()
        model = torchvision.models.resnet50().eval().requires_grad_(False)
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, torch.nn.ReLU):
                    setattr(module, name, torch.nn.SiLU())
        self.model = model.to(device, torch.bfloat16, memory_format=torch.channels_last)

    def forward(self, images):
        return self.model(images.to(torch.bfloat16)).float()


def pgd(model, images, labels, steps, step_size):
    """Returns adversarial images of PGD from a uniform random start."""
    points = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, PIXELS)
    for _ in range(steps):
        points.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(points / PIXELS), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        with torch.no_grad():
            points = points + step_size * gradient.sign()
            points = torch.minimum(torch.maximum(points, images - EPSILON), images + EPSILON).clamp(0, PIXELS)
    return points


def seconds(attack, repeats, device):
    """Returns the seconds of each of `repeats` attacks, after three that are not counted."""
    times = []
    for _ in range(repeats + 3):
        begin = time.perf_counter()
        attack()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return times[3:]


def show(name, times, batch_size):
    median = statistics.median(times)
    spread = f"({1000 * min(times):.1f}..{1000 * max(times):.1f})"
    print(f"{name:<28}{1000 * median:.1f} ms {spread}, {batch_size / median:.1f} images/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=10)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cuda", "cpu"), default=found, help="default: cuda if there is a GPU")
    args = parser.parse_args()
    device = args.device
    if device == "cuda" != found:
        parser.error("PyTorch finds no GPU here")
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(
        f"PGD-{args.steps}, ResNet-50, {args.image_size} px, batch {args.batch_size}: {name}, torch {torch.__version__}"
    )
    torch.manual_seed(0)
    images = torch.randint(0, 256, (args.batch_size, 3, args.image_size, args.image_size), device=device).float()
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (args.batch_size,), device=device)
    eager, step_size = Network(device), max(1.0, EPSILON / args.steps)
    for kind, model in {"eager": eager, "torch.compile": torch.compile(eager)}.items():
        times = seconds(lambda model=model: pgd(model, images, labels, args.steps, step_size), args.repeats, device)
        show(f"PyTorch, {kind}", times, args.batch_size)
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        attack = torchattacks.PGD(model, EPSILON / PIXELS, step_size / PIXELS, steps=args.steps)
        unit = (images / PIXELS).to(torch.bfloat16)
        show(
            "torchattacks, torch.compile", seconds(lambda: attack(unit, labels), args.repeats, device), args.batch_size
        )


if __name__ == "__main__":
    main()
