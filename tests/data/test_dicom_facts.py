from typing import Any

import pydicom
import pytest

from ct2mri.data.dicom_facts import series_facts


def header(**tags: Any) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    return dataset


def contrast(**tags: Any) -> str | None:
    guess: str | None = series_facts(header(Modality="MR", **tags))["mr_contrast"]
    return guess


def test_facts_of_a_ct() -> None:
    facts = series_facts(
        header(
            Modality="CT",
            KVP="120",
            ConvolutionKernel=["Br40d", "3"],
            Manufacturer="SIEMENS ",
            SliceThickness="1.5",
            ContrastBolusAgent="Ultravist",
            ImageType=["ORIGINAL", "PRIMARY", "AXIAL"],
            SeriesDescription="Thorax T1 level",
        )
    )
    assert facts == {
        "kvp": 120,
        "kernel": "Br40d/3",
        "manufacturer": "SIEMENS",
        "slice_thickness": 1.5,
        "contrast_agent": True,
        "cbct": False,
        "mr_contrast": None,
        "localizer": False,
    }


def test_facts_of_an_enhanced_ct_stand_in_its_groups() -> None:
    facts = series_facts(
        header(
            Modality="CT",
            ContrastBolusAgentSequence=[header(CodeMeaning="Iohexol")],
            SharedFunctionalGroupsSequence=[
                header(
                    CTReconstructionSequence=[header(ConvolutionKernel="FC08")],
                    PixelMeasuresSequence=[header(SliceThickness=2)],
                )
            ],
            PerFrameFunctionalGroupsSequence=[header(CTXRayDetailsSequence=[header(KVP=100)])],
        )
    )
    assert (facts["kernel"], facts["slice_thickness"], facts["kvp"]) == ("FC08", 2, 100)
    assert facts["contrast_agent"] is True


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, False),
        ({"ContrastBolusAgent": ""}, False),
        ({"ContrastBolusAgent": "NONE"}, False),
        ({"ContrastBolusAgent": "Gadovist"}, True),
        ({"PatientIdentityRemoved": "YES"}, None),
        ({"PatientIdentityRemoved": "NO"}, False),
        ({"DeidentificationMethod": "script"}, None),
        ({"PatientIdentityRemoved": "YES", "ContrastBolusAgent": "APPLIED"}, True),
    ],
)
def test_contrast_agent(tags: dict[str, str], expected: bool | None) -> None:
    assert series_facts(header(Modality="CT", **tags))["contrast_agent"] is expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"Manufacturer": "Varian Medical Systems", "ManufacturerModelName": "On-Board Imager"}, True),
        ({"Manufacturer": "ELEKTA", "ManufacturerModelName": "XVI"}, True),
        ({"SeriesDescription": "CBCT Pelvis"}, True),
        ({"SeriesDescription": "cone-beam head"}, True),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.1"}, True),
        ({"Manufacturer": "GE MEDICAL SYSTEMS", "ManufacturerModelName": "Optima CT580"}, False),
        ({"Manufacturer": "Philips", "ManufacturerModelName": "Brilliance Big Bore"}, False),
        ({"Modality": "MR", "SeriesDescription": "match to CBCT"}, False),
    ],
)
def test_cone_beam_is_told_apart(tags: dict[str, str], expected: bool) -> None:
    assert series_facts(header(**{"Modality": "CT", **tags}))["cbct"] is expected


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("AX T1 POST", "T1w"),
        ("t1_mprage_sag_p2_iso", "T1w"),
        ("sT1W_3D_TFE", "T1w"),
        ("Ax 3D BRAVO", "T1w"),
        ("t2_tse_tra_320", "T2w"),
        ("AX T2 FLAIR", "FLAIR"),
        ("t2_tirm_tra_dark-fluid", "FLAIR"),
        ("COR STIR", "STIR"),
        ("ep2d_diff_b1000_ADC", "ADC"),
        ("DWI b0 b800", "DWI"),
        ("AX T2* GRE", "T2starw"),
        ("SWI_Images", "SWI"),
        ("TOF 3D multi-slab", "TOF"),
        ("PD FS cor", "PDw"),
        ("T1 Map", "T1map"),
        ("T1/T2 overlay", None),
        ("T12 vertebra", None),
        ("pelvis", None),
    ],
)
def test_mr_contrast_by_name(description: str, expected: str | None) -> None:
    assert contrast(SeriesDescription=description) == expected
    assert contrast(ProtocolName=description) == expected
    assert series_facts(header(Modality="CT", SeriesDescription=description))["mr_contrast"] is None


@pytest.mark.parametrize(
    ("sequence", "repetition", "echo", "inversion", "flip", "expected"),
    [
        ("SE", 550, 12, None, 90, "T1w"),
        ("SE", 4500, 100, None, 150, "T2w"),
        ("SE", 3000, 20, None, 150, "PDw"),
        ("SE", 1200, 50, None, 150, None),
        (["SE", "IR"], 9000, 120, 2500, 150, "FLAIR"),
        (["SE", "IR"], 4000, 60, 160, 150, "STIR"),
        (["GR", "IR"], 2300, 3, 900, 8, "T1w"),
        ("GR", 7, 3, None, 12, "T1w"),
        ("GR", 7, 3, None, 3, None),
        ("GR", 600, 20, None, 20, "T2starw"),
        ("EP", 4000, 80, None, 90, None),
        ("SE", None, 80, None, 90, None),
    ],
)
def test_mr_contrast_by_times(
    sequence: str | list[str],
    repetition: float | None,
    echo: float,
    inversion: float | None,
    flip: float,
    expected: str | None,
) -> None:
    guess = contrast(
        ScanningSequence=sequence,
        RepetitionTime=repetition,
        EchoTime=echo,
        InversionTime=inversion,
        FlipAngle=flip,
    )
    assert guess == expected


def test_mr_contrast_of_an_enhanced_image() -> None:
    shared = header(
        MRTimingAndRelatedParametersSequence=[header(RepetitionTime=5000.0, FlipAngle=120.0)],
        MREchoSequence=[header(EffectiveEchoTime=95.0)],
    )
    assert contrast(EchoPulseSequence="SPIN", SharedFunctionalGroupsSequence=[shared]) == "T2w"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, True),
        ({"SeriesDescription": "3-plane_Localizer"}, True),
        ({"SeriesDescription": "Topogram 0.6 T20s"}, True),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDescription": "Neck"}, False),
    ],
)
def test_scouts(tags: dict[str, Any], expected: bool) -> None:
    assert series_facts(header(Modality="CT", **tags))["localizer"] is expected
