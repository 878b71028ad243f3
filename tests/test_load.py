"""Large zoos (rows L1, L2): bounded memory, files and open files; nothing is missing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from crash import NIGHTLY

SPEC = """
name: large
images: {name: tetris, train: 8, test: 8, noise_train: 0.2, noise_test: 0.8}
architecture: {name: mlp, hidden: [24]}
grid: {activation: [tanh], init: [uniform], optimizer: [adam], lr: [1.0e-2]}
seeds: {range: [1, MODELS]}
training: {epochs: EPOCHS, batch_size: 8}
"""

MEASURED = """
import json, os, sys, threading, time
from pathlib import Path
from zootools import build, load_spec, open_zoo

descriptors = peak = 0
stop = threading.Event()
def watch():
    global descriptors, peak
    while not stop.wait(0.2):
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(process.name)) != os.getpgid(0):
                    continue
                descriptors = max(descriptors, len(os.listdir(process / "fd")))
                lines = (process / "status").read_text().splitlines()
                peak = max(peak, *(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")))
            except (OSError, TypeError):
                pass
if __name__ == "__main__":
    os.setpgid(0, 0)
    threading.Thread(target=watch, daemon=True).start()
    out = Path(sys.argv[2])
    manifest = build(load_spec(Path(sys.argv[1])), out, workers=2, quiet=True)
    stop.set()
    begun = time.monotonic()
    zoo = open_zoo(out)
    print(json.dumps({
        "counts": manifest["counts"], "rows": len(zoo), "open": time.monotonic() - begun,
        "descriptors": descriptors, "peak": peak,
        "files": sum(path.is_file() for path in out.rglob("*")),
    }))
"""


@pytest.mark.parametrize(("models", "epochs"), [(2000, 10), (10_000, 50)] if NIGHTLY else [(2000, 10)])
def test_l1_thousands_of_models_take_bounded_memory_and_few_files(tmp_path: Path, models: int, epochs: int) -> None:
    (tmp_path / "large.yaml").write_text(SPEC.replace("MODELS", str(models)).replace("EPOCHS", str(epochs)))
    (tmp_path / "measured.py").write_text(MEASURED)
    words = [sys.executable, str(tmp_path / "measured.py"), str(tmp_path / "large.yaml"), str(tmp_path / "zoo")]
    run = subprocess.run(words, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    checkpoints = models * (epochs + 1)
    print(
        f"L1: {checkpoints:,} checkpoints: peak {found['peak'] / 1e9:.2f} GB in any process, {found['descriptors']} "
        f"descriptors, {found['files']} files, opened in {found['open']:.2f} s"
    )
    assert found["rows"] == found["counts"]["checkpoints"] == checkpoints
    assert found["counts"]["missing"] == 0
    assert found["peak"] < 1.5e9
    assert found["descriptors"] <= 100
    assert found["files"] <= (400 if models == 2000 else 4000)
