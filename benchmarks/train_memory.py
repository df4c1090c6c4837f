"""Measure the memory that one training step of the 3D stage takes, with and without activation checkpointing.

    python benchmarks/train_memory.py                        # latents of 160 × 224 × 168 voxels, batch 1
    python benchmarks/train_memory.py --device cuda --batch_size 2 --bf16

Each measurement is a process of its own: network, gradients, AdamW's moments and the averaged weights, and
one step on random latents. On a CPU the memory is the most that the process had in RAM, with Python and its
libraries; on a card it is the most that torch held there.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace

import torch

from ct2mri.cli import parse
from ct2mri.training.latents_module import LatentsModule
from ct2mri.training.vqvae import VqvaeModule
from machine import hardware, peak_memory, table, versions

WINDOWS = 2


def one_step(arguments: argparse.Namespace, checkpointing: bool) -> dict[str, float]:
    """GiB at the peak, and seconds, of a step of the preset's 3D stage."""
    words = ["--config", arguments.config, "--data", "none", "--output_dir", "none"]
    options = parse("train latents", [*words, "--vqvae", "none"])
    options = replace(options, gradient_checkpointing=checkpointing)
    vqvae = VqvaeModule(parse("train vqvae", words)).model
    device = torch.device(arguments.device)
    module = LatentsModule(options, vqvae, windows=WINDOWS).to(device)
    average = [parameter.detach().clone() for parameter in module.parameters()]
    optimiser = torch.optim.AdamW(module.parameters())
    items, shape = arguments.batch_size, [edge // vqvae.factor for edge in arguments.shape]
    encoded = [part for part in options.condition if part != "windows"]
    batch = {
        "target": torch.randn(items, vqvae.embedding_dim, *shape, device=device),
        "condition": torch.randn(items, len(encoded) * vqvae.embedding_dim, *shape, device=device),
        "weight": torch.ones(items, 1, *shape, device=device),
        "key": torch.tensor([[0, place] for place in range(items)]),
    }
    if "windows" in options.condition:
        batch["windows"] = torch.randn(items, WINDOWS, *arguments.shape, device=device)
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
        loss = module.loss(batch)
    loss.backward()
    optimiser.step()
    torch._foreach_lerp_(average, list(module.parameters()), 0.001)
    if not torch.isfinite(loss):
        raise ArithmeticError("the loss is not finite")
    cuda = device.type == "cuda"
    return {
        "peak": torch.cuda.max_memory_allocated(device) / 2**30 if cuda else peak_memory(),
        "seconds": time.perf_counter() - start,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="brain", help="preset of the network (default: %(default)s)")
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 224, 168], help="voxels of the volume")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where autocast does")
    parser.add_argument("--checkpointing", choices=["yes", "no"], help="measure this alone")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one_step(arguments, arguments.checkpointing == "yes")))
        return

    rows = []
    for checkpointing in [arguments.checkpointing] if arguments.checkpointing else ["no", "yes"]:
        words = [sys.executable, __file__, *sys.argv[1:], "--checkpointing", checkpointing, "--one"]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append([checkpointing, f"{found['peak']:.1f} GiB", f"{found['seconds']:.1f} s"])
    print(hardware(arguments.device))
    print(versions("torch"))
    print(
        f"{found['parameters'] / 1e6:.0f} M parameters, latents of {'×'.join(map(str, arguments.shape))} "
        f"voxels, batch {arguments.batch_size}, {'bfloat16' if arguments.bf16 else 'float32'}; one step\n"
    )
    print(table(["activation checkpointing", "peak memory", "time of the step"], rows))


if __name__ == "__main__":
    main()
