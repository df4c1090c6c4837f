"""How much the VQ-VAE alone costs: truths and drafts, encoded and decoded, against the truth.

    python benchmarks/latent_ceiling.py DATA MODEL

A 3D stage that decodes plainly can do no better than the first column, and one that changes nothing gives the
third. One that decodes residually can do no better than the second, and changing nothing gives the draft. The
last column is the first without the codebook: what lies between the two is its share.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from ct2mri import TranslationPipeline
from ct2mri.data.cases import PreparedDataset
from ct2mri.diffusion import SeededNoise
from ct2mri.evaluation.metrics import evaluate_volumes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared data set with drafts")
    parser.add_argument("model", type=Path, help="a pipeline folder with a 3D stage that refines drafts")
    parser.add_argument("--split", default="test")
    arguments = parser.parse_args()

    dataset = PreparedDataset(arguments.data)
    stage = TranslationPipeline.from_pretrained(arguments.model).stages[-1]
    rows = []
    for case_id in dataset.case_ids(arguments.split):
        case = dataset.case(case_id)
        target, draft = np.array(case.target), np.array(case.draft)

        def psnr(image: np.ndarray, case=case, target=target) -> float:
            return evaluate_volumes(image / 2, target / 2, case.mask & case.valid)["psnr"]

        def through(image: np.ndarray, *, quantised: bool = True) -> np.ndarray:
            with torch.inference_mode():
                latents = stage.vqvae.encode(torch.from_numpy(image)[None, None])
                if quantised:
                    latents = stage.vqvae.quantize(latents)
                return stage.vqvae.decode(latents, image.shape)[0, 0].numpy()

        condition = {
            "source": torch.from_numpy(np.array(case.source)),
            "draft": torch.from_numpy(draft)[None],
        }
        refined = stage.sample(condition, SeededNoise(0))[0].numpy()
        truth_through, draft_through = through(target.clip(-1, 1)), through(draft)
        perfect = (draft + truth_through - draft_through).clip(-1, 1)
        unquantised = through(target.clip(-1, 1), quantised=False)
        images = [truth_through, perfect, draft_through, draft, refined, unquantised]
        rows.append([psnr(image) for image in images])
    columns = ["truth through", "draft + truth through − draft through", "draft through", "draft"]
    columns += [f"refined ({stage.decoding} decoding)", "truth through, not quantised"]
    print("| PSNR dB | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for case_id, row in zip(dataset.case_ids(arguments.split), rows, strict=True):
        print(f"| {case_id} | " + " | ".join(f"{value:.2f}" for value in row) + " |")
    print("| mean | " + " | ".join(f"{value:.2f}" for value in np.mean(rows, axis=0)) + " |")


if __name__ == "__main__":
    main()
