"""A hook of mkdocs (mkdocs.yml): the guide is made by the renderer that servers use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel


def on_files(files: Files, config: Any) -> Files:
    sys.path.insert(0, str(Path(__file__).parents[2]))  # mkdocs removes what a hook has added
    from galley.ui import guide

    for name, body in guide.site():
        path = f"guide/{name}"
        if (known := files.get_file_from_path(path)) is not None:
            files.remove(known)
        level = InclusionLevel.INCLUDED
        files.append(File.generated(config, path, content=body, inclusion=level))
    return files
