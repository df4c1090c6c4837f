"""How much the VQ-VAE alone costs: truths and drafts, encoded and decoded, against the truth.

    python benchmarks/latent_ceiling.py DATA MODEL --cts head.nii.gz

A 3D stage that decodes plainly can do no better than the first column; what lies between the first two is
the codebook's share. One that decodes residually, which leaves out the codebook, can do no better than the
fourth, and where it changes nothing gives the draft. With --cts a second table: what the 2D stage draws of
CTs without a truth, encoded and decoded, against that draft.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ct2mri import TranslationPipeline
from ct2mri.data.cases import PreparedDataset
from ct2mri.data.io import load_volume
from ct2mri.data.replay import prepare_source
from ct2mri.diffusion import SeededNoise
from ct2mri.evaluation.metrics import evaluate_volumes
from ct2mri.models import VQVAE, codes_in_use
from tables import markdown


def through(vqvae: VQVAE, image: np.ndarray, *, quantised: bool = True) -> np.ndarray:
    """A volume (i, j, k) in [−1, 1], encoded and decoded."""
    with torch.inference_mode():
        latents = vqvae.encode(torch.from_numpy(image)[None, None])
        if quantised:
            latents = vqvae.quantize(latents)
        return vqvae.decode(latents, image.shape)[0, 0].numpy()


def psnr(image: np.ndarray, target: np.ndarray, inside: np.ndarray) -> float:
    """Between volumes in [−1, 1], in units of the plan's scale."""
    return evaluate_volumes(image / 2, target / 2, inside)["psnr"]


def print_table(columns: Sequence[str], rows: dict[str, list[float]]) -> None:
    """As Markdown, with the mean of several rows."""
    means = {"mean": list(np.mean(list(rows.values()), axis=0))} if len(rows) > 1 else {}
    cells = [[name, *(f"{value:.2f}" for value in row)] for name, row in (rows | means).items()]
    print(markdown(["PSNR dB", *columns], cells))


def of_cases(dataset: PreparedDataset, split: str, pipeline: TranslationPipeline) -> None:
    """The table of cases with a truth, and the codes in use on them."""
    stage = pipeline.stages[-1]
    rows, codes = dict[str, list[float]](), list[torch.Tensor]()
    case_ids = dataset.case_ids(split)
    if not case_ids:
        raise SystemExit(f"{dataset.root} has no {split} cases; choose another --split.")
    for case_id in case_ids:
        case = dataset.case(case_id)
        target, draft = np.array(case.target), np.array(case.draft)
        inside = case.mask & case.valid
        shown = target.clip(-1, 1)
        condition = {
            "source": torch.from_numpy(np.array(case.source)),
            "draft": torch.from_numpy(draft)[None],
        }
        refined = stage.sample(condition, SeededNoise(0))[0].numpy()
        plain, free = (through(stage.vqvae, shown, quantised=quantised) for quantised in (True, False))
        perfect = (draft + free - through(stage.vqvae, draft, quantised=False)).clip(-1, 1)
        images = [plain, free, draft, perfect, refined]
        rows[case_id] = [psnr(image, target, inside) for image in images]
        with torch.inference_mode():
            latents = stage.vqvae.encode(torch.from_numpy(shown)[None, None])
            codes.append(stage.vqvae.quantizer(latents)[2].flatten())
    columns = ["truth through", "truth through, not quantised", "draft"]
    columns += [
        "draft + truth through − draft through, not quantised",
        f"refined ({stage.decoding} decoding)",
    ]
    print_table(columns, rows)
    share = codes_in_use(torch.cat(codes)) / stage.vqvae.quantizer.num_embeddings
    print(f"\nCodes in use on these cases: {share:.0%} of {stage.vqvae.quantizer.num_embeddings}.")


def of_cts(paths: Sequence[Path], pipeline: TranslationPipeline) -> None:
    """The table of CTs alone: their drafts through the VQ-VAE."""
    first, last = pipeline.stages[0], pipeline.stages[-1]
    rows = {}
    for path in paths:
        prepared = prepare_source(load_volume(path), pipeline.plan)
        draft = first.sample({"source": torch.from_numpy(prepared.array)}, SeededNoise(0))[0].numpy()
        draft = draft.clip(-1, 1)
        name = path.name if path.parent.name == "" else f"{path.parent.name}/{path.name}"
        rows[name] = [
            psnr(through(last.vqvae, draft, quantised=quantised), draft, prepared.mask)
            for quantised in (True, False)
        ]
    print()
    print_table(["draft through, against the draft", "the same, not quantised"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared data set with drafts")
    parser.add_argument("model", type=Path, help="a pipeline folder with a 3D stage that refines drafts")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--cts", type=Path, nargs="+", default=[], help="CT volumes of patients")
    arguments = parser.parse_args()
    pipeline = TranslationPipeline.from_pretrained(arguments.model)
    of_cases(PreparedDataset(arguments.data), arguments.split, pipeline)
    if arguments.cts:
        of_cts(arguments.cts, pipeline)


if __name__ == "__main__":
    main()
