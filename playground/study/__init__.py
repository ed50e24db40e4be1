"""The study: objectives x seeds through both stages of the playground, measured on scenes that no run has seen.

    bash scripts/compare.sh                                             # none, pat, sea, pat+sea; seeds 0 to 4
    python -m playground.study sweep --over alignment_weight=1,5,20     # the same for several settings
    python -m playground.study report                                   # docs/study.md from docs/study/results/

What is compared, and how each number is defined, is in docs/study.md.
"""
