import json

import pytest

from pallas_kernels.common import files


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "new" / "rows.json"
    files.write_rows(path, [{"ms": 1.0}, {"ms": 2.0}])
    assert json.loads(path.read_text()) == [{"ms": 1.0}, {"ms": 2.0}] and len(path.read_text().splitlines()) == 4
    with pytest.raises(ValueError):
        files.write_json(path, {"ms": float("nan")})
    assert len(json.loads(path.read_text())) == 2
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1} and [x.name for x in path.parent.iterdir()] == ["rows.json"]
