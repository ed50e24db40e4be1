"""A detector and a segmenter of playground scenes: annotation's stages as anybody would plug their own in.

    scheme      which words they know; a scene -> what every pixel is
    net         the network both read: which kind and which colour a pixel has
    pixels      images -> probabilities
    objects     probabilities -> connected pieces, boxes, the pixels of a box
    train       from nothing, on scenes of another world, in minutes
    detector    labels of an image -> boxes            (kind: playground.annotator.detector.SceneDetector)
    segmenter   boxes -> masks                         (kind: playground.annotator.segmenter.SceneSegmenter)
    tagger      every label there is, for every image  (kind: playground.annotator.tagger.AllLabels)
    scoring     predicted regions against exact ones
    evaluate    the command of that

scripts/configs/playground_annotate.yaml puts them into the pipeline; docs/annotation.md has the figures.
"""
