"""The owner's hand on a running agent: `config.toml` is read again when it changes, devices are looked at, hours pass.

This shell only looks and carries out. When a changed file is read and what of it counts is `reload`'s decision; what
a look at a device means is `device_gate`'s; what follows for bids is `policy`'s and for leases the provider's. A look
goes through a driver, so it happens in a thread, with a deadline; one that hangs is not asked again until it has come
back, and what it would have said is unknown.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from coppermesh.agent.config import Config, Loaded
from coppermesh.agent.config_file import ConfigFile
from coppermesh.agent.device_gate import DeviceGate
from coppermesh.agent.price_list import PriceList
from coppermesh.agent.provider_group import ProviderGroup
from coppermesh.agent.reload import Reloader
from coppermesh.agent.sharing import Sharing, in_words
from coppermesh.agent.tariff_history import note_costs
from coppermesh.exec.conditions import UNKNOWN, Conditions, ConditionsReader
from coppermesh.exec.device import DeviceInfo
from coppermesh.p2p.records import DeviceOffer

FILE_SECONDS = 0.5
"""Between two looks at the file; a change counts after the second look that finds it the same."""
LOOK_SECONDS = 1.0
"""Between two looks at a device."""
OPEN_SECONDS, READ_SECONDS = 10.0, 2.0
DISTURBED_LOAD = 0.1
"""Above so much load by other programs a processor's power says nothing about our tasks."""

OpenReader = Callable[[str, str | None], ConditionsReader]
MakeOffer = Callable[[DeviceInfo, Config, int], DeviceOffer]
"""A device, the settings, and the rate that is asked for it."""

_log = logging.getLogger(__name__)


