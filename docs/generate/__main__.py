"""Pages that are made from the program: `python docs/generate [--check]`.

With --check nothing is written; what would change is shown, and the exit code is 1.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def pages() -> dict[Path, str]:
    """Each page's path and text."""
    import coming
    import compatibility
    import engine_flags
    import guide_code
    import models
    import native_ops
    import operation
    import reference
    import security
    import structured
    import troubleshooting
    from probe import probe

    from galley.server.protocol import describe

    program = probe(compatibility.route_names())
    names = compatibility.pages(program)
    return {
        ROOT / "galley" / "config" / "engine_flags.py": engine_flags.module(),
        ROOT / "galley" / "ui" / "static" / "operation.json": operation.data(),
        **{DOCS / name: text for name, text in names.items()},
        DOCS / "coming-from-vllm.md": coming.fill(
            (DOCS / "coming-from-vllm.md").read_text(),
            "".join(names.values()).replace("](../", "]("),  # as seen from docs/
        ),
        DOCS / "guide" / "data" / "code.json": guide_code.text(),
        DOCS / "models.md": models.page(),
        DOCS / "native_ops.md": native_ops.fill((DOCS / "native_ops.md").read_text()),
        DOCS / "security.md": security.fill((DOCS / "security.md").read_text(), program),
        DOCS / "request_fields.md": describe.page(),
        DOCS / "structured-output.md": structured.fill((DOCS / "structured-output.md").read_text()),
        DOCS / "troubleshooting.md": troubleshooting.page(),
        **{DOCS / "reference" / name: text for name, text in reference.pages(program).items()},
    }


def main(check: bool) -> int:
    stale = 0
    for path, text in pages().items():
        before = path.read_text() if path.exists() else ""
        if text == before:
            continue
        stale += 1
        if check:
            old, new = before.splitlines(), text.splitlines()
            print("\n".join(difflib.unified_diff(old, new, f"{path.name}, as it is", "made", n=0)))
        else:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)}: written")
    if check and stale:
        print(f"{stale} pages are not true any more: make docs")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main("--check" in sys.argv[1:]))
