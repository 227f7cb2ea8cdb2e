"""What each target asks of its process; TPUs are made of files that look like theirs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from harness.base.errors import TargetUnavailable
from harness.devices.expert_layout import Backend
from harness.load.target import Parallelism
from harness.load.targets import gpu, tpu, xla
from harness.load.targets.known_targets import target_named
from harness.load.targets.tpu import TpuHost, chip_environment, find_tpu
from harness.load.vllm_platform import PLATFORM

V6E, TPU7X, V4 = "0x006f", "0x0076", "0x005e"


def fake_host(root: Path, chips: int, device: str = V6E, vfio: bool = False) -> Path:
    """The files of a host with so many chips: device files and PCI ids."""
    (root / "dev" / "vfio").mkdir(parents=True)
    for number in range(chips):
        name = f"vfio/{number + 17}" if vfio else f"accel{number}"
        (root / "dev" / name).touch()
        pci = root / "sys" / "bus" / "pci" / "devices" / f"0000:00:0{number}.0"
        pci.mkdir(parents=True)
        (pci / "vendor").write_text("0x1ae0\n")
        (pci / "device").write_text(f"{device}\n")
    (root / "dev" / "vfio" / "vfio").touch()
    (root / "libtpu.so").touch()
    return root


def found(root: Path, **environ: str) -> TpuHost:
    return find_tpu({"TPU_LIBRARY_PATH": str(root / "libtpu.so"), **environ}, root)


@pytest.mark.parametrize(
    ("device", "vfio", "text", "devices"),
    [
        (V6E, True, "TPU v6e, 4 chips", 4),
        (V4, False, "TPU v4, 4 chips", 4),
        (TPU7X, True, "TPU tpu7x, 4 chips", 8),
        ("0xffff", False, "TPU unknown, 4 chips", 4),
    ],
)
def test_chips_are_counted_and_named(
    tmp_path: Path, device: str, vfio: bool, text: str, devices: int
) -> None:
    host = found(fake_host(tmp_path, 4, device, vfio))
    assert str(host).startswith(text)
    assert (host.chips, host.devices) == ((0, 1, 2, 3), devices)


def test_the_environment_states_generation_and_topology(tmp_path: Path) -> None:
    root = fake_host(tmp_path, 1, "0xffff")
    host = found(root, TPU_ACCELERATOR_TYPE="v5litepod-8", TPU_TOPOLOGY="2x4")
    assert str(host) == f"TPU v5e, 1 chip, topology 2x4, libtpu {root / 'libtpu.so'}"


def test_chips_made_invisible_are_not_taken(tmp_path: Path) -> None:
    host = found(fake_host(tmp_path, 4), TPU_VISIBLE_CHIPS="2,3")
    assert (host.chips, host.whole) == ((2, 3), False)


def test_a_host_without_chips_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TargetUnavailable, match=r"no TPU chip \(/dev/accel\*, /dev/vfio/\*\)"):
        found(fake_host(tmp_path, 0))


def test_a_host_without_libtpu_says_so(tmp_path: Path) -> None:
    root = fake_host(tmp_path, 4)
    (root / "libtpu.so").unlink()
    with pytest.raises(TargetUnavailable, match="no libtpu"):
        found(root)


@pytest.mark.parametrize(
    ("chips", "bounds"), [((3,), "1,1,1"), ((2, 3), "1,2,1"), ((0, 1, 2, 3), "2,2,1")]
)
def test_a_part_of_the_chips_is_a_slice_of_its_own(
    tmp_path: Path, chips: tuple[int, ...], bounds: str
) -> None:
    environment = chip_environment(found(fake_host(tmp_path, 8)), chips)
    port = str(8476 + chips[0])
    assert environment == {
        "TPU_VISIBLE_CHIPS": ",".join(map(str, chips)),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
        "TPU_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_PORT": port,
        "TPU_PROCESS_ADDRESSES": f"localhost:{port}",
        "CLOUD_TPU_TASK_ID": "0",
    }


def test_all_chips_need_no_bounds_and_odd_parts_have_none(tmp_path: Path) -> None:
    host = found(fake_host(tmp_path, 8))
    assert chip_environment(host, host.chips) == {}
    with pytest.raises(TargetUnavailable, match="3 of the host's chips"):
        chip_environment(host, (0, 1, 2))


@pytest.fixture
def eight_chips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TpuHost:
    host = found(fake_host(tmp_path, 8))
    monkeypatch.setattr(tpu, "find_tpu", lambda: host)
    return host


def test_a_tpu_target_takes_all_chips(eight_chips: TpuHost) -> None:
    target = target_named("tpu")
    assert (target.devices, target.chips, target.platform) == (8, tuple(range(8)), "tpu")
    assert target.device_indexes == ()
    assert "TPU_VISIBLE_CHIPS" not in target.environment
    assert "JAX_PLATFORMS" not in target.environment
    assert PLATFORM not in target.environment


def test_workers_divide_the_chips_among_them(eight_chips: TpuHost) -> None:
    chips = [target_named("tpu", share=(number, 4)).chips for number in range(4)]
    assert chips == [(0, 1), (2, 3), (4, 5), (6, 7)]
    ports = {target_named("tpu", share=(n, 4)).environment["TPU_PROCESS_PORT"] for n in range(4)}
    assert len(ports) == 4


def test_more_workers_than_chips_share_the_last(eight_chips: TpuHost) -> None:
    chips = [target_named("tpu", share=(number, 16)).chips for number in range(16)]
    assert chips == [(min(number, 7),) for number in range(16)]


def test_a_worker_that_needs_more_than_its_share_takes_from_the_first(
    eight_chips: TpuHost,
) -> None:
    assert target_named("tpu", 8, share=(3, 4)).chips == tuple(range(8))
    assert target_named("tpu", 4, share=(3, 4)).chips == (0, 1, 2, 3)


def test_more_devices_than_the_host_has(eight_chips: TpuHost) -> None:
    with pytest.raises(TargetUnavailable, match="16 devices"):
        target_named("tpu", 16)


def test_two_devices_of_a_chip_are_one_chip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = found(fake_host(tmp_path, 4, TPU7X))
    monkeypatch.setattr(tpu, "find_tpu", lambda: host)
    assert target_named("tpu").devices == 8
    assert target_named("tpu", 2).chips == (0,)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_an_emulated_mesh_leaves_the_first_device_to_the_host(devices: int) -> None:
    target = target_named("emulated", devices)
    assert target.device_indexes == tuple(range(1, devices + 1))
    assert target.environment["XLA_FLAGS"].endswith(f"device_count={devices + 1}")


def test_the_users_xla_flags_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    given = "--xla_a=1 --xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=64"
    monkeypatch.setenv("XLA_FLAGS", given)
    flags = target_named("emulated", 2).environment["XLA_FLAGS"]
    assert flags == ("--xla_a=1 --xla_cpu_max_isa=AVX512 --xla_force_host_platform_device_count=3")


def test_what_was_compiled_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = "JAX_COMPILATION_CACHE_DIR"
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv(name, raising=False)
    assert target_named("emulated").environment[name].startswith(f"{tmp_path}/jax/")
    monkeypatch.setenv(name, "/elsewhere")
    assert name not in target_named("emulated").environment


def test_numba_has_a_place_for_what_it_compiles(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert target_named("emulated").environment["NUMBA_CACHE_DIR"] == f"{tmp_path}/numba"
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/elsewhere")
    assert target_named("emulated").environment["NUMBA_CACHE_DIR"] == "/elsewhere"


def test_each_parallelism_has_its_packing() -> None:
    of = {p: target_named("emulated", 4, p) for p in Parallelism}
    assert [t.backend for t in of.values()] == [
        Backend.GMM_TP, Backend.GMM_EP, Backend.FUSED_MOE,
    ]  # fmt: skip
    assert of[Parallelism.EXPERT_KERNEL].environment["USE_MOE_EP_KERNEL"] == "1"


def test_torch_xla_has_no_kernel_packing() -> None:
    with pytest.raises(TargetUnavailable, match="expert-kernel on torch-xla"):
        target_named("torch-xla", 4, Parallelism.EXPERT_KERNEL)


def test_a_torch_that_does_not_fit_torch_xla_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch-xla": "2.9.0", "torch": "2.10.0"}
    monkeypatch.setattr(xla, "version", versions.__getitem__)
    with pytest.raises(TargetUnavailable, match=r"torch_xla 2\.9\.0 does not fit torch 2\.10\.0"):
        target_named("torch-xla")


def test_a_build_of_torch_fits_its_release(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch-xla": "2.9.0", "torch": "2.9.1a0+cpu"}
    monkeypatch.setattr(xla, "version", versions.__getitem__)
    assert target_named("torch-xla").devices == 4


def test_a_stack_without_torch_xla_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(xla, "version", absent)
    with pytest.raises(TargetUnavailable, match="torch-xla is not installed"):
        target_named("torch-xla")


# GPUs are made of files that look like theirs, too.


def gpu_host(root: Path, gpus: int) -> Path:
    (root / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", *(f"nvidia{n}" for n in range(gpus))):
        (root / "dev" / name).touch()
    return root


@pytest.mark.parametrize(
    ("gpus", "stated", "seen"),
    [
        pytest.param(2, None, 2, id="all"),
        pytest.param(0, None, 0, id="none"),
        pytest.param(2, "", 0, id="hidden"),
        pytest.param(2, "-1", 0, id="hidden by number"),
        pytest.param(4, "2, 0", 2, id="two by number"),
        pytest.param(4, "0,9,1", 1, id="the list ends at a number that is none"),
        pytest.param(1, "GPU-844cca47", 1, id="by UUID"),
        pytest.param(0, "GPU-844cca47", 0, id="a UUID without a driver"),
    ],
)
def test_gpus_are_counted_as_cuda_shows_them(
    tmp_path: Path, gpus: int, stated: str | None, seen: int
) -> None:
    environ = {} if stated is None else {"CUDA_VISIBLE_DEVICES": stated}
    assert gpu.visible_gpus(environ, gpu_host(tmp_path, gpus)) == seen


def versions_of(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(package: str) -> str:
        if (found := versions.get(package.replace("-", "_"))) is None:
            raise PackageNotFoundError(package)
        return found

    monkeypatch.setattr(gpu, "version", version)


@pytest.mark.parametrize(
    ("versions", "missing"),
    [
        pytest.param({"jax": "0.11.2"}, r"no CUDA plugin of jax 0\.11\.2 \(", id="absent"),
        pytest.param(
            {"jax": "0.11.2", "jax_cuda12_plugin": "0.11.1"},
            r"no CUDA plugin of jax 0\.11\.2, but jax-cuda12-plugin 0\.11\.1",
            id="of another version",
        ),
    ],
)
def test_a_gpu_without_its_plugin_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], missing: str
) -> None:
    versions_of(monkeypatch, **versions)
    monkeypatch.setattr(gpu, "visible_gpus", lambda: 1)
    with pytest.raises(TargetUnavailable, match=missing) as refused:
        target_named("gpu")
    assert "make setup TARGET=gpu" in refused.value.hint


@pytest.mark.parametrize(
    ("seen", "devices", "message"), [(0, None, "no NVIDIA GPU"), (2, 3, "3 devices")]
)
def test_gpus_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, seen: int, devices: int | None, message: str
) -> None:
    monkeypatch.setattr(gpu, "visible_gpus", lambda: seen)
    with pytest.raises(TargetUnavailable, match=message):
        target_named("gpu", devices)


def test_a_gpu_target_is_all_gpus_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    versions_of(monkeypatch, jax="0.11.2", jax_cuda13_plugin="0.11.2")
    monkeypatch.setattr(gpu, "visible_gpus", lambda: 2)
    target = target_named("gpu")
    assert (target.devices, target.device_indexes, target.platform) == (2, (0, 1), "gpu")
    assert target.environment["JAX_PLATFORMS"] == ""
    assert target.environment["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX512"
