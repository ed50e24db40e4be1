"""Runs the pipeline over all images of a records file: resumable, in one process or on a cluster.

work      all images -> batches, a shard of the output at a time
local     batches -> answers, in this process: threads decode and encode beside the models
ray_data  batches -> answers, by Ray Data: actors with models over GPUs and nodes
shards    answers -> shards of the output, each written when it is complete
run       all of it
"""