class OwnersHand:
    """Keeps the providers of a machine to what its owner wants."""

    def __init__(
        self,
        providers: ProviderGroup | None,
        devices: Sequence[DeviceInfo],
        loaded: Loaded,
        file: ConfigFile | None,
        *,
        make_offer: MakeOffer,
        prices: PriceList,
        tariffs: Path | None = None,
        open_reader: OpenReader,
        now_us: Callable[[], int],
    ) -> None:
        """`devices`: those served. `file` None: the settings never change. `tariffs`: where costs are remembered."""
        self._providers = providers
        self._devices = devices
        self._file = file
        self._make_offer = make_offer
        self._prices = prices
        self._tariffs = tariffs
        self._asked: dict[str, int] = {}
        """The rate that each device is offered for now."""
        self._open_reader = open_reader
        self._now_us = now_us
        self.settings = Reloader(loaded, None if file is None else file.taken)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Started once every device was looked at, so that none is offered before."""
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as first:
                for info in self._devices if self._providers is not None else ():
                    first.start_soon(nursery.start, self._watch_device, info)
            if self._file is not None:
                nursery.start_soon(self._watch_file, self._file)
            nursery.start_soon(self._pass_time)
            task_status.started()

    async def _pass_time(self) -> None:
        """Hours begin and end by themselves, and so do tariffs."""
        await self._note_costs()
        while True:
            if self._providers is not None:
                self._providers.follow_owner()
                self._providers.floors = self._floors()
                if self._rates() != self._asked:
                    self._adopt(self.settings.config)
            await trio.sleep(LOOK_SECONDS)

    # The file

    async def _watch_file(self, file: ConfigFile) -> None:
        while True:
            await trio.sleep(FILE_SECONDS)
            before = file.stamp()
            if not self.settings.look(before):
                continue
            result = await trio.to_thread.run_sync(file.load_again)
            waiting, config = self.settings.waiting, self.settings.config
            changed = self.settings.take(before, result, file.stamp())
            if changed is None:
                continue
            if self.settings.error is not None:
                _log.error("settings not taken, those before stay: %s", self.settings.error)
                continue
            if self.settings.waiting and self.settings.waiting != waiting:
                _log.warning("settings that need a restart: %s", ", ".join(self.settings.waiting))
            _log.info("settings read again: %s", f"changed {', '.join(changed)}" if changed else "no change")
            if config != self.settings.config:
                self._adopt(self.settings.config)
                await self._note_costs()

    def _adopt(self, config: Config) -> None:
        if self._providers is not None:
            self._asked = self._rates()
            offers = {
                info.device: self._make_offer(info, config, self._asked[info.device])
                for info in self._devices
            }
            self._providers.floors = self._floors()
            self._providers.adopt(offers, frozenset(config.trust), config.sharing)

    def _rates(self) -> dict[str, int]:
        config, now_us = self.settings.config, self._now_us()
        return {info.device: self._prices.rate(info.device, config, now_us) for info in self._devices}

    def _floors(self) -> dict[str, int]:
        config, now_us = self.settings.config, self._now_us()
        return {
            info.device: self._prices.floor_in_force(info.device, config, now_us) for info in self._devices
        }

    async def _note_costs(self) -> None:
        config = self.settings.config
        if self._tariffs is not None and self._providers is not None:
            await trio.to_thread.run_sync(
                note_costs, self._tariffs, self._now_us(), config.unit, config.costs
            )

    # Devices

    async def _watch_device(
        self, info: DeviceInfo, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        look, gate = _Look(self._open_reader, info), DeviceGate(info.device)
        codes: tuple[str, ...] = ()
        try:
            while True:
                sharing = self.settings.config.sharing
                wanted = _is_wanted(sharing, info.kind) or _power_is_wanted(self.settings.config, info)
                conditions = await look.read() if wanted else UNKNOWN
                self._note_power(info.device, conditions, gate)
                codes = self._judge(info.device, gate, conditions, codes)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(LOOK_SECONDS)
        finally:
            await look.close()

    def _note_power(self, device: str, conditions: Conditions, gate: DeviceGate) -> None:
        """One more sample of what it draws, with or without a task of ours."""
        if conditions.power_w is None or self._providers is None:
            return
        disturbed = gate.is_busy or (conditions.load or 0.0) > DISTURBED_LOAD
        working = self._providers.works_on(device)
        self._prices.power[device].add(round(conditions.power_w * 1000), working=working, disturbed=disturbed)

    def _judge(
        self, device: str, gate: DeviceGate, conditions: Conditions, before: tuple[str, ...]
    ) -> tuple[str, ...]:
        """Carry out what the gate says; returns the codes of its obstacles, to log each once."""
        providers = self._providers
        assert providers is not None
        judgement = gate.judge(
            self.settings.config.sharing,
            conditions,
            serving=providers.serves_on(device),
            now_us=self._now_us(),
        )
        codes = tuple(obstacle.code for obstacle in judgement.obstacles)
        if codes != before:
            _log.info("%s: reasons not to lend it now: %s", device, in_words(judgement.obstacles))
        providers.set_obstacles(device, judgement.obstacles)
        if judgement.stop is not None:
            providers.stop_leases(judgement.stop, device)
        return codes


class _Look:
    """A reader that is asked in a thread."""

    def __init__(self, open_reader: OpenReader, info: DeviceInfo) -> None:
        self._open_reader, self._info = open_reader, info
        self._reader: ConditionsReader | None = None
        self._inside = False

    async def read(self) -> Conditions:
        """One look; what is unknown where there is no answer in time, or a thread is still inside."""
        if self._inside:
            return UNKNOWN
        self._inside = True
        with trio.move_on_after(OPEN_SECONDS if self._reader is None else READ_SECONDS):
            return await trio.to_thread.run_sync(self._ask, abandon_on_cancel=True)
        _log.warning("%s: no answer from its driver in time", self._info.device)
        return UNKNOWN

    def _ask(self) -> Conditions:
        try:
            if self._reader is None:
                self._reader = self._open_reader(self._info.kind, self._info.uuid)
            return self._reader.read()
        except Exception as error:  # noqa: BLE001 - whatever a driver does, a look is never more than unknown
            _log.warning("%s cannot be looked at: %s", self._info.device, error)
            return UNKNOWN
        finally:
            self._inside = False

    async def close(self) -> None:
        """Unless a thread is still inside: then the driver's handle is left to the process's end."""
        if self._reader is None or self._inside:
            return
        with trio.CancelScope(shield=True), trio.move_on_after(READ_SECONDS):
            await trio.to_thread.run_sync(self._reader.close, abandon_on_cancel=True)


def _is_wanted(sharing: Sharing, kind: str) -> bool:
    """Whether a look can change anything."""
    limits = (sharing.max_temperature, sharing.max_power, None if kind == "cuda" else sharing.max_load)
    watched = (kind == "cuda" and sharing.busy != "ignore") or sharing.keep_free_bytes > 0
    return watched or any(limit is not None for limit in limits)


def _power_is_wanted(config: Config, info: DeviceInfo) -> bool:
    """Whether what the device draws is worth a look: electricity has a price, and there is something to measure it."""
    priced = config.costs.tariff is not None or bool(config.costs.tariffs)
    return priced and config.costs.loaded_watts is None and info.meter != "none"
