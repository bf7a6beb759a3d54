"""GPUs: listing, selection by name, and exclusive locks."""

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

AVAILABLE = [
    gpus.Gpu("0", "GPU-aaaa1111-0000"),
    gpus.Gpu("1", "GPU-aaaa2222-0000"),
    gpus.Gpu("MIG-cccc1111-0000", "MIG-cccc1111-0000"),
    gpus.Gpu("MIG-cccc2222-0000", "MIG-cccc2222-0000"),
]
CLAIM = "from flows import gpus; gpus.claim_gpus([gpus.Gpu('0', {uuid!r})]); print('locked', flush=True); input()"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """An environment with a stand-in for NVIDIA's library that reports three GPUs."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, for a stand-in for NVIDIA's library")
    folder = tmp_path_factory.mktemp("nvml")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, ROOT / "tests/nvml.c"], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "TUNELINE_HOME": str(folder / "home")}


def run(environment, *arguments: str, **variables) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True)


def test_gpus_and_mig_instances_are_listed(driver):
    done = run(driver, "-c", "from flows import gpus; print(gpus.list_gpus())")
    assert done.stdout.strip() == str(AVAILABLE), done.stderr


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ({}, [gpu.name for gpu in AVAILABLE]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["none"]),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ["none"]),
    ],
)
def test_default_agents_use_one_visible_gpu_each(driver, visible, expected):
    environment = {key: value for key, value in driver.items() if key != "CUDA_VISIBLE_DEVICES"}
    done = run(environment, "-c", "from flows import gpus; print(gpus.default_gpu_sets())", **visible)
    assert done.stdout.strip() == str(expected), done.stderr


@pytest.mark.skipif(not os.environ.get("TUNELINE_TEST_GPU"), reason="TUNELINE_TEST_GPU is not set")
def test_cuda_and_driver_agree_on_uuids():
    available = gpus.list_gpus()
    for gpu in available:
        code = "import torch; print(f'GPU-{torch.cuda.get_device_properties(0).uuid}', torch.cuda.device_count())"
        done = run(os.environ, "-c", code, CUDA_VISIBLE_DEVICES=gpu.uuid)
        assert done.stdout.split() == [gpu.uuid, "1"], done.stderr
    assert len(available) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("names", "indices"),
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
def test_gpus_are_selected_by_index_or_uuid(names, indices):
    assert gpus.select_gpus(names, AVAILABLE) == [AVAILABLE[index] for index in indices]


@pytest.mark.parametrize("names", ["", "2", "a", "0;1", "-1", "../x", "GPU-", "MIG-d", "0,", "0,none"])
def test_unknown_gpu_is_rejected(names):
    with pytest.raises(UserError, match="is not a GPU of this host; choose from 0, 1, MIG"):
        gpus.select_gpus(names, AVAILABLE)


def test_ambiguous_uuid_prefix_is_rejected():
    with pytest.raises(UserError, match="is ambiguous"):
        gpus.select_gpus("GPU-aaaa", AVAILABLE)


@pytest.mark.parametrize("names", ["0,0", "0,00", "0,GPU-aaaa1111-0000"])
def test_gpu_named_twice_is_rejected(names):
    with pytest.raises(UserError, match="twice"):
        gpus.select_gpus(names, AVAILABLE)


def test_mig_instance_must_be_named_alone():
    with pytest.raises(UserError, match="name it alone"):
        gpus.select_gpus("MIG-cccc1111-0000,0", AVAILABLE)


def test_gpu_lock_is_host_wide_and_ends_with_its_process(tmp_path):
    gpu, other = gpus.Gpu("0", f"GPU-{tmp_path}"), gpus.Gpu("1", f"GPU-{tmp_path}-1")
    holder = subprocess.Popen(
        [sys.executable, "-c", CLAIM.format(uuid=gpu.uuid)],
        cwd=ROOT,
        env={**os.environ, "TUNELINE_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(UserError, match="Another agent on this host uses GPU 0"):
        gpus.claim_gpus([other, gpu])
    holder.kill()
    holder.wait()
    gpus.claim_gpus([gpu])


def test_gpu_lock_is_held_by_processes_that_inherit_it(tmp_path):
    gpu = gpus.Gpu("0", f"GPU-{tmp_path}")
    locks = gpus.claim_gpus([gpu])
    heir = subprocess.Popen(["sleep", "60"], pass_fds=locks)
    os.close(locks[0])
    with pytest.raises(UserError, match="uses GPU 0"):
        gpus.claim_gpus([gpu])
    heir.kill()
    heir.wait()
    gpus.claim_gpus([gpu])


@pytest.mark.parametrize("name", ["1", "01", "GPU-aaaa2222-0000"])
def test_agent_does_not_start_on_a_locked_gpu(driver, tmp_path, name):
    locks = gpus.claim_gpus([AVAILABLE[1]])
    try:
        done = run(driver, "-m", "flows.agent", "--gpus", name, TUNELINE_HOME=str(tmp_path))
    finally:
        os.close(locks[0])
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "uses GPU 1" in done.stderr


def test_agent_with_an_unknown_gpu_lists_the_available_ones(driver):
    done = run(driver, "-m", "flows.agent", "--gpus", "7")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "0, 1, MIG-cccc1111-0000, MIG-cccc2222-0000" in done.stderr


START_AGENT = """
import os
from flows import agent
agent.wait_for_server = lambda: None
agent.run_module = lambda *command, **options: print(repr(os.environ["CUDA_VISIBLE_DEVICES"]), *command[-2:]) or 0
agent.main()
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpus", "1,0"], "'GPU-aaaa2222-0000,GPU-aaaa1111-0000' --work-queue gpus-2"),
        (["--gpus", "MIG-cccc2"], "'MIG-cccc2222-0000' --work-queue gpus-1"),
        (["--gpus", "none"], "'' --work-queue gpus-1"),
        (["--cpu"], "'' --limit 8"),
    ],
)
def test_worker_sees_the_agents_gpus_only(driver, arguments, expected):
    done = run(driver, "-c", START_AGENT, *arguments)
    assert done.stdout.strip() == expected, done.stderr


def test_processes_of_a_killed_agent_on_the_same_gpu_are_ended(driver):
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, AVAILABLE[1].marker: gpus.MARKER_VALUE})
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, AVAILABLE[0].marker: gpus.MARKER_VALUE})
    reaper = threading.Thread(target=orphan.wait)
    reaper.start()
    try:
        done = run(driver, "-c", START_AGENT, "--gpus", "1")
        assert done.returncode == 0, done.stderr
        reaper.join(5)
        assert orphan.returncode < 0
        assert other.poll() is None
    finally:
        other.kill()
