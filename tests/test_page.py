import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from raybench import page
from raybench.analysis.figure import Claim, Figure, Tables, Verdict, render
from raybench.analysis.generic import FIGURES
from raybench.causes import cause, failures

EVIL = "<script>alert('x')</script>"


class Tags(HTMLParser):
    """Collects the start tags and ids of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.references, self.handlers = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name.startswith("on"):
                self.handlers.append(name)
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")
            if name == "href" and (value or "").startswith("#"):
                self.references.append(value[1:])


def make_runs():
    rows = [
        {
            "run_id": f"{i:016x}",
            "seed": i % 4,
            "status": "failed" if i == 0 else "done",
            "reason": f"Traceback\nValueError: {EVIL} at step {i}" if i == 0 else "",
            "config.model.width": float(2 ** (1 + i // 8)),
            "label.arm_name": EVIL if i % 8 < 4 else "plain",
            "summary.test.loss": 1.0 / (1 + i),
        }
        for i in range(24)
    ]
    return pd.DataFrame(rows)


def make_report(folder):
    runs = make_runs()
    claims = tuple(
        Claim(
            f"claim {passed} {EVIL}",
            "text",
            "paper, fig. 1",
            lambda data, p=passed: Verdict(1.5, "over 1", p),
        )
        for passed in (True, False, None)
    )
    base = FIGURES["final_metrics"]
    figures = {
        "one": Figure(f"One {EVIL}", "Caption.", base.data, base.draw, claims),
        "two": Figure("Two", "Caption.", base.data, base.draw),
        "three": FIGURES["learning_curves"],
    }
    rendered = render(figures, Tables(runs, pd.DataFrame()), folder)
    return page.ReportData(
        title=EVIL,
        description=EVIL,
        paper="arXiv:1912.02292",
        scale="laptop",
        protocol=page.protocol(runs),
        counts=page.counts(runs),
        figures=rendered,
        failures=failures(runs),
        suite_yaml=f"name: {EVIL}",
        environment=[("torch", EVIL)],
        commands=["raybench run suite.yaml"],
        generated="today",
    )


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    return page.write_report(folder / "out" / "report.html", make_report(folder)).read_text()


def parsed(html):
    tags = Tags()
    tags.feed(html)
    return tags


def test_text_is_escaped_everywhere(html):
    tags = parsed(html)
    assert "script" not in tags.tags
    assert not tags.handlers
    assert EVIL not in html
    assert html.count("&lt;script&gt;") >= 7


def test_figures_are_inline_and_their_ids_do_not_clash(html):
    tags = parsed(html)
    assert tags.tags.count("svg") == 2
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.references
    assert set(tags.references) <= set(tags.ids)


def test_nothing_is_loaded(html):
    assert "default-src 'none'" in html
    links = re.findall(r"""(?:src|href)=["']([^"'#]+)""", html)
    assert links == ["https://arxiv.org/abs/1912.02292"]
    assert "@import" not in html
    assert "<style" not in html.split("</head>")[1]


def test_verdicts_counts_and_missing_figures_are_shown(html):
    for status in ("PASS", "FAIL", "NOT RUN"):
        assert f">{status}</td>" in html
    assert "<b>24</b> runs" in html
    assert "<b>23</b> done" in html
    assert "<b>1</b> failed" in html
    assert "no column run_id, step" in html
    assert "over 1" in html
    assert "1.5" in html


def test_the_page_is_the_same_each_time(tmp_path, html):
    again = page.write_report(tmp_path / "report.html", make_report(tmp_path)).read_text()
    assert again == html
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("unfinished")] == []


def test_foreign_elements_of_an_svg_are_left_out(tmp_path):
    svg = tmp_path / "x.svg"
    svg.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'viewBox="0 0 10 10"><script>1</script><foreignObject/><g onclick="1" id="a">'
        '<a xlink:href="javascript:1"><path d="M0 0"/></a><use xlink:href="#a"/>'
        '<use xlink:href="http://x/y#z"/></g></svg>'
    )
    markup = str(page._inline(svg, "p", 'a "title"'))
    assert not re.search(r"script|foreign|onclick|http://x", markup)
    assert 'id="p-a"' in markup
    assert 'href="#p-a"' in markup


def test_one_cause_differs_in_numbers_only():
    assert cause("shapes 64x128 and 10 at 0x7f3a, lr -1e-05 (a.py:3)") == (
        "shapes … and … at …, lr … (a.py:3)"
    )
    assert cause("float32 is not float64, run 0123456789abcdef") == "float32 is not float64, run …"
    assert cause("") == ""


def test_failures_are_grouped_by_cause():
    runs = pd.DataFrame(
        {
            "run_id": list("abcd"),
            "status": ["failed", "failed", "diverged", "done"],
            "reason": ["x\nMemoryError: 12 MB", "x\nMemoryError: 13 MB", None, ""],
        }
    )
    found = failures(runs)
    assert [(f.status, f.reason, f.count, f.run_ids) for f in found] == [
        ("failed", "MemoryError: … MB", 2, ("a", "b")),
        ("diverged", "no reason given", 1, ("c",)),
    ]
    assert page.counts(runs) == [("done", 1), ("diverged", 1), ("failed", 2)]
    assert failures(runs[runs["status"] == "done"]) == []


def test_an_empty_report(tmp_path):
    html = page.write_report(tmp_path / "r.html", page.ReportData("empty")).read_text()
    assert "<h2>Claims" not in html
    assert "None." in html


@pytest.mark.parametrize("paper", ["javascript:alert(1)", "arXiv:1912.02292x", "a book", ""])
def test_only_arxiv_numbers_become_links(paper):
    assert page._link(paper) == ""


def test_protocol_tells_of_tuning():
    runs = make_runs().assign(**{"label.phase": ["search"] * 20 + ["confirm"] * 4})
    text = " ".join(page.protocol(runs))
    assert "24 runs with 4 different seeds" in text
    assert "20 runs on validation data" in text
    assert "Measured on: test." in text
