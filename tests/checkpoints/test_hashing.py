from __future__ import annotations

import json
import pathlib
import sys

from etils import epath

from process_gen.checkpoints import manifest
from tests import own_process


def test_every_host_hashes_what_it_has_written(tmp_path):
    script = pathlib.Path(__file__).with_name("hosts_that_hash.py")
    processes = own_process.start_job([sys.executable, str(script), str(tmp_path)], 2)
    told = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    hashed = [json.loads(out.splitlines()[-1]) for out, _ in told]
    data = [[name for name in names if "/ocdbt.process_" in name] for names in hashed]
    for host, (mine, everything) in enumerate(zip(data, hashed, strict=True)):
        assert mine and all(f"/ocdbt.process_{host}/" in name for name in mine)
        assert bool(set(everything) - set(mine)) == (host == 0)  # the rest is the first one's
    step_dir = epath.Path(tmp_path) / "checkpoints" / "2"
    files = manifest._read(step_dir)
    assert sorted(files) == sorted(name for name, _ in manifest._files(step_dir))
    assert not list(step_dir.glob("manifest.[0-9]*"))
