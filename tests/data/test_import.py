import subprocess
import sys


def test_import_is_light():
    code = "import sys, fastdiff.data, fastdiff.evaluation; print('sklearn' in sys.modules, 'scipy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
