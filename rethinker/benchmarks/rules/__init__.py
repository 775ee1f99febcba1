"""The benchmarks' published rules, re-stated as functions of plain strings: no judge, nothing evaluated, no guess."""
