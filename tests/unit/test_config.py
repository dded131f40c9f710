"""Settings: defaults, the file, overrides, and for all that is wrong the file, the key and what is wanted."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coppermesh.agent.config import (
    CPU_RATE,
    CUDA_RATE,
    MAX_CONFIG_BYTES,
    Config,
    ConfigError,
    default_peers,
    load_config,
)
from coppermesh.agent.config_file import template
from coppermesh.agent.home import Home
from coppermesh.p2p.ids import PeerId, format_peer

PEER = PeerId(bytes(range(32)))
ADDRESS = f"/ip4/192.0.2.1/tcp/4001/p2p/{format_peer(PEER)}"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def write(home: Home, text: str) -> None:
    home.config_path.write_text(text)


def test_no_file_gives_the_defaults(home: Home) -> None:
    config = load_config(home)
    assert config == Config()
    assert config.listen == "/ip4/0.0.0.0/tcp/0", "found on a local network with no configuration"
    assert config.mesh == "open"
    assert config.trust == ()


def test_every_setting_can_be_written(home: Home) -> None:
    write(
        home,
        f"""
        mesh = "a lab"
        listen = "/ip6/::1/tcp/4001"
        bootstrap = ["{ADDRESS}", "{ADDRESS}"]
        trust = ["{format_peer(PEER)}"]
        provide = false
        rate = 0
        unit = "eur"
        memory_bytes = 1_073_741_824
        store_bytes = 1048576
        slots = 4
        idle_exit_seconds = 600
        """,
    )
    assert load_config(home) == Config(
        mesh="a lab",
        listen="/ip6/::1/tcp/4001",
        bootstrap=(ADDRESS,),
        trust=(PEER,),
        provide=False,
        rate=0,
        unit="eur",
        memory_bytes=1 << 30,
        store_bytes=1 << 20,
        slots=4,
        idle_exit_seconds=600,
    )


def test_rates_depend_on_the_device_until_one_is_set() -> None:
    assert Config().rate_for("cpu") == CPU_RATE
    assert Config().rate_for("cuda") == CUDA_RATE
    assert Config(rate=0).rate_for("cuda") == 0


def test_overrides_win_and_none_means_not_given(home: Home) -> None:
    write(home, 'mesh = "lab"\nrate = 5')
    config = load_config(home, mesh=None, rate=0, trust=[PEER], bootstrap=(ADDRESS,))
    assert (config.mesh, config.rate, config.trust, config.bootstrap) == ("lab", 0, (PEER,), (ADDRESS,))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("rtae = 5", r"line 1: 'rtae': no such setting; did you mean rate\?$"),
        ("zzzzzz = 5", r"line 1: 'zzzzzz': no such setting; there are bootstrap,"),
        (
            "[sharing]\npaused = true\n[costs]\n[sharing]\npaused = false",
            "not TOML: the setting paused stands twice, in lines 2 and 5: keep one",
        ),
        ("rate = 1\n\nrate = 2", "not TOML: the setting rate stands twice, in lines 1 and 3: keep one"),
        ("sharing.paused = true\n[sharing]\n", "not TOML: Cannot declare"),
        ('rate = "5"', r"rate: want a whole number .*, got '5'"),
        ("rate = -1", "rate: want a whole number"),
        ("rate = 1.5", "rate: want a whole number"),
        ("rate = true", "rate: want a whole number"),
        ("rate = 99999999999999999999999", "rate: want a whole number"),
        ("slots = 0", "slots: want a number from 1 to 64"),
        ("slots = 65", "slots: want a number from 1 to 64"),
        ("provide = 1", "provide: want true or false"),
        ('mesh = ""', "mesh: want a name"),
        ('mesh = "lab\\n"', "mesh: want a name"),
        ("mesh = 5", "mesh: want a name"),
        ('listen = "0.0.0.0:4001"', "listen: want an address like"),
        ('listen = "/ip4/127.0.0.1/tcp/65536"', "listen: want an address like"),
        ('listen = "/ip4/127.0.0.1/tcp/1\\n"', "listen: want an address like"),
        ('bootstrap = "/ip4/192.0.2.1/tcp/1"', "bootstrap: want a list of addresses"),
        ('bootstrap = ["/ip4/192.0.2.1/tcp/1"]', "bootstrap: want a list of addresses"),
        (f'bootstrap = ["{ADDRESS}x"]', "bootstrap: want a list of addresses"),
        (f'bootstrap = ["{ADDRESS.replace("4001", "0")}"]', "bootstrap: want a list of addresses"),
        ('trust = ["12D3KooWnobody"]', "trust: want a list of peer ids"),
        ("trust = {}", "trust: want a list of peer ids"),
        ('unit = "USD"', "unit: want a code"),
        ("memory_bytes = 1000", "memory_bytes: want a number of bytes"),
        ("idle_exit_seconds = 0", "idle_exit_seconds: want a number of seconds"),
        ("[mesh]\nname = 5", "mesh: want a name"),
        ("mesh =", "not TOML"),
        ("rate = 1\nrate = 2", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(home: Home, line: str, wanted: str) -> None:
    write(home, line)
    with pytest.raises(ConfigError, match=wanted) as caught:
        load_config(home)
    assert str(caught.value).startswith(f"{home.config_path}: ")
    assert len(str(caught.value)) < 1000


def test_a_wrong_override_names_the_argument(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"^argument listen: want an address like .*, got 'here'"):
        load_config(home, listen="here")


def test_files_that_are_no_text_are_refused(home: Home) -> None:
    home.config_path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(home)
    home.config_path.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than"):
        load_config(home)
    home.config_path.unlink()
    home.config_path.mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(home)


def test_first_peers_come_with_coppermesh_unless_others_are_named(home: Home, tmp_path: Path) -> None:
    shipped = tmp_path / "peers.toml"
    shipped.write_text(f'open = ["{ADDRESS}"]')
    assert default_peers("open", shipped) == (ADDRESS,)
    assert default_peers("lab", shipped) == ()
    assert load_config(home).bootstrap == default_peers("open")
    assert load_config(home, bootstrap=[]).bootstrap == ()
    assert load_config(home, bootstrap=[ADDRESS]).bootstrap == (ADDRESS,)


toml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(sorted(Config.__dataclass_fields__)), value=toml_values)
def test_any_value_is_taken_or_refused_in_words(home: Home, key: str, value: object) -> None:
    try:
        config = load_config(home, **{key: value})
    except ConfigError as error:
        assert key in str(error)
    else:
        assert isinstance(config, Config)


def test_lines_of_a_table_may_be_added_at_the_end(home: Home) -> None:
    write(home, "rate = 5\n[sharing]\nmemory_share = 0.25\n\n[costs]\nwear = 1\n[sharing]\npaused = true\n")
    config = load_config(home)
    assert (config.rate, config.sharing.memory_share, config.sharing.paused) == (5, 0.25, True)
    assert config.costs.wear == 1


def test_the_readmes_own_lines_go_below_the_commented_file(home: Home) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    lines = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)[0].replace('"12D3KooW..."', "")
    write(home, template() + lines)
    config = load_config(home)
    assert config.sharing.hours
    assert config.costs.tariff == 300_000
