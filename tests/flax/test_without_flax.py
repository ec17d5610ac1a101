"""Where Flax is not installed: one line with the command that installs it, and all else natively."""

import subprocess
import sys

WITHOUT = "import sys; sys.modules['flax'] = None\n"


def in_a_fresh_process(code):
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True, check=False)


def test_the_command_that_installs_flax_is_said():
    done = in_a_fresh_process("import flaxsent.flax")
    expected = 'flaxsent.flax needs flax, which is not installed: pip install "flaxsent[flax]"'
    assert done.stderr.splitlines()[-1] == f"flaxsent.files.MissingPackageError: {expected}"


def test_load_computes_natively_without_flax(tiny_folder):
    folder = str(tiny_folder("bert"))
    done = in_a_fresh_process(
        f"import flaxsent; print(flaxsent.load({folder!r}).backend); flaxsent.load({folder!r}, backend='flax')"
    )
    assert done.stdout == "native\n"
    assert done.stderr.splitlines()[-1].endswith(
        "backend='flax' for bert needs Flax, which is not installed: pip install \"flaxsent[flax]\""
    )
