"""`coppermesh price` and `earnings`: from the home's agent where one runs, else from its files."""

import json
from typing import Any

from coppermesh.agent.clock import now_us
from coppermesh.agent.config import Config, load_config
from coppermesh.agent.earnings import Accounts, Earned, local_day, summed
from coppermesh.agent.home import Home
from coppermesh.agent.ledger_reader import LedgerReader, ReceiptRow
from coppermesh.agent.local_link import LocalLink, socket_alive
from coppermesh.agent.receipt_commands import ask
from coppermesh.agent.tariff_history import Period, read_history
from coppermesh.p2p.ids import format_peer


def price(home: Home) -> dict[str, Any]:
    """What is asked and why. Without an agent the devices are probed here and their power is the owner's or a model."""
    home.check()
    if socket_alive(home.socket_path):
        with LocalLink(home.socket_path) as link:
            return dict(json.loads(link.call_json("price")))
    from coppermesh.agent.machine import offered
    from coppermesh.agent.price_list import PriceList
    from coppermesh.exec.device import probe_devices

    config = load_config(home)
    return {"running": False, **PriceList(offered(probe_devices())).facts(config, now_us())}


def earnings(home: Home, since_us: int, by: str) -> dict[str, Any]:
    """What lending has brought since then, grouped. Raises NotInLedger where there is no ledger."""
    from coppermesh.exec.device import usable_cores

    def offline(reader: LedgerReader) -> dict[str, Any]:
        return earnings_facts(reader.earned(since_us), home, load_config(home), {"cpu": usable_cores()}, by)

    return ask(home, "earnings", {"since_us": since_us, "by": by}, offline)


def earnings_facts(
    rows: list[ReceiptRow], home: Home, config: Config, cores: dict[str, int | None], by: str
) -> dict[str, Any]:
    """Receipts grouped and summed. Blocks: it reads the tariffs of the past."""
    today = Period(0, config.unit, config.costs)
    accounts = Accounts(read_history(home.tariffs_path), today, cores)
    lines, totals = summed(map(earned_of, rows), accounts, by, local_day)
    return {
        "by": by,
        "lines": [line.as_dict() for line in lines],
        "totals": [total.as_dict() for total in totals],
        "losing": [line.group for line in lines if line.loses],
    }


def earned_of(row: ReceiptRow) -> Earned:
    """What accounting needs of a receipt."""
    receipt = row.receipt
    return Earned(
        id=row.id.hex(),
        job=row.job.hex(),
        peer=format_peer(row.peer),
        device=receipt.device,
        device_kind=receipt.device_kind,
        started_us=receipt.started_us,
        ended_us=receipt.ended_us,
        energy_mj=receipt.energy_mj,
        meter=receipt.meter,
        unit=receipt.unit,
        amount=receipt.amount,
        verdict=row.verdict,
    )
