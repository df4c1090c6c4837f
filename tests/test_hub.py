from pathlib import Path

import pytest

from ct2mri.errors import RequestError
from ct2mri.hub import fetch, resolve_pretrained
from hub_stand_in import HubStandIn


@pytest.fixture
def model(hub: HubStandIn) -> HubStandIn:
    folder = hub.root / "someone" / "model"
    (folder / "slices").mkdir(parents=True)
    (folder / "pipeline.json").write_text("{}")
    (folder / "slices" / "model.safetensors").write_bytes(b"weights")
    (folder / "slices" / "optimiser.bin").write_bytes(b"not needed")
    return hub


def test_a_folder_is_itself(tmp_path: Path):
    assert resolve_pretrained(tmp_path) == tmp_path
    assert resolve_pretrained(str(tmp_path)) == tmp_path


def test_a_repository_is_fetched(model: HubStandIn):
    folder = resolve_pretrained("someone/model")
    assert (folder / "pipeline.json").read_text() == "{}"
    assert (folder / "slices" / "model.safetensors").read_bytes() == b"weights"
    assert not (folder / "slices" / "optimiser.bin").exists()


def test_without_a_network_the_cache_serves(model: HubStandIn):
    folder = resolve_pretrained("someone/model")
    model.close()
    assert resolve_pretrained("someone/model") == folder
    assert (folder / "slices" / "model.safetensors").read_bytes() == b"weights"


def test_without_a_network_and_cache_one_sentence_says_what_to_do(hub: HubStandIn):
    hub.close()
    with pytest.raises(
        RequestError, match=r"cannot be reached.*not in the local cache.*another machine"
    ) as caught:
        resolve_pretrained("someone/model")
    assert "\n" not in str(caught.value)


def test_a_repository_that_does_not_exist(hub: HubStandIn):
    with pytest.raises(RequestError, match="no repository someone/nothing"):
        resolve_pretrained("someone/nothing")


def test_a_server_that_fails(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "respond", lambda path: (403, {}, b""))
    with pytest.raises(RequestError, match="someone/model") as caught:
        resolve_pretrained("someone/model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-folder", "../elsewhere", "a/b/c", "/nowhere/at/all"])
def test_neither_a_folder_nor_a_name(name: str):
    with pytest.raises(RequestError, match="no model folder"):
        resolve_pretrained(name)


def test_patterns_choose_the_files(model: HubStandIn):
    folder = fetch("someone/model", ["*.bin"], by_hand="fetch it by hand")
    assert [file.name for file in folder.rglob("*") if file.is_file()] == ["optimiser.bin"]
    with pytest.raises(RequestError, match="owner/name"):
        fetch("model", ["*"], by_hand="fetch it by hand")
