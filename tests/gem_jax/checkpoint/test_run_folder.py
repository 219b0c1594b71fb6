"""Run folders: numbered, the newest found whatever is missing, and nothing outside of them."""

import pytest

from gem_jax.checkpoint.errors import CheckpointError
from gem_jax.checkpoint.run_folder import new_run_folder, newest_run_folder


def test_run_folders_are_numbered(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run '.*gem' to resume; start it without --resume"):
        newest_run_folder(str(tmp_path / "none"), "gem")
    for expected in ("gem", "gem-2", "gem-3"):
        folder = new_run_folder(str(tmp_path), "gem")
        assert folder == tmp_path / expected and not folder.exists()
        folder.mkdir()
        assert newest_run_folder(str(tmp_path), "gem") == folder


@pytest.mark.parametrize(
    ("there", "newest", "new"),
    [
        (["m", "m-3", "m-4"], "m-4", "m-5"),
        (["m-3"], "m-3", "m-4"),
        (["m-9", "m-10"], "m-10", "m-11"),
        (["m", "m-old", "m-2-copy", "m-0", "m-1", "m-02", "mm-7", "m-٣"], "m", "m-2"),
    ],
)
def test_numbers_may_have_gaps(tmp_path, there, newest, new):
    for name in there:
        (tmp_path / name).mkdir()
    assert newest_run_folder(str(tmp_path), "m").name == newest
    assert new_run_folder(str(tmp_path), "m").name == new


def test_a_file_is_no_run_but_takes_its_number(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m-2").write_text("")
    assert newest_run_folder(str(tmp_path), "m").name == "m"
    assert new_run_folder(str(tmp_path), "m").name == "m-3"


def test_names_are_no_patterns(tmp_path):
    (tmp_path / "axb-5").mkdir()
    assert new_run_folder(str(tmp_path), "a.b").name == "a.b"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\\b", "a\0"])
@pytest.mark.parametrize("function", [new_run_folder, newest_run_folder])
def test_names_that_lead_elsewhere_are_refused(tmp_path, function, name):
    with pytest.raises(CheckpointError, match="cannot be a run's folder; give it a name"):
        function(str(tmp_path), name)
