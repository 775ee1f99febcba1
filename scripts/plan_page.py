"""Write docs/plan.md: plans of the shipped configs on GPUs. To be run when a config or a formula changes."""

from pathlib import Path

from rethinker.lab.plan.page import make_page

if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    page = root / "docs" / "plan.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(make_page(root), encoding="utf-8")
    print(f"written: {page}")
