"""GPUs: what the driver has, how users name them, and that each has one owner on a host."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from shared_data import ROOT

from flows import gpus
from models.errors import UserError

THERE = [
    gpus.Gpu("0", "GPU-aaaa1111-0000"),
    gpus.Gpu("1", "GPU-aaaa2222-0000"),
    gpus.Gpu("MIG-cccc1111-0000", "MIG-cccc1111-0000"),
    gpus.Gpu("MIG-cccc2222-0000", "MIG-cccc2222-0000"),
]
OWNING = "from flows import gpus; gpus.claim_gpus([gpus.Gpu('0', {uuid!r})]); print('owned', flush=True); input()"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """An environment in which NVIDIA's library says that there are three GPUs."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a library in the place of NVIDIA's")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests/nvml.c"], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "TUNELINE_HOME": str(folder / "home")}


def run(environment, *arguments: str, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**environment, **more}, capture_output=True, text=True)


def test_what_the_driver_has_is_found_split_or_not(driver):
    done = run(driver, "-c", "from flows import gpus; print(gpus.list_gpus())")
    assert done.stdout.strip() == str(THERE), done.stderr


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ({}, [gpu.name for gpu in THERE]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["none"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["none"]),
    ],
)
def test_by_default_each_gpu_that_may_be_seen_has_an_agent(driver, seen, found):
    environment = {key: value for key, value in driver.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = run(environment, "-c", "from flows import gpus; print(gpus.default_gpu_sets())", **seen)
    assert done.stdout.strip() == str(found), done.stderr


@pytest.mark.skipif(not os.environ.get("TUNELINE_TEST_GPU"), reason="TUNELINE_TEST_GPU is not set")
def test_a_real_driver_and_cuda_mean_the_same_gpus():
    there = gpus.list_gpus()
    for gpu in there:
        code = "import torch; print(f'GPU-{torch.cuda.get_device_properties(0).uuid}', torch.cuda.device_count())"
        done = run(os.environ, "-c", code, CUDA_VISIBLE_DEVICES=gpu.uuid)
        assert done.stdout.split() == [gpu.uuid, "1"], done.stderr
    assert len(there) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("said", "places"),
    [
        ("0", [0]),
        ("00", [0]),
        (" 1, 0", [1, 0]),
        ("none", []),
        ("GPU-aaaa2222-0000", [1]),
        ("GPU-aaaa2", [1]),
        ("MIG-cccc1111-0000", [2]),
    ],
)
def test_gpus_are_named_by_number_or_uuid(said, places):
    assert gpus.select_gpus(said, THERE) == [THERE[place] for place in places]


@pytest.mark.parametrize("said", ["", "2", "a", "0;1", "-1", "../x", "GPU-aaaa", "GPU-", "MIG-d", "0,", "0,none"])
def test_what_is_not_there_or_not_clear_is_refused(said):
    with pytest.raises(UserError, match="names no GPU of this host"):
        gpus.select_gpus(said, THERE)


@pytest.mark.parametrize("said", ["0,0", "0,00", "0,GPU-aaaa1111-0000"])
def test_nobody_owns_a_gpu_twice(said):
    with pytest.raises(UserError, match="twice"):
        gpus.select_gpus(said, THERE)


def test_an_instance_of_mig_is_named_alone():
    with pytest.raises(UserError, match="name it alone"):
        gpus.select_gpus("MIG-cccc1111-0000,0", THERE)


def test_a_gpu_has_one_owner_on_a_host_whatever_its_home_for_as_long_as_that_lives(tmp_path):
    gpu, other = gpus.Gpu("0", f"GPU-{tmp_path}"), gpus.Gpu("1", f"GPU-{tmp_path}-1")
    holder = subprocess.Popen(
        [sys.executable, "-c", OWNING.format(uuid=gpu.uuid)],
        cwd=ROOT,
        env={**os.environ, "TUNELINE_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "owned\n"
    with pytest.raises(UserError, match="Another agent on this host owns GPU 0"):
        gpus.claim_gpus([other, gpu])
    holder.kill()
    holder.wait()
    gpus.claim_gpus([gpu])


def test_a_gpu_stays_owned_while_a_process_lives_that_was_given_the_files(tmp_path):
    gpu = gpus.Gpu("0", f"GPU-{tmp_path}")
    held = gpus.claim_gpus([gpu])
    heir = subprocess.Popen(["sleep", "60"], pass_fds=held)
    os.close(held[0])
    with pytest.raises(UserError, match="owns GPU 0"):
        gpus.claim_gpus([gpu])
    heir.kill()
    heir.wait()
    gpus.claim_gpus([gpu])


@pytest.mark.parametrize("said", ["1", "01", "GPU-aaaa2222-0000"])
def test_an_agent_does_not_start_on_a_gpu_that_another_home_s_agent_owns(driver, tmp_path, said):
    held = gpus.claim_gpus([THERE[1]])
    try:
        done = run(driver, "-m", "flows.agent", "--gpus", said, TUNELINE_HOME=str(tmp_path))
    finally:
        os.close(held[0])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "owns GPU 1" in done.stderr


def test_an_agent_on_gpus_that_are_not_there_says_which_are(driver):
    done = run(driver, "-m", "flows.agent", "--gpus", "7")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "0, 1, MIG-cccc1111-0000, MIG-cccc2222-0000" in done.stderr


STARTED = """
import os
from flows import agent
agent.wait_for_server = lambda: None
agent.run_module = lambda *command, **how: print(repr(os.environ["CUDA_VISIBLE_DEVICES"]), *command[-2:]) or 0
agent.main()
"""


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        (["--gpus", "1,0"], "'GPU-aaaa2222-0000,GPU-aaaa1111-0000' --work-queue gpus-2"),
        (["--gpus", "MIG-cccc2"], "'MIG-cccc2222-0000' --work-queue gpus-1"),
        (["--gpus", "none"], "'' --work-queue gpus-1"),
        (["--cpu"], "'' --limit 8"),
    ],
)
def test_what_an_agent_runs_sees_its_gpus_and_no_others(driver, arguments, seen):
    done = run(driver, "-c", STARTED, *arguments)
    assert done.stdout.strip() == seen, done.stderr


def test_what_a_dead_agent_of_another_home_left_on_a_gpu_is_ended(driver):
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, THERE[1].marker: gpus.MARKER_VALUE})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, THERE[0].marker: gpus.MARKER_VALUE})
    reaper = threading.Thread(target=orphan.wait)
    reaper.start()
    try:
        done = run(driver, "-c", STARTED, "--gpus", "1")
        assert done.returncode == 0, done.stderr
        reaper.join(5)
        assert orphan.returncode < 0
        assert other.poll() is None
    finally:
        other.kill()
