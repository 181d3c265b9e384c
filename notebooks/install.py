import glob
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

ADDRESS = ""  # of the project: "git+https://.../process_gen.git@VERSION"; stays empty in a checkout or beside a wheel

here = pathlib.Path.cwd()
root = next((p for p in [here, *here.parents] if (p / "configs" / "scenes.py").is_file()), None)
tpu = bool(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")) or "COLAB_TPU_ADDR" in os.environ
extra = "[tpu]" if tpu else "[cuda12]" if shutil.which("nvidia-smi") else ""
if not extra:  # on a CPU nearly all of the time is compilation: let XLA optimize less
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")
if root:
    os.chdir(root)
try:
    importlib.metadata.version("process_gen")
except importlib.metadata.PackageNotFoundError:
    wheels = sorted(map(str, here.glob("process_gen-*.whl")))
    places = [f"{root}{extra}"] if root else [f"{wheel}{extra}" for wheel in wheels[-1:]]
    if not places and not ADDRESS:
        sys.exit(
            "Put the address of the project into ADDRESS, or upload its wheel to this folder; then run this cell again."
        )
    what = ["-e"] * bool(root) + (places or [f"process_gen{extra} @ {ADDRESS}"])
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *what], check=True)
    if root:
        sys.path.insert(0, str(root))  # a running kernel does not see a new editable installation
