"""What belongs to the machine, whichever meshes it is in: devices and their zygotes, and the owner's hand.

`node` serves one mesh with it. Several nodes may share one machine: `provider_group` settles who gets a slot.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import trio

from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config, Loaded
from coppermesh.agent.config_file import ConfigFile
from coppermesh.agent.home import Home
from coppermesh.agent.isolation import announced, scrub_was_seen, witness_once
from coppermesh.agent.owner import OwnersHand
from coppermesh.agent.price_list import PriceList
from coppermesh.agent.provider import ServedDevice
from coppermesh.agent.provider_group import ProviderGroup
from coppermesh.agent.traces import NODE_DIGESTS
from coppermesh.exec.conditions import ConditionsReader, open_conditions
from coppermesh.exec.device import ARRAY_PROGRAMS, DeviceInfo, probe_devices
from coppermesh.exec.supervisor import Supervisor, open_supervisor
from coppermesh.p2p.libp2p_transport import open_libp2p_transport
from coppermesh.p2p.records import DeviceOffer
from coppermesh.p2p.transport import Transport

_log = logging.getLogger(__name__)


_open_door = partial(open_libp2p_transport, gossip=False)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an agent is built on. Tests put other implementations of the same interfaces here."""

    transport: Callable[..., AbstractAsyncContextManager[Transport]] = open_libp2p_transport
    """Called with key, mesh and `listen=`; for a private mesh also `swarm_key=` and `gate=`."""
    door: Callable[..., AbstractAsyncContextManager[Transport]] = _open_door
    """The same, for what is outside a private mesh's swarm key."""
    supervisor: Callable[..., AbstractAsyncContextManager[Supervisor]] = open_supervisor
    """Called with a device and `scratch=`."""
    probe: Callable[[], list[DeviceInfo]] = probe_devices
    """Blocking; called in a thread."""
    conditions: Callable[[str, str | None], ConditionsReader] = open_conditions
    """Called with a device's kind and uuid; blocking, in a thread."""


class Machine:
    """The agent's own side: one home, its devices, its owner. Made by `open_machine`."""

    def __init__(self, home: Home, config: Config) -> None:
        self.home = home
        self.config = config
        self.started_us = now_us()
        self.active_us = self.started_us
        self.stopping = trio.Event()
        self.devices: list[ServedDevice] = []
        self.simulated: list[str] = []
        """GPUs that a stand-in for NVML reports: shown to the owner, never announced, never given work."""
        self.isolation: tuple[str, ...] = ()
        self.providers: ProviderGroup | None = None
        """None: this agent offers no device."""
        self.prices = PriceList([])
        self.owner: OwnersHand

    def touch(self) -> None:
        """A client or a peer made use of this agent."""
        self.active_us = now_us()


@asynccontextmanager
async def open_machine(
    home: Home, loaded: Loaded, parts: Parts, file: ConfigFile | None
) -> AsyncIterator[Machine]:
    """Devices probed, zygotes started and the owner's wishes followed, for the length of the block."""
    machine = Machine(home, loaded.config)
    async with AsyncExitStack() as stack:
        if loaded.config.provide:
            await _open_devices(stack, machine, parts)
        machine.owner = OwnersHand(
            machine.providers,
            [device.info for device in machine.devices],
            loaded,
            file,
            make_offer=make_offer,
            prices=machine.prices,
            tariffs=home.tariffs_path,
            open_reader=parts.conditions,
            now_us=now_us,
        )
        yield machine


async def _open_devices(stack: AsyncExitStack, machine: Machine, parts: Parts) -> None:
    """Probe the devices and start a zygote for each one on offer: the GPUs, or the CPU where there is none."""
    found = await trio.to_thread.run_sync(parts.probe)
    machine.simulated = [device.name for device in found if device.simulated]
    on_offer = offered(found)
    machine.prices = PriceList(on_offer)
    for info in on_offer:
        scratch = machine.home.scratch_path / info.device
        supervisor = await stack.enter_async_context(parts.supervisor(info, scratch=scratch))
        rate = machine.prices.rate(info.device, machine.config, now_us())
        machine.devices.append(ServedDevice(info, make_offer(info, machine.config, rate), supervisor))
    put_on = [device.supervisor.layers for device in machine.devices]
    # Nothing is put on in some tests, and trying the layers takes a while.
    seen = await trio.to_thread.run_sync(witness_once, machine.home.path) if any(put_on) else []
    scrubbed = await trio.to_thread.run_sync(
        scrub_was_seen, machine.home.path, [device.info for device in machine.devices]
    )
    machine.isolation = announced(seen, put_on, scrubbed=scrubbed)
    machine.providers = ProviderGroup(
        {device.offer.device: device.offer.slots for device in machine.devices},
        sharing=machine.config.sharing,
        trusted=frozenset(machine.config.trust),
        paused=machine.home.paused_path.exists(),
        reclaimed=machine.home.reclaimed(),
    )


def offered(found: Sequence[DeviceInfo]) -> list[DeviceInfo]:
    """Those of this machine's devices that are lent: the GPUs that take programs, or the CPU where there is none."""
    gpus = [
        device
        for device in found
        if device.kind == "cuda" and ARRAY_PROGRAMS in device.features and not device.simulated
    ]
    return gpus or [device for device in found if device.kind == "cpu"]


def make_offer(info: DeviceInfo, config: Config, rate: int) -> DeviceOffer:
    """What announcements say of a device that is asked `rate` for."""
    kind: Literal["cpu", "cuda"] = "cuda" if info.kind == "cuda" else "cpu"
    memory = min(info.memory_bytes, config.memory_bytes) if kind == "cpu" else info.memory_bytes
    memory = int(memory * config.sharing.memory_share)
    memory = max(0, min(memory, info.memory_bytes - config.sharing.keep_free_bytes))
    return DeviceOffer(
        device=info.device,
        kind=kind,
        name=info.name,
        rate=rate,
        unit=config.unit,
        memory_bytes=memory,
        slots=config.slots,
        features=sorted({*info.features, NODE_DIGESTS} if info.features else ()),
        meter=info.meter,
        compute_capability=info.compute_capability,
        uuid=info.uuid,
        driver=info.driver,
        total_bytes=info.total_bytes,
    )
