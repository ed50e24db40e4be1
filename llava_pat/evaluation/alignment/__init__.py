"""How near projected patches and words lie: measures of any checkpoint, controls beside them, one report."""
