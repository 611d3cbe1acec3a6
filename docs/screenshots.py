"""Pictures of every page that the library writes, at the width of a desk and of a phone: `make screenshots`.

The report of a study, the page of `vars-ode convergence` and the documentation are rendered by a headless Chromium into
a folder, to be looked at. What does not fit is also printed: pages wider than the window, and what has to be scrolled
other than code.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1300, 400)
TALLEST = 8000  # pixels of one picture; longer pages are cut into several
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",  # the wrapper measures the page inside it
    "--virtual-time-budget=4000",
)
# A browser's window has a least width above a phone's, so that the page goes into a frame of the width asked for. The
# title says how high it is, how wide, and which boxes hold more than they show.
WRAPPER = """<!DOCTYPE html><html><head><meta charset="utf-8"><title></title></head>
<body style="margin:0;background:#fff;overflow:hidden">
<iframe id="page" src="{page}" style="border:0;display:block;width:{width}px;height:{height}px;margin-top:-{top}px">
</iframe><script>
onload = () => {{
  const inner = document.getElementById("page").contentDocument, root = inner.documentElement;
  const boxes = [...inner.querySelectorAll("main :not(pre), article :not(pre)")].filter(
    box => box.clientWidth > 0 && box.scrollWidth > box.clientWidth + 1 &&
      !box.closest("pre") && ["auto", "scroll"].includes(getComputedStyle(box).overflowX));
  document.title = JSON.stringify({{height: root.scrollHeight, width: root.scrollWidth, scrolled: boxes.map(
    box => box.tagName.toLowerCase() + " of " + box.scrollWidth + " in " + box.clientWidth + " px: "
      + box.textContent.trim().replace(/\\s+/g, " ").slice(0, 40))}});
}};
</script></body></html>"""


def main() -> str | None:
    """Render what was asked for; a sentence where that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="HTML files; by default all that were made")
    parser.add_argument("--out", type=Path, default=HERE / "_build" / "screenshots", help="folder of the pictures")
    chosen = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return f"No browser was found. Install Chromium (it is looked for as {', '.join(BROWSERS)}), then try again."
    pages = {"_".join(page.resolve().with_suffix("").parts[-2:]): page.resolve() for page in chosen.pages}
    pages = pages or dict(_all_pages())
    absent = [str(page) for page in pages.values() if not page.is_file()]
    if absent or not pages:
        return f"There is no page {', '.join(absent)}." if absent else "There is no page yet: `make docs` first."
    shutil.rmtree(chosen.out, ignore_errors=True)
    chosen.out.mkdir(parents=True)
    for name, page in pages.items():
        for width in WIDTHS:
            for sentence in _render(browser, page, width, chosen.out, f"{name}-{width}"):
                print(f"{name} at {width} px: {sentence}")
    print(f"{len(list(chosen.out.iterdir()))} pictures of {len(pages)} pages are in {chosen.out}")
    return None


def _all_pages() -> Iterator[tuple[str, Path]]:
    """The pages that exist, by a name for their pictures; a sentence for each that was not made yet."""
    runs = HERE.parent / "runs"
    written = {
        "report": (runs / "demo" / "report.html", "make demo"),
        "convergence": (runs / "convergence" / "index.html", "vars-ode convergence --out runs/convergence"),
        "index": (HERE / "_build" / "html" / "index.html", "make docs"),
    }
    for name, (page, command) in written.items():
        if page.is_file():
            yield name, page
        else:
            print(f"{name}: there is no {page}; `{command}` makes it")
    site = HERE / "_build" / "html"
    for page in sorted(site.rglob("*.html")):
        name = page.relative_to(site).with_suffix("")
        if name.parts[0] not in ("_modules", "_static", "genindex", "py-modindex", "search", "index"):
            yield "_".join(name.parts), page


def _render(browser: str, page: Path, width: int, folder: Path, name: str) -> Sequence[str]:
    """Write the pictures of one page at one width; sentences on what does not fit."""
    with tempfile.TemporaryDirectory() as scratch:
        wrapper = Path(scratch) / "wrapper.html"

        def run(height: int, top: int, *flags: str) -> str:
            text = WRAPPER.format(page=html.escape(page.as_uri()), width=width, height=height, top=top)
            wrapper.write_text(text, encoding="utf-8")
            window = f"--window-size={width},{min(TALLEST, height - top)}"
            profile = f"--user-data-dir={tempfile.mkdtemp(dir=scratch)}"
            command = [browser, *FLAGS, profile, window, *flags, wrapper.as_uri()]
            return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

        title = re.search(r"<title>(.+?)</title>", run(900, 0, "--dump-dom"), re.DOTALL)
        if title is None:
            return ["the browser did not show it"]
        found = json.loads(html.unescape(title[1]))
        tops = range(0, found["height"], TALLEST)
        for i, top in enumerate(tops, start=1):
            picture = folder / (f"{name}.png" if len(tops) == 1 else f"{name}-{i}.png")
            run(found["height"], top, f"--screenshot={picture}")
    wide = [f"the page is {found['width']} px wide"] if found["width"] > width else []
    return [*wide, *found["scrolled"]]


if __name__ == "__main__":
    sys.exit(main())
