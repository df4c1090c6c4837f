import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import pytest

from ct2mri.cli import COMMANDS, main, parse
from ct2mri.errors import RequestError

TRANSLATE = ["translate", "ct.nii.gz", "-o", "mr.nii.gz"]
TRAIN = ["--data", "DATA", "--output_dir", "RUN"]


def test_every_command_leads_to_its_work():
    for command in COMMANDS.values():
        module, _, function = command.work.partition(":")
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_every_argument(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in fields(COMMANDS[name].takes):
        assert field.name in text


def test_help_speaks_of_defaults_and_not_of_python_types(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert not [
            word for word in ("class", "Literal", "null", "type:", "True", "False") if word in text.split()
        ]
        assert "<class" not in text
    with pytest.raises(SystemExit):
        main(["train", "slices", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "a prepared data set (required)" in text
    assert "axial coronal sagittal)" in text
    assert text.index("--crop_size") < text.index("--seed")  # its own before what all commands have


def test_help_loads_no_heavy_library():
    program = (
        "import sys\n"
        "from ct2mri.cli import main\n"
        "try: main(['train', 'slices', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'SimpleITK', 'nibabel', 'matplotlib', 'diffusers', 'lightning'}\n"
        "sys.exit(','.join(heavy & set(sys.modules)) or 0)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


# Where most of the stage's steps are on smaller crops, it takes more of them in the same time.
LENGTH = {"max_steps", "learning_rate", "ema_decay", "validate_every"}


@pytest.mark.parametrize(
    ("config", "length"),
    [("demo", set()), ("benchmarks/phantom_baselines.yaml", set()), ("benchmarks/real_slices.yaml", LENGTH)],
)
def test_baselines_are_trained_like_the_stage_they_are_compared_with(config, length, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    slices = parse("train slices", [*TRAIN, "--config", config])
    baseline = parse("train baseline", [*TRAIN, "--config", config, "--kind", "regression"])
    shared = {field.name for field in fields(slices)} & {field.name for field in fields(baseline)}
    assert {"base_channels", "crop_size", "batch_size", "orientations", *LENGTH} <= shared
    # With how many steps a method samples is its own; the stage is used with one.
    own = {"num_inference_steps", *length}
    assert {name: getattr(slices, name) for name in shared - own} == {
        name: getattr(baseline, name) for name in shared - own
    }


def test_overview_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert main(["train"]) == 0
    assert "train vqvae" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ct2mri 0.")


def one_line(capsys):
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    return text


def test_unknown_commands_are_named_with_the_nearest(capsys):
    assert main(["tranlsate"]) == 2
    assert "did you mean `ct2mri translate`" in one_line(capsys)
    assert main(["train", "slice"]) == 2
    assert "did you mean `ct2mri train slices`" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["translate", "ct.nii.gz"], "--output (-o) is missing"),
        (["prepare"], "RAW and DATASET are missing"),
        ([*TRANSLATE, "--steps", "few"], "--steps takes a whole number, got few"),
        (
            [*TRANSLATE, "--sampler", "dim"],
            "--sampler takes ddpm, ddim, dpm-solver++, unipc or renoise, got dim",
        ),
        ([*TRANSLATE, "--stepz", "3"], "no option --stepz (did you mean --steps?)"),
        ([*TRANSLATE, "--bananas"], "no option --bananas;"),
        ([*TRANSLATE, "again.nii.gz"], "again.nii.gz is more than"),
        (
            ["translate", "--data", "D", "-o", "O", "--split", "all"],
            "--split takes train, validation or test",
        ),
        (
            ["prepare", "RAW", "SET", "--spacing", "1", "x", "1"],
            "--spacing takes finite numbers with spaces between, got x",
        ),
        (["phantom", "OUT", "--anatomy", "foot"], "--anatomy takes head or pelvis, got foot"),
        (["train", "slices", *TRAIN, "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_malformed_arguments_are_one_sentence(words, part, capsys):
    assert main(words) == 2
    assert part in one_line(capsys)


def test_a_missing_file_exits_with_2_and_one_line(capsys, tmp_path):
    assert main(["translate", str(tmp_path / "no.nii.gz"), "-o", str(tmp_path / "mr.nii.gz")]) == 2
    assert "no.nii.gz" in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_lists_and_flags():
    chosen = parse(
        "prepare", ["RAW", "SET", "--spacing", "1", "1", "2", "--windows", "[[-1024,3000],[0,80]]"]
    )
    assert chosen.raw == Path("RAW")
    assert chosen.spacing == [1, 1, 2]
    assert chosen.windows == [[-1024, 3000], [0, 80]]
    assert parse("train slices", TRAIN).flips is True
    assert parse("train slices", [*TRAIN, "--no_flips"]).flips is False


def test_hyphens_do_for_underscores():
    chosen = parse("prepare", ["RAW", "SET", "--dry-run", "--no-remove-table", "--target-series=t1-mprage"])
    assert (chosen.dry_run, chosen.remove_table, chosen.target_series) == (True, False, "t1-mprage")
    assert parse("train slices", ["--data", "my-data", "--output-dir", "a-run"]).data == Path("my-data")


def test_a_config_sets_defaults_that_flags_override(tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text("slices: {learning_rate: 1e-3, max_steps: 7, crop_size: null, orientations: [axial]}\n")
    chosen = parse("train slices", [*TRAIN, "--config", str(config), "--max_steps", "9"])
    assert (chosen.learning_rate, chosen.max_steps, chosen.crop_size) == (1e-3, 9, None)
    assert chosen.orientations == ["axial"]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("vqvae: {}", "no section `slices`"),
        ("slices: {max_step: 3}", "did you mean max_steps"),
        (
            "slices: {orientations: axial}",
            "orientations takes a list of any of axial, coronal or sagittal, got",
        ),
        ("slices: {max_steps: many}", "section slices: max_steps takes a whole number, got many"),
        ("slices: [", "not valid YAML"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(content, part, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(content)
    with pytest.raises(RequestError, match=part):
        parse("train slices", [*TRAIN, "--config", str(config)])
