"""Settings that change while an agent runs: what is read, what counts, and that nothing is lost on the way."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coppermesh.agent.config import Config, ConfigError, Loaded, load_settings, values_of
from coppermesh.agent.config_file import ConfigFile, template, write_template
from coppermesh.agent.reload import NEEDS_RESTART, Reloader, Wrong, differences
from coppermesh.agent.sharing import Sharing
from coppermesh.p2p.ids import PeerId, format_peer

PEER = format_peer(PeerId(bytes(range(32))))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


# The table


def test_the_owners_wishes_stand_in_a_table(path):
    path.write_text(f"""
        rate = 5
        [sharing]
        paused = true
        allow = ["{PEER}"]
        deny = ["{PEER}"]
        hours = ["22:00-07:00", "sat,sun 00:00-24:00"]
        time_zone = "Europe/Berlin"
        busy = "ignore"
        busy_utilisation = 1
        busy_graphics_bytes = 0
        busy_ignore = ["steam"]
        on_busy = "finish"
        max_temperature = 80
        max_power = 250
        max_load = 0.5
        on_limit = "stop"
        strict = true
        memory_share = 0.25
        """)
    loaded = load_settings(path, {"rate": 7})
    sharing = loaded.config.sharing
    assert (sharing.paused, sharing.max_temperature, sharing.memory_share) == (True, 80, 0.25)
    assert [str(window) for window in sharing.hours] == ["22:00-07:00", "sat,sun 00:00-24:00"]
    assert sharing.allow == sharing.deny == (PeerId(bytes(range(32))),)
    assert loaded.origins["sharing.paused"] == "line 4"
    assert loaded.origins["rate"] == "command line"
    assert values_of(loaded.config)["sharing.deny"] == [PEER]
    assert set(values_of(loaded.config)) >= set(loaded.origins)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("\n\n[sharing]\npaused = 1", "line 4: sharing.paused: want true or false, got 1"),
        ('[sharing]\nhours = ["7-8"]', "line 2: sharing.hours: want a list of windows .*want times like"),
        ('[sharing]\nhours = "22:00-07:00"', "line 2: sharing.hours: want a list"),
        ('[sharing]\ntime_zone = "Mars/Olympus"', "line 2: .* knows no such zone"),
        ('[sharing]\ntime_zone = "../etc/passwd"', "line 2: .* knows no such zone"),
        ('[sharing]\nbusy = "no"', 'line 2: sharing.busy: want "no-bids" or "ignore"'),
        ("[sharing]\nmax_temperature = 8000", "line 2: .*degrees Celsius, 30 to 120"),
        ("[sharing]\nmemory_share = 0", "line 2: .*above 0 and at most 1"),
        ("[sharing]\nmax_load = nan", "line 2: .*above 0 and at most 1"),
        ("[sharing]\npause = true", "line 2: 'sharing.pause': no such setting; did you mean sharing.paused"),
        ("# a\nhours = []", r"line 2: 'hours': no such setting; it belongs below \[sharing\]"),
        (
            "[sharing]\nslots = 2",
            r"line 2: 'sharing.slots': no such setting; it belongs above every \[table\]",
        ),
        ("sharing = true", "line 1: sharing: want a table"),
        (f'allow = ["{PEER}"]', r"line 1: 'allow': .* `trust`; .* `allow` below \[sharing\]"),
        ("[sharing]\npaused = flase", "not TOML: .* line 2, .*: 'paused = flase'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(path, text, wrong):
    path.write_text(text)
    with pytest.raises(ConfigError, match=wrong) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_number_too_long_for_python_is_not_toml(path):
    path.write_text("rate = " + "9" * 20_000)
    with pytest.raises(ConfigError, match="not TOML") as caught:
        load_settings(path)
    assert len(str(caught.value)) < 1000


values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([PEER, "22:00-07:00", "stop"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(Sharing.__dataclass_fields__)), value=values)
def test_any_wish_is_taken_or_refused_in_words(tmp_path_factory, key, value):
    path = tmp_path_factory.getbasetemp() / "none.toml"
    try:
        config = load_settings(path, {"sharing": {key: value}}).config
    except ConfigError as error:
        assert f"sharing.{key}" in str(error)
    else:
        assert set(differences(Config(), config)) <= {f"sharing.{key}"}
        assert config.sharing.closed(False, 1_700_000_000_000_000) is None or key in ("hours", "paused")


@given(st.text(alphabet="[]sharing=\"'\n .,:0159#{}-paused", max_size=200))
def test_any_text_is_a_configuration_or_refused_in_words(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text(text)
    try:
        load_settings(path)
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")


# The commented file


def test_the_first_start_leaves_a_file_that_changes_nothing(path):
    assert write_template(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_settings(path).config == Config()
    assert load_settings(path).origins == {}
    path.write_text("mine")
    assert not write_template(path)
    assert path.read_text() == "mine"


def test_every_setting_stands_in_the_commented_file_with_its_default(path):
    text = re.sub(r"(?m)^#(?! )", "", template())
    text = re.sub(r"(?m)^#(  \"Xorg\".*)$", r"\1", text)
    path.write_text(text)
    loaded = load_settings(path)
    given = values_of(loaded.config)
    assert set(loaded.origins) == set(given)
    examples = {
        "rate",
        "idle_exit_seconds",
        "sharing.max_temperature",
        "sharing.max_power",
        "sharing.max_load",
        "costs.tariff",
        "costs.idle_watts",
        "costs.loaded_watts",
    }
    defaults = values_of(Config())
    assert {key for key in given if given[key] != defaults[key]} == examples
    assert {key for key in given if defaults[key] is None} == examples


def test_the_example_in_the_readme_is_right(path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    path.write_text(example.replace("12D3KooW...", PEER))
    config = load_settings(path).config
    assert config.rate_for("cuda") == 400_000
    assert [str(window) for window in config.sharing.hours] == ["22:00-07:00", "sat,sun 00:00-24:00"]


def test_a_home_that_takes_no_file_is_no_trouble(tmp_path, caplog):
    assert not write_template(tmp_path / "missing" / "config.toml")
    assert "cannot be written" in caplog.text


# Changes


def test_what_needs_a_restart_stays_and_is_told():
    reloader = Reloader(Loaded(Config(), {}), 1)
    new = Config(mesh="lab", listen="/ip4/127.0.0.1/tcp/9", rate=5, sharing=Sharing(paused=True))
    assert reloader.look(2) is False
    assert reloader.look(2) is True
    assert reloader.take(2, Loaded(new, {}), 2) == ("rate", "sharing.paused")
    assert reloader.waiting == ("mesh", "listen")
    assert (reloader.config.mesh, reloader.config.rate) == ("open", 5)
    reloader.look(3)
    assert reloader.take(3, Loaded(Config(), {}), 3) == ("rate", "sharing.paused")
    assert reloader.waiting == ()


def test_a_stamp_differs_when_another_file_is_put_in_its_place(path):
    file = ConfigFile(path, {})
    seen = {file.stamp()}
    for text in ("rate = 5", "rate = 6"):
        fresh = path.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(path)
        seen.add(file.stamp())
    os.utime(path, ns=(1, 1))
    seen.add(file.stamp())
    assert len(seen) == 4


def test_a_file_that_is_gone_changes_nothing(path):
    path.write_text("rate = 5")
    file = ConfigFile(path, {})
    assert file.load().config.rate == 5
    path.unlink()
    gone = file.load_again()
    assert isinstance(gone, Wrong)
    assert "is gone" in gone.sentence


def test_a_file_that_would_never_end_is_refused_and_nobody_waits_for_it(path):
    path.write_text("rate = 5")
    file = ConfigFile(path, {})
    file.load()
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        path.unlink(missing_ok=True)
        make(path)
        wrong = file.load_again()
        assert isinstance(wrong, Wrong)
        assert "no ordinary file" in wrong.sentence
        if path.is_dir():
            path.rmdir()


def test_a_change_between_reading_and_starting_is_seen(path):
    path.write_text("rate = 5")
    file = ConfigFile(path, {})
    reloader = Reloader(file.load(), file.taken)
    path.write_text("rate = 55")
    assert [reloader.look(file.stamp()), reloader.look(file.stamp())] == [False, True]


class Editing(RuleBasedStateMachine):
    """An owner with any editor against the reloader. A file is text with a version: each write gives another stamp."""

    def __init__(self) -> None:
        super().__init__()
        self.written = [Config()]
        """Every whole and right configuration that ever stood in the file."""
        self.text: Config | Wrong | None = self.written[0]
        self.partial = False
        self.stamp: int | None = 0
        self.stamps = 0
        self.quiet_looks = 0
        self.reloader = Reloader(Loaded(Config(), {}), 0)

    def _write(self, text: Config | Wrong | None, *, partial: bool = False) -> None:
        self.stamps += 1
        self.text, self.partial = text, partial
        self.stamp = None if text is None else self.stamps
        self.quiet_looks = 0

    @rule(rate=st.integers(0, 3), paused=st.booleans(), mesh=st.sampled_from(["open", "lab"]))
    def write_whole(self, rate: int, paused: bool, mesh: str) -> None:
        config = Config(mesh=mesh, rate=rate, sharing=Sharing(paused=paused))
        self._write(config)
        self.written.append(config)

    @rule()
    def write_half(self) -> None:
        """The first half of a file, which happens to be right by itself; the rest follows before two looks."""
        self._write(Config(rate=99), partial=True)

    @rule()
    def write_wrong(self) -> None:
        self._write(Wrong("line 3: no"))

    @rule()
    def remove(self) -> None:
        self._write(None)

    @precondition(lambda self: not (self.partial and self.quiet_looks == 1))
    @rule(disturbed=st.booleans())
    def look(self, disturbed: bool) -> None:
        """`disturbed`: the editor writes while we read."""
        before = self.stamp
        self.quiet_looks += 1
        if not self.reloader.look(before):
            return
        result = Wrong("is gone") if self.text is None else self.text
        if disturbed:
            self.write_wrong()
        read = result if isinstance(result, Wrong) else Loaded(result, {})
        old = self.reloader.config
        changed = self.reloader.take(before, read, self.stamp)
        assert (changed is None) == (before != self.stamp)
        assert changed is None or changed == differences(old, self.reloader.config)

    @invariant()
    def only_what_was_written_as_a_whole_holds(self) -> None:
        config = self.reloader.config
        live = [(known.rate, known.sharing.paused) for known in self.written]
        assert (config.rate, config.sharing.paused) in live
        assert all(getattr(config, name) == getattr(Config(), name) for name in NEEDS_RESTART)

    @invariant()
    def after_two_quiet_looks_the_file_is_what_holds(self) -> None:
        if self.quiet_looks < 2 or self.partial:
            return
        if isinstance(self.text, Config):
            assert self.reloader.error is None
            assert (self.reloader.config.rate, self.reloader.config.sharing.paused) == (
                self.text.rate,
                self.text.sharing.paused,
            )
            assert self.reloader.waiting == (("mesh",) if self.text.mesh != "open" else ())
        else:
            assert self.reloader.error is not None


TestEditing = Editing.TestCase
