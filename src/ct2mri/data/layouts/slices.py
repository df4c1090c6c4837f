"""Patient folders with pictures of the three planes."""

from pathlib import Path

from ct2mri.data.cases import SLICE_AXIS, Orientation
from ct2mri.data.layouts.cases import Picture, RawCase, RawData, visible_folders
from ct2mri.data.layouts.synthrad import centre_of
from ct2mri.options.choices import Layout
from ct2mri.options.data import RawDataOptions


class Slices:
    """PATIENT/ct_PLANE.png, mr_PLANE.png and optionally mask_PLANE.png; each plane becomes a case.

    Where a patient is named by an identifier of SynthRAD, that tells the centre.
    """

    name: Layout = "slices"

    needs = "a folder with ct_axial.png and mr_axial.png (or coronal, sagittal)"

    def recognises(self, raw: Path, options: RawDataOptions) -> bool:
        """Whether some subfolder holds pictures of one plane, named by the two modalities."""
        return any(
            all((folder / f"{word}_{plane}.png").is_file() for word in (options.source, options.target))
            for folder in visible_folders(raw)
            for plane in SLICE_AXIS
        )

    def find(self, raw: Path, options: RawDataOptions) -> RawData:
        """The pairs of pictures."""
        found = RawData(self.name, [], pictures=True)
        for folder in visible_folders(raw):
            planes: list[Orientation] = []
            halves = 0
            for plane in SLICE_AXIS:
                words = (options.source, options.target, "mask")
                source, target, mask = (folder / f"{word}_{plane}.png" for word in words)
                case_id = f"{folder.name}_{plane}"
                if source.is_file() and target.is_file():
                    planes.append(plane)
                    found.cases.append(
                        RawCase(
                            case_id,
                            folder.name,
                            Picture(source, plane),
                            Picture(target, plane),
                            Picture(mask, plane) if mask.is_file() else None,
                            plane,
                            centre_of(folder.name),
                        )
                    )
                elif source.is_file() or target.is_file():
                    present, absent = (source, target) if source.is_file() else (target, source)
                    found.left_out[case_id] = f"it has {present.name} but no {absent.name}"
                    halves += 1
            if not planes and not halves:
                names = [f"{options.source}_{plane}.png" for plane in ("axial", "coronal", "sagittal")]
                found.left_out[folder.name] = f"it has no {names[0]}, {names[1]} or {names[2]}"
        return found
