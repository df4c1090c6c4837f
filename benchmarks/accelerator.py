"""Measure on one card, in eight minutes, what networks of the published sizes take: translating and training.

    python benchmarks/accelerator.py                            # a card with 24 GB or more
    python benchmarks/accelerator.py --device cpu --tiny        # tiny sizes: only whether it runs

Prints a table of the targets with what was measured, then what `train.py` and `train_memory.py` print. A part
that the time left does not suffice for is left out, and said so. The straightforward loop is that of
`translate.py`, taken once, since it takes more than a minute. Weights are random but for the distance between
bf16 and float32, which is that of the starter model's results for a phantom head, inside the body.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ct2mri import TranslationPipeline
from ct2mri.data.plan import Plan
from ct2mri.data.replay import prepare_source
from ct2mri.devices import choose_device
from ct2mri.models import VQVAE, ScalableUNet
from ct2mri.models.compiling import compile_whole, why_not_compiled
from ct2mri.pipeline import starter_folder
from ct2mri.stages import LatentsStage, SlicesStage
from machine import hardware, table, versions
from translate import Timer, head, published_sizes, random_stages, straightforward

Row = tuple[str, str, str, str]


def tiny_sizes(channels: int) -> list[SlicesStage | LatentsStage]:
    """The stages with networks as narrow as can be."""
    narrow: dict[str, Any] = {
        "attention_levels": (1,),
        "base_channels": 8,
        "norm_num_groups": 4,
        "channel_multipliers": (1, 2),
    }
    vqvae = VQVAE(embedding_dim=2, hidden_channels=(8, 8), num_res_blocks=1)
    return random_stages(ScalableUNet(2, 1, channels, **narrow), vqvae, ScalableUNet(3, 2, 2, 2, **narrow))


class Translating:
    """Times the whole of one volume, from array to array.

    Args:
        plan: of the pipelines.
        sizes: makes the stages.
        device: that computes.
        size: voxels of the volume, which are random numbers.
        repeats: of each time but that of the straightforward loop.
    """

    def __init__(
        self,
        plan: Plan,
        sizes: Callable[[int], list[SlicesStage | LatentsStage]],
        device: torch.device,
        size: tuple[int, ...],
        repeats: int,
    ) -> None:
        self.plan, self.sizes, self.device, self.repeats = plan, sizes, device, repeats
        random = np.random.default_rng(0)
        self.source = (random.random((plan.channels, *size), dtype=np.float32) * 2 - 1).astype(np.float32)
        self.mask = np.ones(size, dtype=bool)
        self.timer = Timer(device)

    def pipeline(self) -> TranslationPipeline:
        """The same weights at every call."""
        torch.manual_seed(0)
        return TranslationPipeline(self.plan, self.sizes(self.plan.channels)).to(self.device)

    def seconds(self, pipeline: TranslationPipeline, steps: int, name: str, repeats: int) -> float:
        """The median of some volumes with so many steps in both stages."""
        for stage in pipeline.stages:
            stage.num_inference_steps = steps
        for _ in range(repeats):
            self.timer(name, lambda: pipeline.sample(self.source, mask=self.mask))
        return float(np.median(self.timer.times[name]))

    def rows(self, all_steps: list[int], out_of_time: Callable[[float], bool]) -> list[Row]:
        """Ours compiled, block by block and whole, and not; the straightforward loop with the most steps."""
        eager, rows = self.pipeline(), list[Row]()
        first = self.seconds(eager, 1, "warm-up", 1)
        rows.append(("the first volume, 1 step, as it is", "", f"{first:.2f} s", ""))
        targets = {1: 3.0, 10: 3.0}  # a single translation without compilation
        for steps in all_steps:
            rows.append(self._row(eager, steps, "as it is", targets.get(steps)))
        most = all_steps[-1]
        if out_of_time(180):
            rows.append((f"straightforward loop, {most} steps", "", "left out: no time", ""))
        else:
            plain = self.pipeline()
            straightforward(plain)
            for stage in plain.stages:
                stage.num_inference_steps = most
            slow = self.seconds(plain, most, "straightforward", 1)
            ratio = slow / float(np.median(self.timer.times[f"as it is, {most} steps"]))
            rows.append((f"straightforward loop, {most} steps", "", f"{slow:.2f} s", ""))
            rows.append((f"its time over ours as it is, {most} steps", "", f"{ratio:.1f}×", ""))
        if out_of_time(150):
            rows.append(("compiled", "", "left out: no time", ""))
            return rows
        compiled = self.pipeline().compute_with(compile=True)
        first = self.seconds(compiled, 1, "compiling", 1)
        rows.append(("the first volume, 1 step, compiling", "", f"{first:.2f} s", ""))
        for steps in all_steps:
            rows.append(self._row(compiled, steps, "compiled", {1: 0.2, 10: 0.8}.get(steps)))
        smaller = tuple(slice(0, n - 5) for n in self.mask.shape)
        self.timer("smaller", lambda: compiled.sample(self.source[:, *smaller], mask=self.mask[smaller]))
        rows.append((f"the first volume of another size, {most} steps", "", self._last("smaller"), ""))
        if sentence := why_not_compiled():
            rows.append((sentence, "", "", ""))
        elif not out_of_time(240):
            whole = self.pipeline()
            for stage in whole.stages:
                for network in stage.worth_compiling:
                    compile_whole(network)
            self.seconds(whole, 1, "compiling whole", 1)
            rows.append(
                ("the first volume, 1 step, compiling networks whole", "", self._last("compiling whole"), "")
            )
            rows += [self._row(whole, steps, "compiled whole", None) for steps in all_steps]
        if "straightforward" in self.timer.times:
            ours = float(np.median(self.timer.times[f"compiled, {most} steps"]))
            ratio = self.timer.times["straightforward"][0] / ours
            rows.append(
                (
                    f"straightforward loop's time over ours compiled, {most} steps",
                    "50×",
                    f"{ratio:.1f}×",
                    _met(ratio >= 50),
                )
            )
        return rows

    def _last(self, name: str) -> str:
        return f"{self.timer.times[name][-1]:.2f} s"

    def _row(self, pipeline: TranslationPipeline, steps: int, how: str, target: float | None) -> Row:
        name = f"{how}, {steps} steps"
        found = self.seconds(pipeline, steps, name, self.repeats)
        asked = "" if target is None else f"under {target} s"
        return name, asked, f"{found:.3f} s", "" if target is None else _met(found < target)


def _met(yes: bool) -> str:
    return "yes" if yes else "no"


def distance(device: torch.device, edge: int) -> Row:
    """How far the starter's result for a phantom head in bf16 lies from that in float32, in the body."""
    pipeline = TranslationPipeline.from_pretrained(starter_folder(), device.type)
    prepared = prepare_source(head(edge), pipeline.plan)
    exact = pipeline.compute_with(precision="32").sample(prepared.array, mask=prepared.mask).mean
    rounded = pipeline.compute_with(precision="bf16").sample(prepared.array, mask=prepared.mask).mean
    error = float(np.mean((exact - rounded)[prepared.mask] ** 2))
    psnr = 10 * np.log10(4 / error)
    return "bf16 against float32, starter model", "above 45 dB", f"{psnr:.1f} dB", _met(psnr > 45)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: only to see that all parts run")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 10, 25])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=460, help="seconds in all (default: %(default)s)")
    arguments = parser.parse_args()
    began = time.perf_counter()

    def left() -> float:
        return float(arguments.budget - (time.perf_counter() - began))

    device = choose_device(arguments.device)
    starter = TranslationPipeline.from_pretrained(starter_folder(), "cpu")
    translating = Translating(
        starter.plan,
        tiny_sizes if arguments.tiny else published_sizes,
        device,
        (16, 24, 16) if arguments.tiny else (160, 224, 168),
        arguments.repeats,
    )
    print(f"{hardware(str(device))}\n{versions('torch', 'diffusers')}", flush=True)
    print(
        f"networks of {'tiny' if arguments.tiny else 'the published'} sizes, working grid "
        f"{'×'.join(map(str, translating.mask.shape))}; from array to array, medians of {arguments.repeats}\n"
    )
    rows = [distance(device, 48 if arguments.tiny else 128)]
    rows += translating.rows(sorted(arguments.steps), lambda needed: left() < needed)
    print(table(["what", "target", "measured", "met"], rows), flush=True)
    del translating
    if device.type == "cuda":
        print(f"\npeak memory {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
        torch.cuda.empty_cache()

    small = ["--config", "demo", "--shape", "32", "32", "32"] if arguments.tiny else ["--config", "brain"]
    few = [*small, "--device", device.type, "--steps", "2" if arguments.tiny else "6", "--repeats", "1"]
    memory = ["--device", device.type, "--checkpointing", "yes", *small]
    parts = [
        ("train.py", [*few, "--stages", "slices", *([] if arguments.tiny else ["--batch_size", "32"])], 40),
        ("train_memory.py", memory if arguments.tiny else [*memory, "--bf16"], 30),
        ("train.py", [*few, "--stages", "vqvae", "latents"], 60),
    ]
    for script, words, needed in parts:
        print(f"\n{script} {' '.join(words)}", flush=True)
        if left() < needed:
            print(f"Left out: {left():.0f} s of {arguments.budget:.0f} s are left.")
            continue
        try:
            done = subprocess.run(
                [sys.executable, str(Path(__file__).parent / script), *words],
                stdout=subprocess.PIPE,
                text=True,
                check=False,
                timeout=left(),
            )
        except subprocess.TimeoutExpired:
            print("Left out: it took longer than the time that was left.")
            continue
        print(done.stdout if done.returncode == 0 else f"It ended with exit code {done.returncode}.")


if __name__ == "__main__":
    main()
