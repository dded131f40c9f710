"""`coppermesh config`: what a running agent goes by, or what one would that is started now."""

import json
from typing import Any

from coppermesh.agent.config import described, environment, load_settings, values_of
from coppermesh.agent.home import Home
from coppermesh.agent.local_link import LocalLink, socket_alive
from coppermesh.agent.mesh_state import doubt_of, private_meshes
from coppermesh.agent.screens import counted


def show(home: Home) -> dict[str, Any]:
    """Every setting and its origin: from the agent where one runs, whose command line counts. Raises ConfigError."""
    if socket_alive(home.socket_path):
        with LocalLink(home.socket_path) as link:
            return dict(json.loads(link.call_json("config")))
    loaded = load_settings(home.config_path, environment())
    facts = described(loaded.origins, values_of(loaded.config))
    path = str(home.config_path)
    return {"path": path, "running": False, "error": None, "waiting": [], "settings": facts}


def check(home: Home) -> dict[str, Any]:
    """Whether the file can be used. Raises ConfigError with the line and what is wanted, MeshError."""
    loaded = load_settings(home.config_path)
    there = home.config_path.exists()
    said = f"good ({counted(len(loaded.origins), 'setting')})" if there else "is not there: the defaults hold"
    sentence = f"{home.config_path}: {said}"
    doubt = doubt_of(loaded.config.mesh, private_meshes(home))
    if doubt is not None:
        sentence += f"; but {doubt}"
    return {"path": str(home.config_path), "exists": there, "mesh_doubt": doubt, "sentence": sentence}
