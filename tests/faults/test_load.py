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
import json, os, subprocess, sys, threading, time
from pathlib import Path
from zootools import build, load_spec, open_zoo
from zootools.storage.status import status

spec, out, checkpoints = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
found = {"descriptors": 0, "peak": 0}
stop, samples = threading.Event(), []

def shards():
    return sum(1 for path in out.glob("checkpoints/*/epoch-*.safetensors"))

def group():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) == os.getpgid(0):
                status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                yield process, int(status["VmHWM"].split()[0]) << 10, int(status["VmRSS"].split()[0]) << 10
        except (OSError, KeyError):
            pass

def watch():
    first = shards()
    while not stop.wait(0.1):
        used = 0
        for process, peak, resident in group():
            found["peak"] = max(found["peak"], peak)
            used = max(used, resident)
            try:
                found["descriptors"] = max(found["descriptors"], len(os.listdir(process / "fd")))
            except OSError:
                pass
        samples.append((shards(), used))  # counted after: what was used while shards were missing, training has used
        if samples[-1][0] > first and "resumed" not in found:
            found["resumed"] = time.monotonic() - begun

if __name__ == "__main__":
    os.setpgid(0, 0)
    words = [sys.executable, "-m", "zootools", "build", str(spec), "--out", str(out), "--workers", "2"]
    first = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    expected = checkpoints // 256
    while shards() < 0.05 * expected:
        time.sleep(0.01)
    first.kill()
    first.wait()
    while len(list(group())) > 1:
        time.sleep(0.01)
    begun = time.monotonic()
    counts = status(out).counts
    open_zoo(out)
    found["looked"] = time.monotonic() - begun
    assert counts.missing > 0
    begun = time.monotonic()
    threading.Thread(target=watch, daemon=True).start()
    manifest = build(load_spec(spec), out, workers=2, quiet=True)
    stop.set()
    begin = max(0.1 * shards(), samples[0][0] + 1)  # the workers are there when they have stored something
    training = [used for done, used in samples if begin <= done < shards()]
    found |= {"early": training[0], "late": training[-1]}
    begun = time.monotonic()
    found |= {"rows": len(open_zoo(out)), "finished": status(out).state, "counts": manifest.counts.model_dump()}
    found["open"] = time.monotonic() - begun
    print(json.dumps(found | {"files": sum(path.is_file() for path in out.rglob("*"))}))
"""


@pytest.mark.parametrize(("models", "epochs"), [(2000, 10), (10_000, 50)] if NIGHTLY else [(2000, 10)])
def test_l1_thousands_of_models_take_bounded_memory_and_few_files(tmp_path: Path, models: int, epochs: int) -> None:
    """Killed once near the beginning, so that the scan of a resume is seen as well."""
    (tmp_path / "large.yaml").write_text(SPEC.replace("MODELS", str(models)).replace("EPOCHS", str(epochs)))
    (tmp_path / "measured.py").write_text(MEASURED)
    checkpoints = models * (epochs + 1)
    words = [sys.executable, str(tmp_path / "measured.py"), str(tmp_path / "large.yaml"), str(tmp_path / "zoo")]
    run = subprocess.run([*words, str(checkpoints)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    print(
        f"L1: {checkpoints:,} checkpoints: peak {found['peak'] / 1e9:.2f} GB in any process, {found['descriptors']} "
        f"descriptors, {found['files']} files; the largest process had {found['early'] / 1e9:.2f} GB when a tenth was "
        f"trained, {found['late'] / 1e9:.2f} GB before the last shard; killed at a twentieth: status and open in "
        f"{found['looked']:.2f} s, the next shard {found['resumed']:.2f} s after the start; finished: status and open "
        f"in {found['open']:.2f} s"
    )
    assert found["rows"] == found["counts"]["checkpoints"] == checkpoints
    assert found["counts"]["missing"] == 0
    assert found["peak"] < 1.5e9
    # Until the last shard: the tables, which hold all rows, come after it.
    assert found["late"] < 1.1 * found["early"]
    assert found["descriptors"] <= 100
    assert found["files"] <= (400 if models == 2000 else 4000)
