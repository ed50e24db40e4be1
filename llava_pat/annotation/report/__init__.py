"""The annotation report: what a run, or any regions file, holds, as numbers, a table and an HTML page.

python -m llava_pat.annotation.report OUT

command   flags -> the files
source    a run's folder or a regions file -> shards, images without a line
survey    all images -> counters, in several processes; measure: one image's regions -> numbers
captions  noun phrases of the captions, and which of them have a region
metrics   counters -> metrics.json; plots, words, gallery, page: -> report.html; table: -> the terminal
"""
